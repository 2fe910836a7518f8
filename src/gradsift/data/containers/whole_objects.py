"""A .json file that begins with {: lines of objects, or one object that holds the rows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from gradsift.data.containers.streams import BOM, open_utf8
from gradsift.errors import GradsiftError

# Fields of one row that hold objects themselves.
TURNS = ("messages", "conversations", "conversation", "tools")


def refuse_one_object(path: Path) -> None:
    """Refuse a file that is one object around the rows, and say how they are taken out.

    Raises:
        GradsiftError: Unless it holds lines, or cannot be read (then its lines say why).
    """
    with open_utf8(path) as file:
        first = _json_or_none(file.readline())
        more = any(line.strip() for line in file)
    if more and first is not None:
        return
    if more:
        with open_utf8(path) as file:
            first = _json_or_none(file.read())
    if not isinstance(first, dict):
        return
    name, value = shlex.quote(path.name), first
    holders = [key for key, rows in value.items() if key not in TURNS and _are_objects(rows)]
    if len(holders) == 1 and (more or len(value) == 1):
        raise GradsiftError(
            f"{path}: the rows lie inside an object, under {holders[0][:60]!r}; expected an array "
            f"of objects, or one object a line. Take them out: jq '.[\"{holders[0][:60]}\"]' "
            f"{name} > rows.json"
        )
    if orient := _orient(value):
        what, how = orient
        raise GradsiftError(
            f"{path}: one object that holds {what}; expected an array of objects, or one object a "
            f"line. Turn it into lines: {how.format(name)} > rows.jsonl"
        )
    if more:
        raise GradsiftError(
            f"{path}: one object over several lines; expected an array of objects, or one object "
            f"a line: jq -c . {name} > rows.jsonl"
        )


def _orient(value: dict[str, Any]) -> tuple[str, str] | None:
    """Tell which of the forms in which pandas writes a table this is: what, and how to undo it."""
    if {"columns", "data"} <= value.keys() <= {"columns", "index", "data"}:
        names, rows = value["columns"], value["data"]
        if isinstance(names, list) and isinstance(rows, list):
            return (
                f"{len(rows)} lists beside their column names (pandas' orient='split')",
                "jq -c '.columns as $n | .data[] | [$n, .] | transpose | "
                "map({{key: .[0], value: .[1]}}) | from_entries' {}",
            )
    inner = list(value.values())
    if len(inner) < 2 or not all(isinstance(one, dict) and one for one in inner):
        return None
    if all(one.keys() == inner[0].keys() for one in inner) and all(k.isdigit() for k in inner[0]):
        return (
            f"{len(inner)} columns of {len(inner[0])} rows (pandas' orient='columns')",
            "jq -c '. as $t | (to_entries[0].value | keys_unsorted[]) as $i | "
            "$t | map_values(.[$i])' {}",
        )
    return (
        f"{len(inner)} objects (as pandas' orient='index' writes rows)",
        "jq -c '.[]' {}",
    )


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(BOM))
    except (ValueError, RecursionError):
        return None


def _are_objects(rows: object) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
