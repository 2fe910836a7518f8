"""What a run folder holds beside the gradients.

`pool.parquet`: one line for each row of the input, in its order, and what became of it.
`neighbours.parquet`: the neighbour graph of a run's content, kept so that it is found once.
`losses/*.parquet`: reference losses, one line for each instance.
`texts.parquet`: what people read of each row of the input, in its order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from gradsift.errors import GradsiftError
from gradsift.files import remove
from gradsift.seals import DamagedError, read_parquet, require_columns, write_parquet

POOL_NAME = "pool.parquet"
NEIGHBOURS_NAME = "neighbours.parquet"
TEXTS_NAME = "texts.parquet"
LOSSES_FOLDER = "losses"
LOSS_NAMES = ("response", "alone", "text", "mismatched", "mismatched_again")
INSTANCE = "instance"
DROPPED = "dropped"
# Keys of a table's metadata.
_MADE_FROM = b"made_from"
_MODEL = b"model"
_INSTANCES = b"instances"
_DEFINITION = b"definition"
# Changes whenever a reference loss becomes another; before there was a second, none was noted.
_LOSSES_AS_DEFINED = b"2"

logger = logging.getLogger(__name__)

POOL_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("file", pa.string()),
        pa.field("index_in_file", pa.int64()),
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


# Changes whenever the same rows would get other texts or traits.
_TEXTS_MADE_BY = "2"
# What is told of each answer.
TRAITS = {
    "repeats": pa.float64(),
    "boilerplate": pa.string(),
    "near_empty": pa.bool_(),
    "other_language": pa.bool_(),
}
# Of large texts: together they may be of more than 2 GB.
TEXTS_SCHEMA = pa.schema(
    [
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("own_id", pa.string()),
        pa.field("prompt", pa.large_string()),
        pa.field("response", pa.large_string()),
        *(pa.field(name, kind) for name, kind in TRAITS.items()),
    ]
)
_GRAPH = (
    pa.field("floor", pa.float32(), nullable=False),
    pa.field("neighbours", pa.large_list(pa.int32()), nullable=False),
    pa.field("cosines", pa.large_list(pa.float32()), nullable=False),
)
_LOSSES = (
    pa.field("instance_id", pa.string(), nullable=False),
    *(pa.field(name, pa.float64(), nullable=False) for name in LOSS_NAMES),
)
_LOSS_COLUMNS = [field.name for field in _LOSSES]


def write_pool_table(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `pool.parquet`, atomically: values by column of POOL_SCHEMA.

    `start` and `end` are the row's bytes in the input file, where it has lines; token counts are
    null for dropped rows. `file` and `index_in_file` are null where all rows are of one file.
    """
    write_parquet(folder / POOL_NAME, pool_table(rows))


def pool_table(rows: Sequence[dict[str, object]]) -> pa.Table:
    """Return the table of `write_pool_table`."""
    return pa.Table.from_pylist(list(rows), schema=POOL_SCHEMA)


def digest_of_pool(table: pa.Table) -> str:
    """Return a digest of what a pool table says, however it lies in its file."""
    sink = pa.BufferOutputStream()
    # Of which an empty text and none are told apart, and which is fast.
    csv.write_csv(table.select(POOL_SCHEMA.names).cast(POOL_SCHEMA), sink)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def read_pool_table(folder: Path) -> pa.Table:
    """Read `pool.parquet`, in the input's order.

    `source` and `language` are null where they are not known, also in runs that were captured
    before these were noted.
    """
    path = folder / POOL_NAME
    if not path.exists():
        raise GradsiftError(
            f"{path} is missing: {folder} is not a run folder. "
            f"Make one with: gradsift capture DATA --model MODEL --out {folder}"
        )
    try:
        table = read_parquet(path)
        # An earlier gradsift did not note all of it.
        there = [one for one in POOL_SCHEMA if one.name in table.column_names or not one.nullable]
        require_columns(path, table, there)
    except DamagedError as error:
        raise GradsiftError(
            f"{error.found} Put the old one back, or run its capture command again, which writes "
            "it anew."
        ) from error
    for field in POOL_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def texts_table(lines: Sequence[dict[str, object]]) -> pa.Table:
    """Return the table of `write_texts` from values by column of TEXTS_SCHEMA."""
    return pa.Table.from_pylist(list(lines), schema=TEXTS_SCHEMA)


def write_texts(folder: Path, digest: str, table: pa.Table) -> None:
    """Write `texts.parquet`, atomically: TEXTS_SCHEMA, a line for each line of the pool table.

    `digest` is that of the pool table; a row that could not be read has neither text.
    """
    made_from = {_MADE_FROM: _texts_made_from(digest)}
    write_parquet(folder / TEXTS_NAME, table.cast(TEXTS_SCHEMA).replace_schema_metadata(made_from))


def _texts_made_from(digest: str) -> bytes:
    return f"{_TEXTS_MADE_BY} {digest}".encode()


def read_texts(folder: Path, digest: str) -> pa.Table | None:
    """Read `texts.parquet`, if it is of the same pool table.

    None where it is not, or is not what was written: it can be made again from the rows.
    """
    path = folder / TEXTS_NAME
    if not path.exists():
        return None
    try:
        table = read_parquet(path, must_be_sealed=True)
        if (table.schema.metadata or {}).get(_MADE_FROM) != _texts_made_from(digest):
            return None
        require_columns(path, table, TEXTS_SCHEMA)
    except DamagedError as error:
        logger.warning(f"{error.found} gradsift select makes it again from the rows.")
        return None
    return table


def write_neighbours(
    folder: Path,
    made_from: str,
    offsets: np.ndarray,
    rows_E: np.ndarray,
    cosines_E: np.ndarray,
    floor_N: np.ndarray,
    cluster_N: np.ndarray,
) -> None:
    """Write the graph and clusters, atomically: one line for each instance, in the order of ids.

    The arrays are those of `selection.neighbours.Neighbours`; `made_from` says what from.
    """
    offsets = pa.array(offsets, pa.int64())
    table = pa.table(
        {
            "floor": pa.array(floor_N, pa.float32()),
            "cluster": pa.array(cluster_N, pa.int32()),
            "neighbours": pa.LargeListArray.from_arrays(offsets, pa.array(rows_E, pa.int32())),
            "cosines": pa.LargeListArray.from_arrays(offsets, pa.array(cosines_E, pa.float32())),
        }
    ).replace_schema_metadata({_MADE_FROM: made_from.encode()})
    write_parquet(folder / NEIGHBOURS_NAME, table)


def read_neighbours(folder: Path, made_from: str) -> tuple[np.ndarray, ...] | None:
    """Read offsets, rows_E, cosines_E, floor_N and cluster_N, if they were made from the same.

    None where they were not, or are not what was written: they can be made again.
    """
    path = folder / NEIGHBOURS_NAME
    if not path.exists():
        return None
    try:
        table = read_parquet(path)
        if (table.schema.metadata or {}).get(_MADE_FROM) != made_from.encode():
            return None
        # Before, clusters were called topics.
        cluster = "cluster" if "cluster" in table.column_names else "topic"
        require_columns(path, table, (*_GRAPH, pa.field(cluster, pa.int32(), nullable=False)))
        neighbours, cosines = (table[name].combine_chunks() for name in ("neighbours", "cosines"))
        _require_graph(path, neighbours, cosines)
    except DamagedError as error:
        logger.warning(f"{error.found} It is made again.")
        return None
    return (
        neighbours.offsets.to_numpy(),
        neighbours.values.to_numpy(),
        cosines.values.to_numpy(),
        table["floor"].to_numpy(),
        table[cluster].to_numpy(),
    )


def _require_graph(path: Path, neighbours: pa.Array, cosines: pa.Array) -> None:
    rows = neighbours.values
    if (
        rows.null_count
        or cosines.values.null_count
        or not neighbours.offsets.equals(cosines.offsets)
    ):
        raise DamagedError(path, "not every neighbour has its cosine")
    if len(rows) and not (pc.min(rows).as_py() >= 0 and pc.max(rows).as_py() < len(neighbours)):
        raise DamagedError(path, "names neighbours that are no rows")


@dataclass(frozen=True)
class LossesMadeFrom:
    """What reference losses are of: the model, and a digest of the tokenized rows."""

    model: str
    instances: str

    def metadata(self) -> dict[bytes, bytes]:
        """Return what a part notes of it."""
        return {
            _MODEL: self.model.encode(),
            _INSTANCES: self.instances.encode(),
            _DEFINITION: _LOSSES_AS_DEFINED,
        }

    def require_same(self, path: Path, table: pa.Table) -> None:
        """Refuse a part that is of another model or of other rows.

        Raises:
            ReferenceLossesMissing: Naming both.
        """
        noted = table.schema.metadata or {}
        for key, value in ((_MODEL, self.model.encode()), (_INSTANCES, self.instances.encode())):
            # An earlier gradsift noted the model alone.
            found = noted.get(key, value if key == _INSTANCES else b"")
            if found != value:
                raise ReferenceLossesMissing(
                    f"{path}: made with {key.decode()} {found.decode('utf-8', 'replace')}, this "
                    f"run has {value.decode()}. Remove the folder {LOSSES_FOLDER} to make it again."
                )


class ReferenceLossesMissing(GradsiftError):
    """They were not computed, or not to the end, or mean something else."""


def write_losses(
    folder: Path,
    made_from: LossesMadeFrom,
    ids: Sequence[str],
    losses: dict[str, Sequence[float]],
) -> None:
    """Write one more part of reference losses by LOSS_NAMES, atomically, with what made them."""
    numbers = [int(path.stem.partition("-")[2]) for path in _loss_parts(folder)]
    name = f"part-{max(numbers, default=-1) + 1:05d}.parquet"
    columns = {"instance_id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(losses[name], pa.float64()) for name in LOSS_NAMES}
    table = pa.table(columns).replace_schema_metadata(made_from.metadata())
    write_parquet(folder / LOSSES_FOLDER / name, table)


def instances_with_losses(folder: Path, made_from: LossesMadeFrom) -> set[str]:
    """Return which instances have their reference losses already, all made from the same.

    A part that is not what was written, or of an earlier gradsift that defined them otherwise, is
    removed, so that its instances are done again.
    """
    done: set[str] = set()
    of_before = 0
    for path in _loss_parts(folder):
        try:
            table = read_parquet(path, ["instance_id"], _LOSSES[:1])
        except DamagedError as error:
            logger.warning(f"{error.found} It is made again.")
            remove(path)
            continue
        if not _as_defined_now(table):
            of_before += table.num_rows
            remove(path)
            continue
        made_from.require_same(path, table)
        done.update(table["instance_id"].to_pylist())
    if of_before:
        logger.warning(
            f"{folder / LOSSES_FOLDER}: the losses of {of_before} rows are of an earlier gradsift, "
            "which defined them otherwise: they are computed anew"
        )
    return done


def read_losses(
    folder: Path, ids: Sequence[str], made_from: LossesMadeFrom
) -> dict[str, np.ndarray]:
    """Read the reference losses of some instances: each of LOSS_NAMES → [N].

    Raises:
        ReferenceLossesMissing: If some have none, or a part of them is not what was written, or of
            another model or other rows.
    """
    again = f"Compute them with: gradsift reference-losses {folder}"
    try:
        parts = {path: read_parquet(path) for path in _loss_parts(folder)}
        for path, part in parts.items():
            if not _as_defined_now(part):
                raise ReferenceLossesMissing(
                    f"{path}: is of an earlier gradsift, which defined these losses otherwise "
                    f"(without the first token of a response). {again}"
                )
            require_columns(path, part, _LOSSES)
            made_from.require_same(path, part)
        rows = [row for part in parts.values() for row in part.select(_LOSS_COLUMNS).to_pylist()]
    except DamagedError as error:
        raise ReferenceLossesMissing(f"{error.found} {again}") from error
    by_id = {row["instance_id"]: row for row in rows}
    missing = sum(i not in by_id for i in ids)
    if missing:
        raise ReferenceLossesMissing(
            f"{folder}: {missing} of {len(ids)} instances have no reference losses. {again}"
        )
    return {name: np.array([by_id[i][name] for i in ids]) for name in LOSS_NAMES}


def _as_defined_now(table: pa.Table) -> bool:
    return (table.schema.metadata or {}).get(_DEFINITION) == _LOSSES_AS_DEFINED


def _loss_parts(folder: Path) -> list[Path]:
    return sorted((folder / LOSSES_FOLDER).glob("part-[0-9]*.parquet"))
