"""JSONL, JSON and CSV: each row with the bytes it stands on, so that the same bytes go out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gradsift.data.sources import RawRow
from gradsift.errors import GradsiftError
from gradsift.utils import write_atomically

BOM = b"\xef\xbb\xbf"


def read_rows(path: Path, container: str) -> Iterator[RawRow]:
    """Read a jsonl, json or csv file row by row; blank lines are none."""
    return READERS[container](path)


def write_rows(
    path: Path, container: str, rows: list[tuple[int, int | None, int | None]], destination: Path
) -> Path:
    """Write (index, start, end) rows of a file byte for byte, each with a line break after it."""
    write_atomically(destination, lambda file: _write(path, container, rows, file))
    return destination


def _write(
    path: Path, container: str, rows: list[tuple[int, int | None, int | None]], destination: Path
) -> None:
    with path.open("rb") as source, destination.open("wb") as target:
        if container == "csv":
            target.write(_csv_header(source, _delimiter(path)))
        if container == "json":
            target.write(b"[")
        for position, (_, start, end) in enumerate(rows):
            source.seek(start)
            content = source.read(end - start)
            if container == "json":
                content = (b",\n" if position else b"\n") + content
            elif not content.endswith(b"\n"):
                content += b"\n"
            target.write(content)
        if container == "json":
            target.write(b"\n]\n")


def _jsonl(path: Path) -> Iterator[RawRow]:
    index, start = 0, 0
    with path.open("rb") as file:
        for line_number, content in enumerate(file, start=1):
            end = start + len(content)
            if line_number == 1 and content.startswith(BOM):
                content, start = content.removeprefix(BOM), len(BOM)
            if content.strip():
                record, error = _parse_object(content)
                yield RawRow(index, line_number, start, end, record, error)
                index += 1
            start = end


def _parse_object(content: bytes) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    try:
        # Given bytes, json would guess UTF-16 and let half surrogate pairs pass.
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, ("unreadable_line", f"not UTF-8: {error.reason} at byte {error.start}")
    except RecursionError:
        return None, ("unreadable_line", "not JSON: nested too deeply")
    except ValueError as error:
        return None, ("unreadable_line", f"not JSON: {error}")
    return _object(value)


def _object(value: Any) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    if isinstance(value, dict):
        return value, None
    return None, ("not_an_object", f"found {type(value).__name__}, expected an object")


def _json(path: Path) -> Iterator[RawRow]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GradsiftError(f"{path}: not UTF-8: {error.reason} at byte {error.start}.") from None
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        raise GradsiftError(
            f"{path}: expected a JSON array of objects, found {text[at : at + 20]!r}."
        )
    at = _skip_space(text, at + 1)
    index, byte, counted, line = 0, len(BOM) if content.startswith(BOM) else 0, 0, 1
    while text[at : at + 1] != "]":
        try:
            value, stop = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise GradsiftError(
                f"{path}: not JSON: {error}. A JSON array is read whole or not at all; JSON lines "
                "(.jsonl) survive a broken row."
            ) from None
        start = byte + len(text[counted:at].encode())
        line += text.count("\n", counted, at)
        end = start + len(text[at:stop].encode())
        yield RawRow(index, line, start, end, *_object(value))
        line += text.count("\n", at, stop)
        byte, counted = end, stop
        index += 1
        at = _skip_space(text, stop)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise GradsiftError(
                    f"{path}: line {line}: a comma after the last element; remove it."
                )
        elif text[at : at + 1] != "]":
            raise GradsiftError(
                f"{path}: line {line}: expected a comma or ] after element {index}."
            )
    rest = text[at + 1 :].strip(" \t\r\n")
    if rest:
        raise GradsiftError(f"{path}: expected nothing after the array's ], found {rest[:20]!r}.")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv(path: Path) -> Iterator[RawRow]:
    # A field may be as long as an answer is.
    csv.field_size_limit(2**31 - 1)
    with path.open("rb") as file:
        lines = _CountingLines(file)
        reader = csv.reader(lines, delimiter=_delimiter(path), strict=True)
        header = _column_names(path, reader)
        index = 0
        while True:
            start, line = lines.byte, lines.count + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                fields, error = None, ("unreadable_line", f"not CSV: {problem}")
                lines.take_bad()
            else:
                error = _csv_error(fields, header, lines)
            if fields == []:
                continue
            record = None if error else dict(zip(header, fields, strict=True))
            yield RawRow(index, line, start, lines.byte, record, error)
            index += 1


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
}


def _csv_error(
    fields: list[str], header: list[str], lines: _CountingLines
) -> tuple[str, str] | None:
    if lines.take_bad():
        return "unreadable_line", "not UTF-8"
    if fields and len(fields) != len(header):
        return "unreadable_line", f"{len(fields)} fields, the header has {len(header)}"
    return None


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _column_names(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = next(reader, None)
    except csv.Error as problem:
        raise GradsiftError(
            f"{path}: line 1: no line with column names: {problem}. Lines must end in \\n or "
            "\\r\\n, and quotes must be closed."
        ) from None
    if not names:
        what = "the file is empty" if names is None else "line 1 is blank"
        raise GradsiftError(f"{path}: {what}; expected a line with column names.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GradsiftError(f"{path}: line 1: column names must differ, found twice: {twice}.")
    return names


def _csv_header(file: BinaryIO, delimiter: str) -> bytes:
    # The header may span lines, where a name is quoted.
    lines = _CountingLines(iter(file.readline, b""))
    next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    file.seek(0)
    content = file.read(lines.byte)
    return content if content.endswith(b"\n") else content + b"\n"


class _CountingLines:
    """Lines of a binary file as text for the csv module, with the place reached so far."""

    def __init__(self, lines: Iterator[bytes]):
        self._lines = iter(lines)
        self._bad = False
        self.byte = 0
        self.count = 0

    def __iter__(self) -> _CountingLines:
        return self

    def __next__(self) -> str:
        content = next(self._lines)
        self.byte += len(content)
        self.count += 1
        if self.count == 1:
            # Else the csv module takes a quote after the mark for a part of the name.
            content = content.removeprefix(BOM)
        try:
            return content.decode()
        except UnicodeDecodeError:
            self._bad = True
            return content.decode(errors="replace")

    def take_bad(self) -> bool:
        """Return whether a line since the last call was not UTF-8."""
        bad, self._bad = self._bad, False
        return bad


def read_ids(path: str | None, setting: str) -> list[str]:
    """Read ids, one a line, or those of rows; of no file none. `setting` names it in errors."""
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GradsiftError(
            f"`{setting}` {path}: cannot be read ({error}). Expected ids, one a line."
        ) from None
    where = f"`{setting}` {path}"
    return [_id_in(line.strip(), f"{where}, line {at}")
            for at, line in enumerate(lines, start=1) if line.strip()]  # fmt: skip


def _id_in(line: str, where: str) -> str:
    if not line.startswith("{"):
        return line
    # Of a file of rows, the ids are what is meant.
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError):
        raise GradsiftError(
            f"{where}: looks like a row but has no id. Expected ids, one a line, or rows with an "
            "id."
        ) from None
