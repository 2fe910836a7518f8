"""Rows of Arrow tables and Parquet files, of which only what is asked for is converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.errors import GradsiftError
from gradsift.wording import few, first_line, short

ROWS_AT_A_TIME = 1000
_TO_PARSE = (pa.JsonType, pa.MapType)
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

    @property
    def filled(self) -> bool:
        """Whether absent fields of its objects may have been filled with null."""
        return self._block.filled

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
        types = [kind for field in schema for kind in _types_in(field.type)]
        # Objects out of JSON have no fields but their own.
        has_json = any(isinstance(kind, pa.JsonType) for kind in types)
        self.filled = not has_json or any(map(pa.types.is_struct, types))
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
            return [_parsed(value, column.type) for value in column.to_pylist()]
        except Exception:
            return [_cell(column, row, name) for row in range(self.n_rows)]


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """Return a value as rows of JSON have it.

    That is what JSON text in it says (`datasets.Json` is stored as such), and a map as an object.
    """
    if value is None or not _has(kind, _TO_PARSE):
        return value
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _parsed(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        if len({key for key, _ in value}) < len(value):
            raise ValueError("a map has a key twice")
        return {key: _parsed(one, kind.item_type) for key, one in value}
    return [_parsed(one, kind.value_type) for one in value]


@cache
def _has(kind: pa.DataType, classes: tuple[type, ...]) -> bool:
    return any(isinstance(one, classes) for one in _types_in(kind))


def _types_in(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Return a type and those inside it."""
    yield kind
    for at in range(kind.num_fields if pa.types.is_nested(kind) else 0):
        yield from _types_in(kind.field(at).type)


def _cell(column: Any, row: int, name: str) -> Any:
    try:
        return _parsed(column[row].as_py(), column.type)
    except Exception as error:
        return _Unreadable(f"{name!r} cannot be converted: {short(first_line(error))}")


def table_blocks(table: pa.Table, name: str) -> Iterator[Block]:
    """Return the rows of a table, block by block."""
    _require_usual(table.schema, name)
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        part = table.slice(start, ROWS_AT_A_TIME)
        yield Block(part.schema, part.num_rows, part.column)


def parquet_blocks(path: Path) -> Iterator[Block]:
    """Return the rows of a Parquet file, row group by row group."""
    file = open_parquet(path)
    schema = file.schema_arrow
    _require_usual(schema, str(path))
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


def take(table: pa.Table, rows: Any) -> pa.Table:
    """Return some rows of a table; pyarrow's own take knows no views and no run-end encoding."""
    try:
        return table.take(rows)
    except pa.ArrowNotImplementedError:
        rows = pa.array(rows, pa.int64()).to_pylist()
        one_by_one = [table.slice(row, 1) for row in rows]
        return pa.concat_tables(one_by_one) if one_by_one else table.slice(0, 0)


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
                taken.append(take(file.read_row_group(group), here))
            start = end
    except (pa.ArrowException, OSError) as error:
        raise GradsiftError(
            f"{path}: its rows cannot be copied: {short(first_line(error))}"
        ) from error
    return pa.concat_tables(taken) if taken else file.schema_arrow.empty_table()


def read_arrow(path: Path) -> pa.Table:
    """Open an Arrow file or stream; its columns stay on the disk."""
    try:
        require_whole(path)
        with pa.memory_map(str(path)) as file:
            return (pa.ipc.open_file if is_arrow_file(path) else pa.ipc.open_stream)(
                file
            ).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GradsiftError(
            f"{path}: cannot be read as arrow: {short(first_line(error))}"
        ) from error


def require_whole(path: Path) -> None:
    """Refuse an Arrow stream without its end mark: cut between two parts, it reads as shorter.

    Raises:
        GradsiftError: If the mark is missing.
    """
    if is_arrow_file(path):
        return
    with path.open("rb") as file:
        begin, end = file.read(4), file.seek(0, 2)
        file.seek(max(end - 8, 0))
        tail = file.read()
    if begin == b"\xff" * 4 and tail != b"\xff" * 4 + b"\0" * 4:
        raise GradsiftError(
            f"{path}: cannot be read as arrow: the stream has no end mark, so it is cut off or was "
            "never closed. Restore it, or make it again."
        )


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


def _require_usual(schema: pa.Schema, where: str) -> None:
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GradsiftError(f"{where}: column names must differ, found twice: {few(twice)}.")
    for field in schema:
        if any(map(pa.types.is_run_end_encoded, _types_in(field.type))):
            raise GradsiftError(
                f"{where}: column {field.name!r} is run-end encoded, of which rows cannot be "
                "copied; cast it to its plain type."
            )
