"""Read rows out of any container, and write the very same rows into one of the same kind.

JSONL, JSON and CSV are read and written byte for byte (`lines`); in Parquet, Arrow, `save_to_disk`
folders and hub datasets a row is a position in an Arrow table.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.data import lines
from gradsift.data.sources import RawRow, Source
from gradsift.errors import GradsiftError
from gradsift.utils import sha256_of, whole_folder, write_atomically

ROWS_AT_A_TIME = 1000


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read a source row by row; unreadable rows are among them, with their error."""
    if source.container in lines.READERS:
        return lines.read_rows(source.path, source.container)
    return _table_rows(source)


def fingerprint(source: Source) -> str:
    """Return the SHA-256 of what a source holds, in hex (of a hub dataset: of its fingerprint)."""
    if source.container not in ("disk", "hub"):
        return sha256_of(source.path)
    digest = hashlib.sha256()
    if source.container == "hub":
        digest.update(_dataset(source)._fingerprint.encode())
    for path in sorted(source.path.rglob("*.arrow")) if source.container == "disk" else ():
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def write_rows(source: Source, rows: list[tuple[int, int | None, int | None]], out: Path) -> Path:
    """Write some rows of a source, unchanged, as `selected` in a container like the source's own.

    Rows are (index, start, end), in the input's order. A hub dataset is written as Parquet. Returns
    the file or folder in `out`, which is replaced as a whole.
    """
    container, suffix = source.container, source.path.suffix
    if container in lines.READERS:
        # A .json file that holds lines is written as what it is.
        suffix = ".jsonl" if container == "jsonl" else suffix.lower()
        return lines.write_rows(source.path, container, rows, out / f"selected{suffix}")
    indices = [index for index, _, _ in rows]
    if container == "disk":
        return _write_folder(source, indices, out / "selected")
    destination = out / (f"selected{suffix}" if container == "arrow" else "selected.parquet")
    chosen = _table(source).take(indices)
    if container == "arrow":
        write_atomically(destination, lambda file: _write_arrow(source, chosen, file))
    else:
        write_atomically(destination, lambda file: pq.write_table(chosen, file))
    return destination


def _table_rows(source: Source) -> Iterator[RawRow]:
    table = _table(source)
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        try:
            records = table.slice(start, ROWS_AT_A_TIME).to_pylist()
        except (pa.ArrowException, ValueError) as error:  # UnicodeDecodeError, dates out of range.
            raise GradsiftError(
                f"{source.name}: rows {start} to {start + ROWS_AT_A_TIME - 1} cannot be read: "
                f"{error}"
            ) from error
        for i, record in enumerate(records):
            yield RawRow(start + i, None, None, None, record)


def _table(source: Source) -> pa.Table:
    try:
        if source.container == "parquet":
            return pq.read_table(source.path)
        if source.container == "arrow":
            with pa.memory_map(source.name) as file:
                is_file = _is_arrow_file(file)
                return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise GradsiftError(
            f"{source.name}: cannot be read as {source.container}: {error}"
        ) from error
    return _dataset(source).with_format("arrow")[:]


def _is_arrow_file(file: Any) -> bool:
    magic = file.read(6)
    file.seek(0)
    return magic == b"ARROW1"


def _write_arrow(source: Source, table: pa.Table, destination: Path) -> None:
    with pa.memory_map(source.name) as file:
        new = pa.ipc.new_file if _is_arrow_file(file) else pa.ipc.new_stream
    with pa.OSFile(str(destination), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)


def _dataset(source: Source) -> Any:
    try:
        import datasets
    except ImportError:
        raise GradsiftError(
            f"{source.name}: reading a {source.container} dataset needs the package datasets: "
            "pip install 'gradsift[train]'"
        ) from None
    load = datasets.load_from_disk if source.container == "disk" else datasets.load_dataset
    try:
        loaded = load(source.name)
    except Exception as error:  # Its builders, its file systems and the hub raise what they like.
        first_line = str(error).strip().split("\n")[0]
        raise GradsiftError(f"{source.name}: cannot be loaded: {first_line}") from error
    if not isinstance(loaded, dict):
        if source.split is not None:
            raise GradsiftError(f"{source.name}: has no splits; leave out `split: {source.split}`.")
        return loaded
    if source.split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if source.split not in loaded:
        raise GradsiftError(
            f"{source.name}: has the splits {', '.join(loaded)}; name one with `split`."
        )
    return loaded[source.split]


def _write_folder(source: Source, indices: list[int], destination: Path) -> Path:
    chosen = _dataset(source).select(indices)
    with whole_folder(destination) as unfinished:
        chosen.save_to_disk(str(unfinished))
        shutil.rmtree(destination, ignore_errors=True)
    return destination
