"""Parquet, Arrow, `save_to_disk` folders and hub datasets: rows by position in an Arrow table."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.data.sources import RawRow, Source
from gradsift.errors import GradsiftError

ROWS_AT_A_TIME = 1000


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read a table row by row.

    Args:
        source: A parquet, arrow, disk or hub source.

    Yields:
        Its rows, without lines or bytes.
    """
    table = _table(source)
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        for i, record in enumerate(table.slice(start, ROWS_AT_A_TIME).to_pylist()):
            yield RawRow(start + i, None, None, None, record)


def write_rows(source: Source, indices: list[int], out: Path) -> Path:
    """Write rows of a table with its schema and metadata, in the same container.

    Args:
        source: A parquet, arrow, disk or hub source; a hub dataset is written as Parquet.
        indices: Rows, in the input's order.
        out: A folder.

    Returns:
        The file or folder written, replaced as a whole.
    """
    out.mkdir(parents=True, exist_ok=True)
    if source.container == "disk":
        return _write_folder(source, indices, out / "selected")
    chosen = _table(source).take(indices)
    name = f"selected{source.path.suffix}" if source.container == "arrow" else "selected.parquet"
    temporary = out / f".{name}.tmp"
    if source.container == "arrow":
        with pa.OSFile(str(temporary), "wb") as sink, _arrow_writer(source, sink, chosen) as writer:
            writer.write_table(chosen)
    else:
        pq.write_table(chosen, temporary)
    os.replace(temporary, out / name)
    return out / name


def fingerprint(source: Source) -> str:
    """Return the SHA-256 of a folder's files, or of a hub dataset's fingerprint, in hex."""
    digest = hashlib.sha256()
    if source.container == "hub":
        digest.update(_dataset(source)._fingerprint.encode())
    else:
        for path in sorted(source.path.rglob("*.arrow")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _table(source: Source) -> pa.Table:
    try:
        if source.container == "parquet":
            return pq.read_table(source.path)
        if source.container == "arrow":
            with pa.memory_map(source.name) as file:
                return _arrow_reader(file).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise GradsiftError(
            f"{source.name}: cannot be read as {source.container}: {error}"
        ) from None
    dataset = _dataset(source)
    return dataset.with_format("arrow")[:]


def _arrow_reader(file: Any) -> Any:
    if _is_arrow_file(file):
        return pa.ipc.open_file(file)
    return pa.ipc.open_stream(file)


def _is_arrow_file(file: Any) -> bool:
    magic = file.read(6)
    file.seek(0)
    return magic == b"ARROW1"


def _arrow_writer(source: Source, sink: Any, table: pa.Table) -> Any:
    with pa.memory_map(source.name) as file:
        is_file = _is_arrow_file(file)
    return (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, table.schema)


def _dataset(source: Source) -> Any:
    try:
        import datasets
    except ImportError:
        raise GradsiftError(
            f"{source.name}: reading a {source.container} dataset needs the package datasets: "
            "pip install 'gradsift[train]'"
        ) from None
    try:
        if source.container == "disk":
            found = datasets.load_from_disk(source.name)
        else:
            found = datasets.load_dataset(source.name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise GradsiftError(f"{source.name}: cannot be loaded: {first_line}") from None
    if not isinstance(found, dict):
        if source.split is not None:
            raise GradsiftError(f"{source.name}: has no splits; leave out `split` {source.split}.")
        return found
    if source.split is None and len(found) == 1:
        return next(iter(found.values()))
    if source.split not in found:
        raise GradsiftError(
            f"{source.name}: has the splits {', '.join(found)}; name one with `split`."
        )
    return found[source.split]


def _write_folder(source: Source, indices: list[int], destination: Path) -> Path:
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _dataset(source).select(indices).save_to_disk(str(temporary))
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(temporary, destination)
    return destination
