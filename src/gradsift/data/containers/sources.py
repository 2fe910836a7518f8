"""Where rows come from: which files, folders or hub datasets, and of what kind each is."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from gradsift.data.containers.folders import SHARD, data_files, is_run
from gradsift.data.containers.streams import COMPRESSED, encoding_of, open_utf8, uncompressed_name
from gradsift.data.containers.whole_objects import refuse_one_object
from gradsift.errors import GradsiftError
from gradsift.files import MOST_SETTINGS, require_plain
from gradsift.wording import few, first_line, short

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
# Containers of lines, which may be compressed.
LINES = ("jsonl", "json", "csv")
# Of one file, which is all that is read.
PLAIN = (*LINES, "parquet", "arrow", "memory")
# What rows that came from memory are called in their run folder.
# What files begin with that are no text.
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", ".gz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", ".zst"),
    (b"PAR1", "Parquet", ".parquet"),
    (b"ARROW1", "Arrow", ".arrow"),
)
KEPT_TABLE, KEPT_LINES = "pool-data.arrow", "pool-data.jsonl"


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawRow:
    """One row as it lies in its source.

    Attributes:
        index: 0-based, over the rows.
        line: 1-based line of the file where the row begins, if it has lines.
        start: First byte of the row in the file (unpacked, as UTF-8), if it has lines.
        end: One past the last byte, the line break included.
        record: Its fields, or None where it cannot be read.
        error: What is wrong with it: (reason, detail), or None.
        file: Label of the file, where rows come from several.
        index_in_file: 0-based, over the rows of that file.
        remark: What a person should know of how it was read.
    """

    index: int
    line: int | None
    start: int | None
    end: int | None
    record: Mapping[str, Any] | None
    error: tuple[str, str] | None = None
    file: str | None = None
    index_in_file: int | None = None
    remark: str | None = None


@dataclass(frozen=True)
class Source:
    """A place with rows.

    Attributes:
        name: A path or a hub id; of several files, what messages call them.
        container: jsonl, json, csv, parquet, arrow, disk, hub, memory (an Arrow table that came
            from memory) or files (several of these).
        split: Of a folder or a hub dataset that has several.
        data_config: Of a hub dataset that has several configurations.
        encoding: Of a file of lines that is not UTF-8.
        given: Of files of a folder, of a pattern or of several names: as the user named them.
        parts: Of several files: each of them.
        label: Of one of several files: its name among them.
    """

    name: str
    container: str
    split: str | None = None
    data_config: str | None = None
    encoding: str | None = None
    given: tuple[str, ...] = ()
    parts: tuple[Source, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no source is, such as a folder with parts elsewhere."""
        if self.container not in (*PLAIN, "disk", "hub", "files"):
            raise ValueError(f"container {self.container[:20]!r} is not known")
        if (self.container == "files") != bool(self.parts):
            raise ValueError("several files and nothing else have parts")
        if any(part.parts for part in self.parts):
            raise ValueError("parts have no parts")

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.name)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Source:
        """Return what a manifest says of a source."""
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in saved.items() if key in known}
        parts = tuple(map(cls.of, saved.get("parts") or ()))
        return cls(**{**values, "parts": parts, "given": tuple(saved.get("given") or ())})

    def source_names(self) -> dict[str | None, str]:
        """Return what the rows of each of several files are said to come from, by label.

        That is the file's name without suffix; shards of one set are one source.
        """
        return {part.label: SHARD.sub("", _stem(part.label)) for part in self.parts}


def absolute(name: str | Path) -> str:
    """Return a name that is found from any working directory; hub ids stay as they are."""
    # Links stay: in a copy of a hub dataset they have the names, and what they lead to has none.
    name = os.path.expanduser(name)
    if is_pattern(name):
        # What the working directory is called is no pattern.
        return os.path.normpath(os.path.join(glob.escape(os.getcwd()), name))
    return os.path.abspath(name) if os.path.exists(name) else name


def is_pattern(name: str) -> bool:
    """Return whether a name stands for the files that match it."""
    return glob.has_magic(name) and not os.path.exists(name)


def find_source(
    data: str | Sequence[str], split: str | None, data_config: str | None = None
) -> Source:
    """Tell where rows are to be found.

    Args:
        data: A file, a folder, a pattern (data/*.jsonl), a hub id; or several of these.
        split: Of a folder or a hub dataset that has several.
        data_config: Of a hub dataset, or of a copy of one in a folder.
    """
    names = [os.path.expanduser(one) for one in ([data] if isinstance(data, str) else data)]
    if not names:
        raise GradsiftError("`data` is empty; expected a file, a folder, a pattern or a hub id.")
    try:
        found = [part for name in names for part in _find(name, split, data_config)]
    except OSError as error:
        where = error.filename or names[0]
        raise GradsiftError(f"{where}: cannot be read ({error.strerror or error}).") from None
    given = tuple(map(absolute, names))
    if len(found) == 1:
        one = found[0]
        if given == (one.name,) or not one.path.is_file():
            return one
        return replace(one, given=given, split=split, data_config=data_config)
    where = Counter(os.path.realpath(part.name) for part in found)
    twice = [part.name for part in found if where[os.path.realpath(part.name)] > 1]
    if twice:
        also = f" (also as {twice[1]})" if twice[0] != twice[1] else ""
        raise GradsiftError(f"{twice[0]} is given twice{also}; its rows would be, too.")
    labels = _labels([part.name for part in found])
    parts = tuple(replace(part, label=label) for part, label in zip(found, labels, strict=True))
    name = given[0] if len(given) == 1 else f"{given[0]} and {len(given) - 1} more"
    return Source(name, "files", split, data_config, given=given, parts=parts)


def find_written(path: Path) -> Source:
    """Return where selected rows are: a file, or a folder with one file for each of the input."""
    if path.is_file() or (path / "state.json").exists():
        return find_source(str(path), None)
    whole = {marker.parent for marker in path.rglob("state.json")}
    found = [
        one
        for one in sorted(path.rglob("*"))
        if one in whole or (one.is_file() and not whole & {*one.parents})
    ]
    return find_source([str(one) for one in found], None)


def _find(name: str, split: str | None, data_config: str | None) -> list[Source]:
    path = Path(name)
    if path.is_file() or is_pattern(name):
        if split is not None:
            what = "is a file and has no" if path.is_file() else "is a pattern of files without"
            raise GradsiftError(f"{name} {what} splits; leave out `split: {split}`.")
        if data_config is not None:
            raise GradsiftError(
                f"{name} is no hub dataset; leave out `data_config: {data_config}`."
            )
        return [_file(found) for found in ([path] if path.is_file() else _matching(name))]
    if path.is_dir():
        if any((path / marker).exists() for marker in ("state.json", "dataset_dict.json")):
            if data_config is not None:
                raise GradsiftError(
                    f"{name} was written by `save_to_disk` and has no configurations; leave out "
                    f"`data_config: {data_config}`."
                )
            return [Source(os.path.abspath(path), "disk", split)]
        return [_file(file) for file in data_files(path, _is_data, split, data_config)]
    # A hub id may hold dots: teknium/OpenHermes-2.5.
    like_a_file = uncompressed_name(path).suffix.lower() in SUFFIXES
    like_a_file |= name.startswith((".", "/", "~"))
    if name.count("/") == 1 and name[-1] != "/" and not like_a_file:
        return [Source(name, "hub", split, data_config)]
    raise GradsiftError(f"{name}: there is no such file.")


def _matching(pattern: str) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [path for path in found if path.is_file()]
    folders = [] if "**" in pattern else [path.name for path in found if path.is_dir()]
    if folders:
        logger.info(f"{pattern}: folders are passed over: {few(folders, 5)}")
    # What a run wrote is none of its input, but where the pattern names its folder.
    named = list(takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    files = [
        path
        for path in files
        if not any(map(is_run, [*path.parents][: len(path.parts) - len(named) - 1]))
    ] or files
    if not files:
        raise GradsiftError(f"{pattern}: no file matches this pattern.")
    return files


def _is_data(path: Path) -> bool:
    container = SUFFIXES.get(uncompressed_name(path).suffix.lower())
    return container is not None and (container in LINES or path.suffix.lower() not in COMPRESSED)


def _file(path: Path) -> Source:
    container = SUFFIXES.get(uncompressed_name(path).suffix.lower())
    if container is None or not _is_data(path):
        excel = uncompressed_name(path).suffix.lower() == ".txt"
        raise GradsiftError(
            f"{path}: files ending in {''.join(path.suffixes[-2:]) or '(nothing)'} are not read; "
            f"known are {', '.join(SUFFIXES)}; those of lines also with {' or '.join(COMPRESSED)}."
            + ' Excel\'s "Unicode text" has tabs: call it .tsv.'
            * excel
        )
    if container in LINES and path.suffix.lower() not in COMPRESSED:
        _require_text(path)
    if path.name == KEPT_TABLE:
        container = "memory"
    encoding = encoding_of(path) if container in LINES else None
    if container == "json":
        with open_utf8(path) as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"{"):
            refuse_one_object(path)
            container = "jsonl"
    return Source(os.path.abspath(path), container, encoding=encoding)


def _require_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for magic, what, suffix in _MAGIC:
        if head.startswith(magic):
            called = path.name + suffix if suffix in COMPRESSED else path.stem + suffix
            raise GradsiftError(f"{path}: is {what}, not lines; call it {called}.")


def _labels(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart, of all the same length at least."""
    paths = [Path(name).parts for name in names]
    depth = 1
    while depth < max(map(len, paths)) and len({p[-depth:] for p in paths}) < len(paths):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in paths]


def _stem(label: str | None) -> str:
    path = uncompressed_name(Path(label or ""))
    known = path.suffix.lower() in SUFFIXES
    return str(path.with_suffix("") if known else path)


def require_plain_files(source: Source) -> None:
    """Refuse what is no file of data: a pipe or a device would be read for ever.

    Raises:
        GradsiftError: Naming the first that is none.
    """
    for part in source.parts or (source,):
        inside = sorted(part.path.rglob("*")) if part.container == "disk" else [part.path]
        for path in inside if part.container != "hub" else ():
            if not (path.is_file() or (path.is_dir() and part.container == "disk")):
                raise GradsiftError(f"{path}: is no file, but a pipe, a device or a folder.")


def require_own_parts(source: Source) -> None:
    """Refuse what a library would follow to files elsewhere: names in a folder, a folder as a hub.

    Raises:
        GradsiftError: For a folder of `save_to_disk` that names files or splits that are not its
            own, or a dataset of the hub whose name is also a path, which would be read instead.
    """
    if source.container == "hub" and os.path.lexists(source.name):
        raise GradsiftError(
            f"{source.name}: was a dataset of the hub, and here is a file or folder of that name, "
            "which would be read instead. Work in another folder, or say with `data` what is meant."
        )
    if source.container != "disk":
        return
    splits = source.path / "dataset_dict.json"
    folders = [source.path]
    if splits.exists():
        names = _names_in(splits, lambda said: said["splits"])
        _require_plain_names(splits, names)
        folders += [source.path / name for name in names]
    for folder in folders:
        state = folder / "state.json"
        if state.exists():
            files = _names_in(state, lambda said: [one["filename"] for one in said["_data_files"]])
            # Whatever else is read than .arrow files would be missing in the digest.
            _require_plain_names(state, files, suffix=".arrow")


def _names_in(path: Path, names_of: Callable[[Any], list[Any]]) -> list[Any]:
    require_plain(path, str(path), most=MOST_SETTINGS)
    try:
        return list(names_of(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GradsiftError(
            f"{path}: not as `save_to_disk` writes it ({type(error).__name__}: "
            f"{first_line(error)}). Restore it, or make it again."
        ) from error


def _require_plain_names(path: Path, names: Sequence[Any], suffix: str = "") -> None:
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not {*name} & {*"/\\:"}
        place = path.parent / name if plain else path
        if not plain or not name.endswith(suffix) or place.is_symlink():
            raise GradsiftError(
                f"{path}: names {short(repr(name), 80)}, expected plain names of what lies beside "
                "it: nothing else is read."
            )


def require_same_files(source: Source) -> None:
    """Refuse a folder or a pattern that stands for other files than it did.

    Raises:
        GradsiftError: Naming the files that came or went.
    """
    if not source.given:
        return
    now = find_source(source.given, source.split, source.data_config)
    names_now, names_then = ({part.name for part in (one.parts or (one,))} for one in (now, source))
    for verb, names in (
        ("came in", names_now - names_then),
        ("are gone from", names_then - names_now),
    ):
        if names:
            files = few(sorted(Path(name).name for name in names), 5)
            raise GradsiftError(
                f"{source.name}: files {verb} it since the capture ({files}). Put back what was "
                "there, or capture again into a new folder."
            )
