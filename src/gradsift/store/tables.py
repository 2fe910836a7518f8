"""`pool.parquet`: one line for each row of the input, in its order, and what became of it.

`neighbours.parquet`: the neighbour graph of a run's content, kept so that it is found once.


`losses/*.parquet`: losses of the further pass, one line for each instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.errors import GradsiftError
from gradsift.utils import read_parquet, write_parquet

POOL_NAME = "pool.parquet"
INSTANCE = "instance"
DROPPED = "dropped"

POOL_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
        pa.field("content_hash", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("n_tokens", pa.int32()),
        pa.field("n_response_tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
    ]
)


def write_pool_table(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `pool.parquet`, atomically.

    Args:
        folder: The run folder.
        rows: Values by column of POOL_SCHEMA. `start` and `end` are the row's bytes in the input
            file, where it has lines; token counts are null for dropped rows.
    """
    write_parquet(folder / POOL_NAME, pa.Table.from_pylist(list(rows), schema=POOL_SCHEMA))


def read_pool_table(folder: Path) -> pa.Table:
    """Read `pool.parquet`.

    Args:
        folder: The run folder.

    Returns:
        The table, in the input's order. `source` and `language` are null where they are not known,
        also in runs that were captured before these were noted.

    Raises:
        ValueError: If there is none.
    """
    path = folder / POOL_NAME
    if not path.exists():
        raise GradsiftError(
            f"{path} is missing: {folder} is not a run folder. "
            f"Make one with: gradsift capture DATA --model MODEL --out {folder}"
        )
    table = read_parquet(path)
    for field in POOL_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


NEIGHBOURS_NAME = "neighbours.parquet"
_MADE_FROM = b"made_from"


def write_neighbours(
    folder: Path,
    made_from: str,
    offsets: np.ndarray,
    rows_E: np.ndarray,
    cosines_E: np.ndarray,
    floor_N: np.ndarray,
    cluster_N: np.ndarray,
) -> None:
    """Write the graph, atomically: one line for each instance, in the order of the ids.

    Args:
        folder: The run folder.
        made_from: What the graph was made from; `read_neighbours` asks for the same.
        offsets: [N+1], where each row's neighbours begin.
        rows_E: Positions of the neighbours.
        cosines_E: Their cosines.
        floor_N: What rows beyond its neighbours represent of each instance.
        cluster_N: Cluster of content of each instance.
    """
    offsets = pa.array(offsets, pa.int64())
    table = pa.table(
        {
            "floor": pa.array(floor_N, pa.float32()),
            "topic": pa.array(cluster_N, pa.int32()),
            "neighbours": pa.LargeListArray.from_arrays(offsets, pa.array(rows_E, pa.int32())),
            "cosines": pa.LargeListArray.from_arrays(offsets, pa.array(cosines_E, pa.float32())),
        }
    ).replace_schema_metadata({_MADE_FROM: made_from.encode()})
    write_parquet(folder / NEIGHBOURS_NAME, table)


def read_neighbours(folder: Path, made_from: str) -> tuple[np.ndarray, ...] | None:
    """Read the graph, if it is there and was made from the same.

    Args:
        folder: The run folder.
        made_from: As it was written.

    Returns:
        offsets, rows_E, cosines_E, floor_N and cluster_N; None if it has to be made (again).
    """
    path = folder / NEIGHBOURS_NAME
    try:
        table = read_parquet(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    if (table.schema.metadata or {}).get(_MADE_FROM) != made_from.encode():
        return None
    neighbours, cosines = (table[name].combine_chunks() for name in ("neighbours", "cosines"))
    return (
        neighbours.offsets.to_numpy(),
        neighbours.values.to_numpy(),
        cosines.values.to_numpy(),
        table["floor"].to_numpy(),
        table["topic"].to_numpy(),
    )


LOSSES_FOLDER = "losses"
_MODEL = b"model"
LOSS_NAMES = ("response", "alone", "text")


class ReferenceLossesMissing(ValueError):
    """The further pass was not made, or not to its end."""


def write_losses(
    folder: Path, part: int, model: str, ids: Sequence[str], losses: dict[str, Sequence[float]]
) -> None:
    """Write one part, atomically.

    Args:
        folder: The run folder.
        part: Its number.
        model: What the losses were computed with; all parts name the same.
        ids: Instances of the part.
        losses: By LOSS_NAMES.
    """
    columns = {"instance_id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(losses[name], pa.float64()) for name in LOSS_NAMES}
    table = pa.table(columns).replace_schema_metadata({_MODEL: model.encode()})
    write_parquet(folder / LOSSES_FOLDER / f"part-{part:05d}.parquet", table)


def instances_with_losses(folder: Path, model: str) -> set[str]:
    """Return which instances have their losses already.

    Args:
        folder: The run folder.
        model: As it was written.

    Returns:
        Their ids.

    Raises:
        ValueError: If a part was made with another model.
    """
    done: set[str] = set()
    for path in sorted((folder / LOSSES_FOLDER).glob("part-*.parquet")):
        table = read_parquet(path, columns=["instance_id"])
        found = (table.schema.metadata or {}).get(_MODEL, b"").decode()
        if found != model:
            raise GradsiftError(
                f"{path}: made with model {found}, now it is {model}. Remove the folder "
                f"{LOSSES_FOLDER} to make it again."
            )
        done.update(table["instance_id"].to_pylist())
    return done


def n_loss_parts(folder: Path) -> int:
    """Return how many parts there are."""
    return len(list((folder / LOSSES_FOLDER).glob("part-*.parquet")))


def read_losses(folder: Path, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the losses of some instances.

    Args:
        folder: The run folder.
        ids: The instances.

    Returns:
        `response`, `alone` and `text` → [N].

    Raises:
        ReferenceLossesMissing: If some have none.
    """
    parts = sorted((folder / LOSSES_FOLDER).glob("part-*.parquet"))
    rows = [row for path in parts for row in read_parquet(path).to_pylist()]
    by_id = {row["instance_id"]: row for row in rows}
    missing = sum(i not in by_id for i in ids)
    if missing:
        raise ReferenceLossesMissing(
            f"{folder}: {missing} of {len(ids)} instances have no losses of the further pass. "
            f"Make it with: gradsift losses {folder}"
        )
    return {name: np.array([by_id[i][name] for i in ids]) for name in LOSS_NAMES}
