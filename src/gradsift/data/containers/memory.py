"""Rows that are in memory: datasets, tables, data frames, lists; and how a run folder keeps them.

Rows are kept as an Arrow file where that changes nothing, else as JSON lines: Arrow gives all
objects of a column the same fields, and fills those that a row does not have.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from gradsift.data.containers.lines import jsonl_rows
from gradsift.data.containers.rows import rows_of_blocks
from gradsift.data.containers.sources import KEPT_LINES, KEPT_TABLE, RawRow, Source
from gradsift.data.containers.tables import ROWS_AT_A_TIME, table_blocks, take
from gradsift.errors import GradsiftError
from gradsift.files import write_atomically
from gradsift.wording import first_line, short

# Of a row that becomes a part of an Arrow table.
MOST_LEVELS = 50
ROWS_BETWEEN_NOTES = 10_000
EXPECTED = (
    "expected a file, a folder, a pattern or a hub id (or a list of these), a datasets.Dataset, a "
    "DatasetDict with `split`, an IterableDataset, a pandas DataFrame, a pyarrow Table or a list "
    "of dicts"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """Rows in memory, in the form in which they are kept.

    Attributes:
        what: They were given as, for messages.
        content: An Arrow table, or JSON lines.
    """

    what: str
    content: pa.Table | bytes

    @property
    def file_name(self) -> str:
        """Of the rows in a run folder."""
        return KEPT_TABLE if isinstance(self.content, pa.Table) else KEPT_LINES

    def rows(self) -> Iterator[RawRow]:
        """Return the rows as those of a file are read."""
        if isinstance(self.content, pa.Table):
            return rows_of_blocks(table_blocks(self.content, self.what))
        return jsonl_rows(io.BytesIO(self.content), Path(self.what))

    def source(self, folder: Path | None = None) -> Source:
        """Return where the rows are, or will be kept."""
        container = "memory" if isinstance(self.content, pa.Table) else "jsonl"
        return Source(self.what if folder is None else str(folder / self.file_name), container)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file that `save` writes, in hex."""
        sink = _Digest()
        self._write(sink)
        return sink.digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Keep the rows in a run folder."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                self._write(file)

        write_atomically(folder / self.file_name, write)

    def _write(self, sink: Any) -> None:
        if not isinstance(self.content, pa.Table):
            sink.write(self.content)
            return
        # Rows that are the same make the same bytes, however the table came to be cut and sliced.
        table = self.content
        with pa.ipc.new_file(pa.PythonFile(sink, "w"), table.schema) as writer:
            for start in range(0, table.num_rows, ROWS_AT_A_TIME):
                part = table.slice(start, ROWS_AT_A_TIME)
                part = take(part, pa.array(range(part.num_rows), pa.int64())).combine_chunks()
                writer.write_table(part, max_chunksize=ROWS_AT_A_TIME)


class _Digest(io.RawIOBase):
    """A file of which only the SHA-256 is kept."""

    def __init__(self) -> None:
        self.digest, self._at = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        self.digest.update(content)
        self._at += len(content)
        return len(content)


def is_name(data: object) -> bool:
    """Return whether rows are to be read from where this says: a path, an id, several of them."""
    if isinstance(data, str | Path):
        return True
    return isinstance(data, list | tuple) and all(isinstance(one, str | Path) for one in data)


def held_rows(data: Any, split: str | None = None) -> Held:
    """Take rows from memory.

    Args:
        data: See EXPECTED.
        split: Of a DatasetDict.

    Raises:
        GradsiftError: If it is none of these, or holds what neither Arrow nor JSON can.
    """
    what, library = type(data).__name__, type(data).__module__.partition(".")[0]
    if library == "datasets" and isinstance(data, dict):
        data, split = _of_split(data, split, what), None
    if split is not None:
        raise GradsiftError(f"`data` is a {what} and has no splits; leave out `split: {split}`.")
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        content = _without_notes(data)
    elif library == "datasets" and hasattr(data, "with_format") and hasattr(data, "select"):
        if data.format["type"] == "custom":
            raise GradsiftError(
                f"`data` is a {what} with a transform (set_transform), which changes rows as they "
                "are read; apply it with `map`, or give the rows as a list."
            )
        content = _without_notes(data.with_format("arrow")[:])
    elif library == "datasets" and hasattr(data, "__iter__"):
        content = _of_rows(_counted(data.with_format(None)), what)
    elif library == "pandas" and hasattr(data, "columns"):
        content = _of_frame(data, what)
    elif isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        content = _of_rows(data, what)
    else:
        inside = ""
        if isinstance(data, list | tuple):
            kinds = sorted({type(one).__name__ for one in data if not isinstance(one, Mapping)})
            inside = f" of {', '.join(kinds[:3])}"
        raise GradsiftError(f"`data` is a {what}{inside}; {EXPECTED}.")
    n_rows = content.num_rows if isinstance(content, pa.Table) else content.count(b"\n")
    if not n_rows:
        raise GradsiftError(f"`data` is an empty {what}: there are no rows in it.")
    return Held(f"{n_rows} rows in memory ({what})", content)


def _of_split(data: Mapping[str, Any], split: str | None, what: str) -> Any:
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        raise GradsiftError(
            f"`data` is a {what} with the splits {', '.join(map(str, data))}; name one with "
            "`split`."
        )
    return data[split]


def _without_notes(table: pa.Table) -> pa.Table:
    """Leave out what libraries note beside the columns: it names their versions."""
    kept = {k: v for k, v in (table.schema.metadata or {}).items() if k == b"huggingface"}
    return table.replace_schema_metadata(kept or None)


def _counted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    read = []
    for row in rows:
        read.append(row)
        if len(read) % ROWS_BETWEEN_NOTES == 0:
            logger.info(f"{len(read)} rows of the stream read")
    logger.info(f"the stream's {len(read)} rows are in memory")
    return read


def _of_frame(frame: Any, what: str) -> pa.Table | bytes:
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise GradsiftError(f"the columns of the {what} must differ, found twice: {twice[0]!r}.")
    if any(name is not None and name not in frame.columns for name in frame.index.names):
        # An index that has a name is a column like the others.
        frame = frame.reset_index([name for name in frame.index.names
                                   if name is not None and name not in frame.columns])  # fmt: skip
    try:
        if any(map(_is_deep, frame.to_dict("list").values())):
            raise ValueError("too deep for Arrow")
        table = _without_notes(pa.Table.from_pandas(frame, preserve_index=False))
        nested = [name for name in table.column_names if pa.types.is_nested(table[name].type)]
        if all(table[n].to_pylist() == [_plain(v) for v in frame[n]] for n in nested):
            return table
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError):
        pass
    records = frame.to_dict("records")
    return _json_lines([{str(k): v for k, v in row.items()} for row in records], what)


def _is_deep(value: Any) -> bool:
    """Return whether a value is nested deeper than Arrow and recursion stand."""
    at = [value]
    for _ in range(MOST_LEVELS):
        at = [inner for outer in at for inner in _inside(outer)]
        if not at:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    is_array = str(getattr(value, "dtype", "")) == "object" and hasattr(value, "__len__")
    return value if isinstance(value, list | tuple) or is_array else ()


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    # To pandas, what is not there is NaN.
    return {k: None if _missing(v) else _plain(v) for k, v in row.items()}


def _missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType") or (
        isinstance(value, float) and value != value
    )


def _plain(value: Any) -> Any:
    """Return Python's own lists and numbers for numpy's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _of_rows(rows: Sequence[Mapping[str, Any]], what: str) -> pa.Table | bytes:
    rows = [dict(row) for row in rows]
    if any(map(_is_deep, rows)):
        return _json_lines(rows, what)
    rows = [_plain_row(row) for row in rows]
    try:
        table = pa.Table.from_pylist(rows)
        if _same(table.to_pylist(), rows):
            return table
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        pass
    return _json_lines(rows, what)


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, types of numbers included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _json_lines(rows: Sequence[Mapping[str, Any]], what: str) -> bytes:
    written = []
    for at, row in enumerate(rows):
        try:
            row = _plain_row(row)
            line = json.dumps(row, ensure_ascii=False, default=_as_object)
            # Half a surrogate pair is written as the escape that JSON has for it.
            escaped = line if _is_text(line) else json.dumps(row, default=_as_object)
            written.append(escaped.encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise GradsiftError(
                f"row {at} of the {what} holds what neither Arrow nor JSON can: "
                f"{short(first_line(error))}."
            ) from None
    return b"".join(line + b"\n" for line in written)


def _as_object(value: Any) -> dict[str, str]:
    """Write what JSON has no word for as an object, which nobody takes for text of the row's."""
    if isinstance(value, date | time | timedelta | Decimal | bytes | bytearray | UUID):
        return {type(value).__name__: str(value)}
    raise TypeError(f"{type(value).__name__} is neither a value of Arrow's nor of JSON's")


def _is_text(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
