"""`losses/*.parquet`: losses of the further pass, one line for each instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.store.files import read_parquet, write_parquet

LOSSES_FOLDER = "losses"
_MODEL = b"model"
LOSS_NAMES = ("response", "alone", "text")


class LossesMissing(ValueError):
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
            raise ValueError(
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
        LossesMissing: If some have none.
    """
    parts = sorted((folder / LOSSES_FOLDER).glob("part-*.parquet"))
    rows = [row for path in parts for row in read_parquet(path).to_pylist()]
    by_id = {row["instance_id"]: row for row in rows}
    missing = sum(i not in by_id for i in ids)
    if missing:
        raise LossesMissing(
            f"{folder}: {missing} of {len(ids)} instances have no losses of the further pass. "
            f"Make it with: gradsift losses {folder}"
        )
    return {name: np.array([by_id[i][name] for i in ids]) for name in LOSS_NAMES}
