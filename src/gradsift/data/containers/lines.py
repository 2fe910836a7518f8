"""JSONL, JSON and CSV: each row with the bytes it stands on, so that the same bytes go out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gradsift.data.containers.sources import LINES, RawRow
from gradsift.data.containers.streams import BOM, open_utf8, read_range
from gradsift.errors import GradsiftError
from gradsift.files import write_atomically
from gradsift.wording import few

# What the structure of an array survives: the element is dropped, and the others are read.
_ELSE_SOUND = "Invalid control character"
_BRACKETS = re.compile(r'["\[\]{}]')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


class Place(NamedTuple):
    """Where a row stands: its position among the rows of its file, its bytes, and which file."""

    row: int
    start: int | None = None
    end: int | None = None
    file: str | None = None


def read_rows(path: Path, container: str) -> Iterator[RawRow]:
    """Read a jsonl, json or csv file row by row; blank lines are none."""
    with open_utf8(path) as file:
        yield from READERS[container](file, path)


def write_rows(
    files: Sequence[tuple[Path, Sequence[Place]]], container: str, destination: Path
) -> Path:
    """Write rows of files of one kind byte for byte, each with a line break after it.

    The rows of a file are in its order; those of CSV files stand under the first one's header.
    """
    write_atomically(destination, lambda target: _write(files, container, target))
    return destination


def _write(
    files: Sequence[tuple[Path, Sequence[Place]]], container: str, destination: Path
) -> None:
    written = 0
    with destination.open("wb") as target:
        if container == "csv":
            target.write(csv_header(files[0][0]).content)
        if container == "json":
            target.write(b"[")
        for path, rows in files:
            with open_utf8(path) as source:
                for row in rows:
                    content = read_range(source, row.start, row.end)
                    if container == "json":
                        content = (b",\n" if written else b"\n") + content
                    elif not content.endswith(b"\n"):
                        content += b"\n"
                    target.write(content)
                    written += 1
        if container == "json":
            target.write(b"\n]\n")


def jsonl_rows(file: BinaryIO, path: Path) -> Iterator[RawRow]:
    """Read JSON lines."""
    index, start, line_number = 0, 0, 0
    while content := file.readline():
        line_number += 1
        end = start + len(content)
        if content.startswith(BOM):
            # Files joined with cat have it in the middle.
            content, start = content.removeprefix(BOM), start + len(BOM)
        if content and not content.isspace():
            text, error = _decoded(content)
            # A line may be as long as a file: one copy less while it is parsed.
            content = b""
            record, error = (None, error) if text is None else _parsed(text)
            if error is not None and text is not None and "\r" in text.rstrip():
                error = error[0], f"{error[1]}; if lines end in \\r alone, let them end in \\n"
            text = None
            yield RawRow(index, line_number, start, end, record, error)
            index += 1
        start = end


def _decoded(content: bytes) -> tuple[str | None, tuple[str, str] | None]:
    try:
        # Given bytes, json would guess UTF-16 and let half surrogate pairs pass.
        return content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return None, ("unreadable_line", f"not UTF-8: {error.reason} at byte {error.start}")


def _parsed(
    text: str, decoder: json.JSONDecoder | None = None
) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    try:
        return _object((decoder or _DECODER).decode(text))
    except RecursionError:
        return None, ("unreadable_line", "not JSON: nested too deeply")
    except ValueError as error:
        if decoder is None and "Exceeds the limit" in str(error):
            # Where nobody reads that number, the row is as good as any.
            return _parsed(text, _OF_ANY_SIZE)
        return None, ("unreadable_line", f"not JSON: {error}")


def _integer(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # Of more digits than Python reads: no number that can be used.
        return float("nan")


_DECODER = json.JSONDecoder()
_OF_ANY_SIZE = json.JSONDecoder(parse_int=_integer)


def _object(value: Any) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    if isinstance(value, dict):
        return value, None
    return None, ("not_an_object", f"found {type(value).__name__}, expected an object")


def json_rows(file: BinaryIO, path: Path) -> Iterator[RawRow]:
    """Read the elements of a JSON array."""
    content = file.read()
    byte = len(BOM) if content.startswith(BOM) else 0
    # Bytes that are no UTF-8 are found again in the element that has them.
    text = content[byte:].decode("utf-8", "surrogateescape")
    del content
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        raise GradsiftError(
            f"{path}: expected a JSON array of objects, found "
            f"{ascii(text[at : at + 20]) if at < len(text) else 'nothing'}."
        )
    at = _skip_space(text, at + 1)
    index, counted, line, seen_bad = 0, 0, 1, False
    while text[at : at + 1] != "]":
        line += text.count("\n", counted, at)
        value, error, stop = _element(text, at, path, line, seen_bad=seen_bad)
        seen_bad |= error is not None and _ELSE_SOUND in error[1]
        start = byte + _n_bytes(text, counted, at)
        end = start + _n_bytes(text, at, stop)
        yield RawRow(index, line, start, end, value, error)
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
            what = "the file ends" if at == len(text) else f"found {text[at : at + 20]!a}"
            raise GradsiftError(
                f"{path}: line {line}: expected a comma or ] after element {index}, {what}."
            )
    rest = text[at + 1 :].strip(" \t\r\n")
    if rest:
        raise GradsiftError(f"{path}: expected nothing after the array's ], found {rest[:20]!a}.")


def _element(
    text: str, at: int, path: Path, line: int, *, seen_bad: bool
) -> tuple[dict[str, Any] | None, tuple[str, str] | None, int]:
    """Return an element of an array, or what is wrong with it, and where it ends."""
    decoder = _DECODER
    if seen_bad and (stop := _end_of(text, at)) is not None:
        # An error counts the lines before it: those of the element are enough.
        text, at, offset = text[at:stop], 0, at
        value, error, stop = _element(text, at, path, line, seen_bad=False)
        return value, error, offset + stop
    while True:
        try:
            value, stop = decoder.raw_decode(text, at)
            break
        except (ValueError, RecursionError) as error:
            if "Exceeds the limit" in str(error) and decoder is _DECODER:
                decoder = _OF_ANY_SIZE
                continue
            deep = isinstance(error, RecursionError)
            stop = _end_of(text, at) if deep or str(error).startswith(_ELSE_SOUND) else None
            if stop is not None:
                detail = "nested too deeply" if deep else str(error)
                return None, ("unreadable_line", f"not JSON: {detail}"), stop
            raise GradsiftError(
                f"{path}: not JSON, in the element that begins in line {line}: "
                f"{'nested too deeply' if deep else error}. A JSON array is read whole or not at "
                "all: mend or remove that element; JSON lines (.jsonl) survive a broken row."
            ) from None
    if not text.isascii():
        try:
            text[at:stop].encode()
        except UnicodeEncodeError:
            return None, ("unreadable_line", "not UTF-8"), stop
    return *_object(value), stop


def _end_of(text: str, at: int) -> int | None:
    """Return where an element ends by its brackets alone, or None if they do not match."""
    depth = 0
    while match := _BRACKETS.search(text, at):
        at = match.end()
        if match[0] == '"':
            if (string := _STRING.match(text, match.start())) is None:
                return None
            at = string.end()
        else:
            depth += 1 if match[0] in "[{" else -1
        if depth <= 0:
            return at if depth == 0 else None
    return None


def _n_bytes(text: str, start: int, end: int) -> int:
    part = text[start:end]
    return len(part) if part.isascii() else len(part.encode("utf-8", "surrogateescape"))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def csv_rows(file: BinaryIO, path: Path) -> Iterator[RawRow]:
    """Read the records of a CSV file, under its line of column names."""
    # A field may be as long as an answer is.
    csv.field_size_limit(2**31 - 1)
    lines = _CountingLines(iter(file.readline, b""))
    names, reader = _header(path, lines)
    delimiter, index = reader.dialect.delimiter, 0
    while True:
        start, line = lines.byte, lines.count + 1
        lines.texts.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            never = "unexpected end of data" in str(problem)
            detail = f"not CSV: {problem}{_swallowed(line, lines.count, never=never)}"
            fields, error = None, ("unreadable_line", detail)
            lines.take_bad()
        else:
            error = _csv_error(fields, names, lines, line)
        if fields == []:
            continue
        record = None if error else dict(zip(names, fields, strict=True))
        remark = _look_like_rows(lines.texts[1:], len(names), delimiter)
        yield RawRow(index, line, start, lines.byte, record, error, remark=remark)
        index += 1


READERS: dict[str, Callable[[BinaryIO, Path], Iterator[RawRow]]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
}
assert tuple(READERS) == LINES


def _csv_error(
    fields: list[str], names: list[str], lines: _CountingLines, line: int
) -> tuple[str, str] | None:
    if bad := lines.take_bad():
        return "unreadable_line", bad
    if [field.removeprefix("\ufeff") for field in fields] == names:
        return "unreadable_line", "the header again, as in files that were joined"
    if fields and len(fields) != len(names):
        swallowed = _swallowed(line, lines.count, never=False)
        n = f"{len(fields)} fields, the header has {len(names)}"
        return "unreadable_line", f"{n}{swallowed}"
    return None


def _look_like_rows(inner: list[str], n_fields: int, delimiter: str) -> str | None:
    """Return what is to be said of a record of several lines, if all but its first may be rows."""
    if not inner or n_fields == 1 or any(line.count(delimiter) < n_fields - 1 for line in inner):
        return None
    if any(len(next(csv.reader([line], delimiter=delimiter), ())) != n_fields for line in inner):
        return None
    return (
        "a quote takes further lines for its text, and each of them looks like a row of its own: "
        "is it a stray quote?"
    )


def _swallowed(first: int, last: int, *, never: bool) -> str:
    """Say how much a quote took with it that stands in another line than its end."""
    if last == first and not never:
        return ""
    end = f"never closed: up to the end, line {last}," if never else f"closed in line {last}:"
    n = last - first
    lines = "no further line is" if n == 0 else "1 line is" if n == 1 else f"{n} lines are"
    return f"; a quote opened in line {first} is {end} {lines} taken for its text"


class CsvHeader(NamedTuple):
    """The line of column names: its bytes, with a line break at the end, and what it says."""

    content: bytes
    names: tuple[str, ...]
    delimiter: str


def csv_header(path: Path) -> CsvHeader:
    """Read the line of column names, which may span lines where a name is quoted."""
    with open_utf8(path) as file:
        lines = _CountingLines(iter(file.readline, b""))
        names, reader = _header(path, lines)
        end = lines.byte
    with open_utf8(path) as file:
        content = file.read(end)
    content = content if content.endswith(b"\n") else content + b"\n"
    return CsvHeader(content, tuple(names), reader.dialect.delimiter)


def _header(path: Path, lines: _CountingLines) -> tuple[list[str], Any]:
    """Return the column names, and what reads the records after them."""
    first = lines.peek()
    # Excel's "Unicode text" has tabs, whatever it is called.
    tabs = path.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
    tabs |= "\t" in first and "," not in first
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
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
    others = [mark for mark in ";|" if len(names) == 1 and mark in names[0]]
    if others:
        raise GradsiftError(
            f"{path}: line 1: the columns seem to be separated by {others[0]!r}: save them with "
            "commas or tabs."
        )
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GradsiftError(f"{path}: line 1: column names must differ, found twice: {few(twice)}.")
    return names, reader


class _CountingLines:
    """Lines of a binary file as text for the csv module, with the place reached so far.

    `texts` are those since it was cleared.
    """

    def __init__(self, lines: Iterator[bytes]):
        self._lines = iter(lines)
        self._bad: str | None = None
        self._peeked: list[bytes] = []
        self.texts: list[str] = []
        self.byte = 0
        self.count = 0

    def __iter__(self) -> _CountingLines:
        return self

    def peek(self) -> str:
        """Return the first line, which is still to come."""
        self._peeked = [line for line in (next(self._lines, None),) if line is not None]
        return "".join(line.decode(errors="replace") for line in self._peeked)

    def __next__(self) -> str:
        content = self._peeked.pop() if self._peeked else next(self._lines)
        self.byte += len(content)
        self.count += 1
        if self.count == 1:
            # Else the csv module takes a quote after the mark for a part of the name.
            content = content.removeprefix(BOM)
        if b"\0" in content:
            self._bad = "a NUL byte, which stands for no character"
        try:
            text = content.decode()
        except UnicodeDecodeError:
            self._bad = "not UTF-8"
            text = content.decode(errors="replace")
        self.texts.append(text)
        return text

    def take_bad(self) -> str | None:
        """Return what was wrong with a line since the last call."""
        bad, self._bad = self._bad, None
        return bad
