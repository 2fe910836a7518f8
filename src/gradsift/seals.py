"""What a run folder keeps, with a digest of its own content that is checked when it is read.

JSON has it under the key `sha256`, Parquet in its footer, YAML in its first line, a comment. What
an earlier gradsift wrote has none, and is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.errors import GradsiftError
from gradsift.files import write_atomically, write_text
from gradsift.wording import first_line

KEY = "sha256"
_PARQUET_KEY = "gradsift.sha256"
_HOLE = "0" * 64
_FIRST_LINE = "# sha256 of the lines below: "
_BLOCK = 1 << 20


class DamagedError(GradsiftError):
    """A file is not what was written: damaged, changed, or no such file at all.

    Attributes:
        found: What was found where, without what to do.
    """

    def __init__(self, path: Path, what: str):
        """Say what is wrong with the file."""
        self.found = f"{path}: damaged or changed ({what})."
        super().__init__(f"{self.found} Restore it, or make it again.")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises:
        DamagedError: If it is no file, but a pipe or a device, which has no end.
    """
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_sha256(content: str | bytes | Iterable[str | bytes], length: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a text, of bytes, or of several in a row."""
    digest = hashlib.sha256()
    for part in (content,) if isinstance(content, str | bytes) else content:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:length]


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as indented JSON with its digest, atomically; NaN and infinity are refused.

    What is no JSON of itself (a path) is refused, too.
    """
    assert KEY not in value, f"{path}: a key of that name is put in"
    plain = json.loads(json.dumps(value, allow_nan=False))
    sealed = {**plain, KEY: _digest_of(plain)}
    write_text(path, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote.

    Raises:
        DamagedError: If it is none any more.
    """
    require_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"no JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise DamagedError(path, f"found {type(value).__name__}, expected an object")
    if KEY in value:
        said = value.pop(KEY)
        _require_equal(path, _digest_of(value), said)
    return value


def _digest_of(value: Mapping[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet with a digest of all its bytes, atomically."""

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_PARQUET_KEY: _HOLE})
        with temporary.open("r+b") as file:
            at = _place_of_digest(file)
            assert at is not None
            digest = _digest_around(file, at)
            file.seek(at)
            file.write(digest.encode())

    write_atomically(path, write)


def read_parquet(
    path: Path,
    columns: list[str] | None = None,
    expected: Iterable[pa.Field] = (),
    *,
    must_be_sealed: bool = False,
) -> pa.Table:
    """Read one Parquet file, or some columns of it, of which some are `expected` to be there.

    Raises:
        DamagedError: If it is none, not the one that was written, or without these columns; or
            without a digest, where every gradsift that wrote such a file wrote one.
    """
    require_file(path)
    with path.open("rb") as file:
        at = _place_of_digest(file)
        if at is None and must_be_sealed:
            raise DamagedError(path, "it has no digest")
        if at is not None:
            file.seek(at)
            said = file.read(len(_HOLE)).decode("ascii", "replace")
            _require_equal(path, _digest_around(file, at), said)
    # pyarrow's read_table loads its dataset machinery first, and pandas if it is installed.
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(path, f"no Parquet: {first_line(error)}") from error
    require_columns(path, table, expected)
    return table


def require_columns(path: Path, table: pa.Table, expected: Iterable[pa.Field]) -> None:
    """Refuse a table whose columns are not those that a file of this kind has: it may be anybody's.

    Raises:
        DamagedError: If one is missing, there twice, of another type, or not as its type says.
    """
    for field in expected:
        if (n := table.column_names.count(field.name)) != 1:
            raise DamagedError(path, f"column {field.name!r} is there {n} times, expected once")
        column = table[field.name]
        if column.type != field.type:
            raise DamagedError(
                path, f"column {field.name!r} is of type {column.type}, expected {field.type}"
            )
        if not field.nullable and column.null_count:
            raise DamagedError(path, f"column {field.name!r} has no value in some rows")
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise DamagedError(path, f"column {field.name!r}: {first_line(error)}") from error


def _place_of_digest(file: BinaryIO) -> int | None:
    """Return where the digest stands in the footer of a Parquet file, None if there is none."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    start = max(0, size - 8 - length)
    file.seek(start)
    footer = file.read(size - start)
    at = footer.rfind(_PARQUET_KEY.encode())
    # The key is followed by the type and the length of its value, a byte each.
    at = at + len(_PARQUET_KEY) + 2
    return start + at if at > len(_PARQUET_KEY) + 1 and at + len(_HOLE) <= len(footer) else None


def _digest_around(file: BinaryIO, at: int) -> str:
    """Return the SHA-256 of a file's bytes, zeros standing for the digest itself."""
    digest = hashlib.sha256()
    for block in _blocks(file, 0, at):
        digest.update(block)
    digest.update(_HOLE.encode())
    for block in _blocks(file, at + len(_HOLE), None):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO, start: int, end: int | None) -> Generator[bytes, None, None]:
    file.seek(start)
    while block := file.read(_BLOCK if end is None else min(_BLOCK, end - file.tell())):
        yield block


def sealed_lines(text: str) -> str:
    """Return lines of YAML under one more, a comment with the digest of those below it."""
    return f"{_FIRST_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def require_sealed_lines(path: Path) -> None:
    """Refuse a file of `sealed_lines` that is not what was written.

    Raises:
        DamagedError: If a line of it was changed.
    """
    require_file(path)
    first, _, below = path.read_bytes().partition(b"\n")
    if first.startswith(_FIRST_LINE.encode()):
        said = first.decode("utf-8", "replace").removeprefix(_FIRST_LINE)
        _require_equal(path, hashlib.sha256(below).hexdigest(), said)


def is_sealed(path: Path) -> bool:
    """Return whether a file of YAML has a digest, so is not of an earlier gradsift."""
    with path.open("rb") as file:
        return file.read(len(_FIRST_LINE)) == _FIRST_LINE.encode()


def require_file(path: Path) -> None:
    """Refuse what is no file: a pipe would be waited for, and a folder cannot be read."""
    if path.exists() and not path.is_file():
        raise DamagedError(path, "is no file")


def _require_equal(path: Path, found: str, said: object) -> None:
    if found != said:
        raise DamagedError(
            path, f"SHA-256 of its content is {found[:12]}…, it says {str(said)[:12]}…"
        )
