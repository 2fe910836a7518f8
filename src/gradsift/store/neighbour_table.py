"""`neighbours.parquet`: the neighbour graph of a run's content, kept so that it is found once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.store.files import read_parquet, write_parquet

NEIGHBOURS_NAME = "neighbours.parquet"
_MADE_FROM = b"made_from"


def write_neighbours(
    folder: Path,
    made_from: str,
    offsets: np.ndarray,
    rows_E: np.ndarray,
    cosines_E: np.ndarray,
    floor_N: np.ndarray,
    topic_N: np.ndarray,
) -> None:
    """Write the graph, atomically: one line for each instance, in the order of the ids.

    Args:
        folder: The run folder.
        made_from: What the graph was made from; `read_neighbours` asks for the same.
        offsets: [N+1], where each row's neighbours begin.
        rows_E: Positions of the neighbours.
        cosines_E: Their cosines.
        floor_N: What rows beyond its neighbours represent of each instance.
        topic_N: Cluster of content of each instance.
    """
    offsets = pa.array(offsets, pa.int64())
    table = pa.table(
        {
            "floor": pa.array(floor_N, pa.float32()),
            "topic": pa.array(topic_N, pa.int32()),
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
        offsets, rows_E, cosines_E, floor_N and topic_N; None if it has to be made (again).
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
