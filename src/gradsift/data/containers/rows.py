"""Read rows out of any container, and write the very same rows into one of the same kind.

JSONL, JSON and CSV are read and written byte for byte (`lines`); in Parquet, Arrow, `save_to_disk`
folders and hub datasets a row is a position in an Arrow table (`tables`). Several files are read
one after the other.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.data.containers import lines
from gradsift.data.containers.lines import Place
from gradsift.data.containers.sources import LINES, RawRow, Source, require_own_parts
from gradsift.data.containers.streams import is_empty, uncompressed_name
from gradsift.data.containers.tables import (
    Block,
    TableRecord,
    is_arrow_file,
    parquet_blocks,
    read_arrow,
    require_whole,
    table_blocks,
    take,
    take_of_parquet,
    write_arrow,
)
from gradsift.errors import GradsiftError
from gradsift.files import whole_folder, write_atomically, writing
from gradsift.seals import sha256_of
from gradsift.wording import few, short

logger = logging.getLogger(__name__)


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read a source row by row; unreadable rows are among them, with their error."""
    if source.container == "files":
        return _rows_of_files(source)
    if source.container in LINES:
        return lines.read_rows(source.path, source.container)
    return rows_of_blocks(_blocks(source))


def rows_of_blocks(blocks: Iterator[Block]) -> Iterator[RawRow]:
    """Return the rows of a table, block by block."""
    index = 0
    for block in blocks:
        for row in range(block.n_rows):
            yield RawRow(index, None, None, None, TableRecord(block, row))
            index += 1


def _rows_of_files(source: Source) -> Iterator[RawRow]:
    index = 0
    for part in source.parts:
        if part.container in LINES and is_empty(part.path):
            logger.info(f"{part.label}: is empty, and has no rows")
            continue
        for raw in read_rows(part):
            yield replace(raw, index=index, file=part.label, index_in_file=raw.index)
            index += 1


def fingerprint(source: Source) -> str:
    """Return the SHA-256 of what a source holds, in hex (of a hub dataset: of its fingerprint).

    Of several files it covers their names, as rows may be named after them, and all their bytes.
    """
    if source.container not in ("disk", "hub", "files"):
        return sha256_of(source.path)
    digest = hashlib.sha256()
    require_own_parts(source)
    if source.container == "hub":
        digest.update(_dataset(source)._fingerprint.encode())
    for path in sorted(source.path.rglob("*.arrow")) if source.container == "disk" else ():
        digest.update(bytes.fromhex(sha256_of(path)))
    for part in source.parts:
        digest.update(f"{part.label}\0{fingerprint(part)}\0".encode())
    return digest.hexdigest()


def write_rows(source: Source, rows: Sequence[Place], out: Path) -> Path:
    """Write some rows of a source, unchanged, as `selected` in a container like the source's own.

    Rows are in the input's order. What was compressed is written unpacked, UTF-16 as UTF-8, a hub
    dataset or what came from memory as Parquet. Several files of one kind make one file, if their
    columns allow it; others a folder with one file each. Returns the file or folder in `out`,
    which is replaced as a whole.
    """
    if source.container != "files":
        return _write_one(source, rows, out, "selected")
    of_part = {part.label: [row for row in rows if row.file == part.label] for part in source.parts}
    parts = [(part, of_part[part.label]) for part in source.parts if of_part[part.label]]
    joined = _joined(parts or [(source.parts[0], [])], out)
    return joined or _write_separately(parts, out / "selected")


def _write_one(source: Source, rows: Sequence[Place], out: Path, name: str) -> Path:
    if source.container in LINES:
        path = out / f"{name}{_suffix_of_lines(source)}"
        return lines.write_rows([(source.path, rows)], source.container, path)
    indices = [row.row for row in rows]
    if source.container == "disk":
        return _write_folder(source, indices, out / name)
    return _write_table(source, _taken(source, indices), out, name)


def _joined(parts: list[tuple[Source, list[Place]]], out: Path) -> Path | None:
    """Write rows of several files into one, unless they are of different kinds or columns."""
    kinds = {part.container for part, _ in parts}
    first, _ = parts[0]
    if len(kinds) > 1 or first.container == "disk":
        return None
    if first.container in LINES:
        if first.container == "csv":
            headers = [lines.csv_header(part.path) for part, _ in parts]
            if len({(header.names, header.delimiter) for header in headers}) > 1:
                return None
        path = out / f"selected{_suffix_of_lines(first)}"
        return lines.write_rows([(part.path, rows) for part, rows in parts], first.container, path)
    tables = [_taken(part, [row.row for row in rows]) for part, rows in parts]
    types: dict[str, pa.DataType] = {}
    for field in (field for table in tables for field in table.schema):
        if pa.types.is_null(field.type):
            continue
        # Objects of other fields would be filled with null.
        same = types.setdefault(field.name, field.type) == field.type
        if not same and pa.types.is_nested(field.type):
            return None
    try:
        # A column that a file does not have is null there.
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException:
        return None
    return _write_table(first, table, out, "selected")


def _write_separately(parts: list[tuple[Source, list[Place]]], folder: Path) -> Path:
    """Write one file for each input, called as that is; sorted they are in the input's order."""
    labels = [uncompressed_name(Path(part.label or "rows")) for part, _ in parts]
    names = [
        label if part.container == "hub" else label.with_suffix("")
        for label, (part, _) in zip(labels, parts, strict=True)
    ]
    if len(set(names)) < len(names) or sorted(names) != names:
        # Two files may differ by their suffix alone.
        width = len(str(len(names)))
        flat = ["-".join(name.parts) for name in names]
        names = [Path(f"{at:0{width}}-{name}") for at, name in enumerate(flat)]
    with whole_folder(folder, replace=True) as unfinished:
        for name, (part, rows) in zip(names, parts, strict=True):
            _write_one(part, rows, unfinished / name.parent, name.name)
    return folder


def _suffix_of_lines(source: Source) -> str:
    # A .json file that holds lines is written as what it is, and so is a .csv with tabs.
    if source.container == "csv":
        return ".tsv" if lines.csv_header(source.path).delimiter == "\t" else ".csv"
    suffix = uncompressed_name(source.path).suffix.lower()
    return ".jsonl" if source.container == "jsonl" else suffix


def _taken(source: Source, indices: list[int]) -> pa.Table:
    if source.container == "parquet":
        return take_of_parquet(source.path, indices)
    try:
        return take(_table(source), indices)
    except pa.ArrowException as error:
        raise GradsiftError(f"{source.name}: its rows cannot be copied: {short(error)}") from error


def _write_table(source: Source, table: pa.Table, out: Path, name: str) -> Path:
    if source.container == "arrow":
        destination, as_file = out / f"{name}{source.path.suffix}", is_arrow_file(source.path)
        write_atomically(destination, lambda file: write_arrow(table, file, as_file=as_file))
    else:
        suffix = source.path.suffix if source.container == "parquet" else ".parquet"
        destination = out / f"{name}{suffix}"
        write_atomically(destination, lambda file: pq.write_table(table, file))
    return destination


def _blocks(source: Source) -> Iterator[Block]:
    if source.container == "parquet":
        return parquet_blocks(source.path)
    return table_blocks(_table(source), source.name)


def _table(source: Source) -> pa.Table:
    if source.container in ("arrow", "memory"):
        return read_arrow(source.path)
    return _dataset(source).with_format("arrow")[:]


def _dataset(source: Source) -> Any:
    require_own_parts(source)
    try:
        import datasets
    except ImportError:
        raise GradsiftError(
            f"{source.name}: reading a {source.container} dataset needs the package datasets: "
            "pip install 'gradsift[train]'"
        ) from None
    try:
        if source.container == "disk":
            for path in sorted(source.path.rglob("*.arrow")):
                require_whole(path)
            loaded = datasets.load_from_disk(source.name)
        else:
            loaded = datasets.load_dataset(source.name, source.data_config)
    except GradsiftError:
        raise
    except Exception as error:  # Its builders, its file systems and the hub raise what they like.
        raise GradsiftError(_why_not_loaded(source, str(error))) from error
    return _split_of(source, loaded)


def _why_not_loaded(source: Source, text: str) -> str:
    listed = re.search(r"(?:available configs|Available): \[(.*?)\]", text, re.DOTALL)
    if listed is None:
        return f"{source.name}: cannot be loaded: {short(text.strip().split(chr(10))[0])}"
    names = re.findall(r"'([^']*)'", listed[1])
    has = "has several configurations"
    if source.data_config is not None:
        has = f"has no configuration {source.data_config!r}"
    return f"{source.name}: {has}; name one of {few(names)} with `data_config`."


def _split_of(source: Source, loaded: Any) -> Any:
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
    with whole_folder(destination, replace=True) as unfinished, writing(destination):
        chosen.save_to_disk(str(unfinished))
    return destination
