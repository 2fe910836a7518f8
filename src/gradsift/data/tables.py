"""Rows of Arrow tables and Parquet files, of which only what is asked for is converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.errors import GradsiftError
from gradsift.utils import few, first_line, short

ROWS_AT_A_TIME = 1000
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


class TableRecord(Mapping[str, Any]):
    """One row of a table: a cell is converted when it is asked for.

    A cell that Python cannot hold (a date beyond its range, text that is no UTF-8) is None, and
    `unreadable` says so afterwards; a cell that nobody asks for is of no consequence.
    """

    __slots__ = ("_block", "_row")

    def __init__(self, block: Block, row: int):
        self._block, self._row = block, row

    def __getitem__(self, name: str) -> Any:
        if name not in self._block.known:
            raise KeyError(name)
        return self._block.cell(name, self._row)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or the default where the table has no such column."""
        return self._block.cell(name, self._row) if name in self._block.known else default

    def __contains__(self, name: object) -> bool:
        return name in self._block.known

    def __iter__(self) -> Iterator[str]:
        return iter(self._block.names)

    def __len__(self) -> int:
        return len(self._block.names)

    @property
    def unreadable(self) -> str | None:
        """What is wrong with the first of the asked-for cells that could not be converted."""
        return self._block.unreadable.get(self._row)

    def texts(self) -> dict[str, Any]:
        """Return its fields of text."""
        return {name: self._block.cell(name, self._row) for name in self._block.texts}

    def forget(self) -> None:
        """Take it that nothing was asked for so far."""
        self._block.unreadable.pop(self._row, None)


class _Unreadable(str):
    """Stands in for a cell: what is wrong with it."""


class Block:
    """Consecutive rows of a table; a column is read and converted when it is first asked for."""

    def __init__(self, schema: pa.Schema, n_rows: int, read: Callable[[str], Any]):
        self.names, self.n_rows = tuple(schema.names), n_rows
        self.known = frozenset(schema.names)
        self.texts = tuple(field.name for field in schema if field.type in _TEXTS)
        self.unreadable: dict[int, str] = {}
        self._read = read
        self._cells: dict[str, list[Any]] = {}

    def cell(self, name: str, row: int) -> Any:
        """Return a cell, None where it cannot be converted."""
        cells = self._cells.get(name)
        if cells is None:
            cells = self._cells[name] = self._converted(name)
        value = cells[row]
        if isinstance(value, _Unreadable):
            self.unreadable.setdefault(row, str(value))
            return None
        return value

    def _converted(self, name: str) -> list[Any]:
        # pyarrow raises what it likes: its own errors, ValueError, OverflowError, KeyError of an
        # unknown time zone, NotImplementedError.
        try:
            column = self._read(name)
            if len(column) != self.n_rows:
                raise ValueError(f"{len(column)} values for {self.n_rows} rows")
        except Exception as error:
            wrong = _Unreadable(f"column {name!r} cannot be read: {short(first_line(error))}")
            return [wrong] * self.n_rows
        try:
            return column.to_pylist()
        except Exception:
            return [_cell(column, row, name) for row in range(self.n_rows)]


def _cell(column: Any, row: int, name: str) -> Any:
    try:
        return column[row].as_py()
    except Exception as error:
        return _Unreadable(f"{name!r} cannot be converted: {short(first_line(error))}")


def table_blocks(table: pa.Table, name: str) -> Iterator[Block]:
    """Return the rows of a table, block by block."""
    _require_different(table.column_names, name)
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        part = table.slice(start, ROWS_AT_A_TIME)
        yield Block(part.schema, part.num_rows, part.column)


def parquet_blocks(path: Path) -> Iterator[Block]:
    """Return the rows of a Parquet file, row group by row group."""
    file = open_parquet(path)
    schema = file.schema_arrow
    _require_different(schema.names, str(path))
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if sum(groups) != file.metadata.num_rows or min(groups, default=0) < 0:
        raise GradsiftError(
            f"{path}: damaged: its parts have {sum(groups)} rows, and it says that it has "
            f"{file.metadata.num_rows}. Restore it, or make it again."
        )
    for group, n_rows in enumerate(groups):
        yield Block(schema, n_rows, _reader(file, group))


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, of which nothing but its footer is read yet."""
    try:
        file = pq.ParquetFile(path)
        file.schema_arrow.names  # ruff: ignore[useless-expression] - Names that are no UTF-8 are found out here.
        return file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GradsiftError(
            f"{path}: cannot be read as parquet: {short(first_line(error))}"
        ) from error


def take_of_parquet(path: Path, rows: Sequence[int]) -> pa.Table:
    """Return some rows of a Parquet file, in their order, with all its columns."""
    file = open_parquet(path)
    taken, start, at = [], 0, 0
    try:
        for group in range(file.num_row_groups):
            end, first = start + file.metadata.row_group(group).num_rows, at
            while at < len(rows) and rows[at] < end:
                at += 1
            if at > first:
                here = pa.array([row - start for row in rows[first:at]], pa.int64())
                taken.append(file.read_row_group(group).take(here))
            start = end
    except (pa.ArrowException, OSError) as error:
        raise GradsiftError(
            f"{path}: its rows cannot be copied: {short(first_line(error))}"
        ) from error
    return pa.concat_tables(taken) if taken else file.schema_arrow.empty_table()


def read_arrow(path: Path) -> pa.Table:
    """Open an Arrow file or stream; its columns stay on the disk."""
    try:
        with pa.memory_map(str(path)) as file:
            return (pa.ipc.open_file if is_arrow_file(path) else pa.ipc.open_stream)(
                file
            ).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GradsiftError(
            f"{path}: cannot be read as arrow: {short(first_line(error))}"
        ) from error


def is_arrow_file(path: Path) -> bool:
    """Return whether a file is in Arrow's file format; else it is a stream."""
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


def write_arrow(table: pa.Table, destination: Path, *, as_file: bool) -> None:
    """Write a table in Arrow's file format, or as a stream."""
    new = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with pa.OSFile(str(destination), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)


def _reader(file: pq.ParquetFile, group: int) -> Callable[[str], Any]:
    return lambda name: file.read_row_group(group, columns=[name]).column(name)


def _require_different(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GradsiftError(f"{where}: column names must differ, found twice: {few(twice)}.")
