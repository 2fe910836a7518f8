"""`pool.parquet`: one line for each row of the input, in its order, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from gradsift.store.files import read_parquet, write_parquet

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
        raise ValueError(
            f"{path} is missing: {folder} is not a run folder. "
            f"Make one with: gradsift capture DATA --model MODEL --out {folder}"
        )
    table = read_parquet(path)
    for field in POOL_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table
