"""Read rows out of any container, and write the very same rows into one of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gradsift.data import lines, tables
from gradsift.data.sources import LINE_CONTAINERS, RawRow, Source


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read a source row by row.

    Args:
        source: The source.

    Returns:
        Its rows, in order; unreadable ones are among them, with their error.

    Raises:
        ValueError: If the source as a whole cannot be read.
    """
    if source.container in LINE_CONTAINERS:
        return lines.read_rows(source.path, source.container)
    return tables.read_rows(source)


def fingerprint(source: Source) -> str:
    """Return the SHA-256 of what a source holds, in hex (of a hub dataset: of its fingerprint)."""
    if source.container in (*LINE_CONTAINERS, "parquet", "arrow"):
        return lines.sha256_of(source.path)
    return tables.fingerprint(source)


def write_rows(source: Source, rows: list[tuple[int, int | None, int | None]], out: Path) -> Path:
    """Write some rows of a source, unchanged, in a container like the source's own.

    Args:
        source: The source.
        rows: (index, start, end) of each row, in the input's order.
        out: A folder; the file in it is called `selected`.

    Returns:
        The file (or folder) written; it is replaced as a whole.
    """
    if source.container in LINE_CONTAINERS:
        suffix = source.path.suffix.lower()
        # A .json file that holds lines is written as what it is.
        name = "selected.jsonl" if source.container == "jsonl" else f"selected{suffix}"
        return lines.write_rows(source.path, source.container, rows, out / name)
    return tables.write_rows(source, [index for index, _, _ in rows], out)
