"""Where rows come from: what kind of file or folder it is, and its rows with their places."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.errors import GradsiftError

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
# Fields of one row that hold objects themselves.
TURNS = ("messages", "conversations", "conversation", "tools")


@dataclass(frozen=True)
class RawRow:
    """One row as it lies in its source.

    Attributes:
        index: 0-based, over the rows.
        line: 1-based line of the file where the row begins, if it has lines.
        start: First byte of the row in the file, if it has lines.
        end: One past the last byte, the line break included.
        record: Its fields, or None where it cannot be read.
        error: What is wrong with it: (reason, detail), or None.
    """

    index: int
    line: int | None
    start: int | None
    end: int | None
    record: dict[str, Any] | None
    error: tuple[str, str] | None = None


@dataclass(frozen=True)
class Source:
    """A place with rows.

    Attributes:
        name: A path or a hub id.
        container: jsonl, json, csv, parquet, arrow, disk or hub.
        split: Of a folder or a hub dataset that has several.
    """

    name: str
    container: str
    split: str | None = None

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.name)


def absolute(name: str | Path) -> str:
    """Return a name that is found from any working directory; hub ids stay as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)


def find_source(name: str, split: str | None) -> Source:
    """Tell what kind of source a file, a `save_to_disk` folder or a hub id is."""
    path = Path(name)
    if path.is_file():
        if split is not None:
            raise GradsiftError(f"{name} is a file and has no splits; leave out `split: {split}`.")
        return Source(str(path.resolve()), _file_container(path), None)
    if path.is_dir():
        if any((path / marker).exists() for marker in ("state.json", "dataset_dict.json")):
            return Source(str(path.resolve()), "disk", split)
        raise GradsiftError(
            f"{name} is a folder, but not one written by `save_to_disk` (no state.json or "
            "dataset_dict.json). Name a file in it."
        )
    # A hub id may hold dots: teknium/OpenHermes-2.5.
    like_a_file = path.suffix.lower() in SUFFIXES or name.startswith((".", "/", "~"))
    if name.count("/") == 1 and name[-1] != "/" and not like_a_file:
        return Source(name, "hub", split)
    raise GradsiftError(f"{name}: there is no such file.")


def _file_container(path: Path) -> str:
    container = SUFFIXES.get(path.suffix.lower())
    if container is None:
        raise GradsiftError(
            f"{path}: files ending in {path.suffix or '(nothing)'} are not read; known are "
            f"{', '.join(SUFFIXES)}. Compressed files must be unpacked first."
        )
    if container == "json":
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"{"):
            _refuse_one_object(path)
            return "jsonl"
    return container


def _refuse_one_object(path: Path) -> None:
    # A .json file of lines begins with { too.
    with path.open("rb") as file:
        first = file.readline()
        more = any(line.strip() for line in file)
    if more and _json_or_none(first) is not None:
        return
    value = _json_or_none(path.read_bytes())
    if not isinstance(value, dict):
        return
    holders = [key for key, rows in value.items() if key not in TURNS and _are_objects(rows)]
    if len(holders) == 1 and (more or len(value) == 1):
        raise GradsiftError(
            f"{path}: the rows lie inside an object, under {holders[0]!r}; expected an array of "
            f"objects, or one object a line. Take them out: jq '.[\"{holders[0]}\"]' "
            f"{path.name} > rows.json"
        )
    if more:
        raise GradsiftError(
            f"{path}: one object over several lines; expected an array of objects, or one object "
            f"a line: jq -c . {path.name} > rows.jsonl"
        )


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None


def _are_objects(rows: object) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
