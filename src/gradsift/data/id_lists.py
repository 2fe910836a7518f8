"""Files of ids that the user names for rows to keep or to drop."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

from gradsift.data.containers.streams import open_utf8
from gradsift.errors import GradsiftError
from gradsift.files import require_plain
from gradsift.wording import few, short


def read_ids(
    path: str | None, setting: str, id_column: str, shared: Container[str] = ()
) -> list[str]:
    """Read ids, one a line, or those of rows; of no file none.

    Args:
        path: Of the file.
        setting: Its name in errors.
        id_column: Of rows.
        shared: Ids that several rows have, of which all but one were given others.

    Raises:
        GradsiftError: If there is no id in a line, or if a row's is one of several.
    """
    if path is None:
        return []
    require_plain(Path(path), f"`{setting}` {path}")
    try:
        # Not splitlines: text may hold other line breaks than a file of lines has.
        with open_utf8(Path(path)) as file:
            lines = file.read().decode("utf-8-sig").split("\n")
    except (GradsiftError, OSError, UnicodeDecodeError) as error:
        raise GradsiftError(
            f"`{setting}` {path}: cannot be read ({error}). Expected ids, one a line."
        ) from None
    where = f"`{setting}` {path}"
    return [_id_in(line.strip(), id_column, f"{where}, line {at}", shared)
            for at, line in enumerate(lines, start=1) if line.strip()]  # fmt: skip


def _id_in(line: str, id_column: str, where: str, shared: Container[str]) -> str:
    if not line.startswith("{"):
        return line
    # Of a file of rows, the ids are what is meant.
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise GradsiftError(
            f"{where}: begins with {{ but is no row: {short(line, 60)!r}. Expected ids, one a "
            "line, or rows with an id."
        ) from None
    if row.get(id_column) is None:
        raise GradsiftError(
            f"{where}: looks like a row but has no id: no field {id_column!r}, found {few(row)}. "
            "Expected ids, one a line, or rows with the id field of this run."
        )
    if (own_id := str(row[id_column])) in shared:
        raise GradsiftError(
            f"{where}: several rows have the id {short(own_id, 60)!r}, and the others were called "
            f"{short(own_id, 60)}#2 and so on. Give the ids of pool.parquet, one a line."
        )
    return own_id
