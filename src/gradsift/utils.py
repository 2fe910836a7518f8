"""Files that are either whole or absent (temporary file, fsync, rename), and digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.errors import GradsiftError
from gradsift.wording import first_line


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Generator[Path, None, None]:
    """Let a folder be filled beside where it belongs, then put it in place in one step.

    Without `replace` it must be absent or empty. If filling fails, nothing of it stays.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        sync_folder(unfinished)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet, atomically."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some columns of it."""
    # pyarrow's read_table loads its dataset machinery first, and pandas if it is installed.
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns)
    except pa.ArrowInvalid as error:
        raise GradsiftError(
            f"{path}: damaged, or no Parquet ({first_line(error)}). Restore it, or make it again."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GradsiftError(
            f"{path}: damaged, or no JSON ({first_line(error)}). Restore it, or make it again."
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_sha256(content: str | bytes | Iterable[str | bytes], length: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a text, of bytes, or of several in a row."""
    digest = hashlib.sha256()
    for part in (content,) if isinstance(content, str | bytes) else content:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:length]


def sync_folder(path: Path) -> None:
    """Make sure that a folder's files are on the disk, before something says that they are."""
    for file in path.rglob("*"):
        if file.is_file():
            _sync(file)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
