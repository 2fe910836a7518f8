"""How LLaMA-Factory is told what a file holds: an entry of its dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from gradsift.data.formats import Columns
from gradsift.errors import GradsiftError
from gradsift.files import MOST_SETTINGS, require_plain
from gradsift.schema import of_type

# Roles as LLaMA-Factory's tags name them → what chat templates call them.
TAG_ROLES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
COLUMN_NAMES = ("prompt", "query", "response", "system", "history", "messages", "tools")
# What is read when an entry says nothing about columns; once it does, only what it names.
USUAL_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
}
ENTRY_KEYS = (
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "formatting",
    "ranking",
    "columns",
    "tags",
    "split",
)


_TYPES = {
    **dict.fromkeys(("hf_hub_url", "file_name", "split", "formatting"), str),
    **dict.fromkeys(("columns", "tags"), dict[str, str | None] | None),
}


class DatasetEntry(NamedTuple):
    """One entry of a dataset_info.json: a file or hub id, and what its rows are."""

    data: str
    row_format: str
    columns: Columns
    split: str | None


def read_dataset_info(path: str, name: str) -> DatasetEntry:
    """Read one entry of a dataset_info.json, as LLaMA-Factory's `data/parser.py` does.

    Relative file names are beside the JSON file.
    """
    entry = _entry(Path(path), name)
    columns, tags = entry.get("columns"), entry.get("tags") or {}
    unknown = [key for key, value in entry.items() if key not in ENTRY_KEYS and value is not None]
    unknown += ["ranking"] if entry.get("ranking") else []
    unknown += [key for key, value in (columns or {}).items() if key not in COLUMN_NAMES and value]
    unknown += [key for key in tags if key not in (*TAG_ROLES, "role_tag", "content_tag")]
    if unknown:
        raise GradsiftError(
            f"{path}: {name!r} uses {unknown}, which is not supported; only SFT on text from a "
            "file or a hub dataset is."
        )
    formatting = entry.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise GradsiftError(
            f"{path}: {name!r} has formatting {formatting!r}; known: {list(FORMATS)}."
        )
    names = USUAL_COLUMNS if columns is None else {k: v for k, v in columns.items() if v}
    row_format = FORMATS[formatting]
    if formatting == "alpaca" and "prompt" in names and "response" not in names:
        # What its pre-training stage reads.
        row_format = "text"
    data, split = _data(Path(path), name, entry)
    return DatasetEntry(data, row_format, _columns(formatting, names, tags), split)


def _columns(formatting: str, names: dict[str, str], tags: dict[str, str]) -> Columns:
    if formatting == "alpaca":
        keys = ("prompt", "query", "response", "system", "history")
        return Columns(**{key: names.get(key) for key in keys})
    openai = formatting == "openai"
    usual = {"human": "user", "gpt": "assistant", "observation": "tool"} if openai else {}
    roles = {tags.get(tag, usual.get(name, name)): role for tag, (name, role) in TAG_ROLES.items()}
    if openai:
        roles = {"tool": "tool", "developer": "developer"} | roles
    return Columns(
        messages=names.get("messages"),
        system=names.get("system"),
        tools=names.get("tools"),
        role_tag=tags.get("role_tag"),
        content_tag=tags.get("content_tag"),
        roles=roles,
    )


def _data(path: Path, name: str, entry: dict[str, Any]) -> tuple[str, str | None]:
    if "hf_hub_url" in entry:
        return entry["hf_hub_url"], entry.get("split") or "train"
    if "file_name" not in entry:
        raise GradsiftError(f"{path}: {name!r} has neither file_name nor hf_hub_url.")
    if entry.get("split") not in (None, "train"):
        raise GradsiftError(
            f"{path}: {name!r} has split {entry['split']!r} of a file; only the whole file is read."
        )
    return str(path.parent / entry["file_name"]), None


def _entry(path: Path, name: str) -> dict[str, Any]:
    require_plain(path, str(path), most=MOST_SETTINGS)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GradsiftError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise GradsiftError(f"{path}: not JSON: {error}.") from None
    if not isinstance(content, dict) or name not in content:
        known = ", ".join(content) if isinstance(content, dict) else "none"
        raise GradsiftError(f"{path}: no dataset {name!r}; there are: {known}.")
    if not isinstance(content[name], dict):
        raise GradsiftError(f"{path}: {name!r} is no object with file_name, formatting, columns.")
    for key, value in content[name].items():
        of_type(_TYPES.get(key, Any), value, f"{path}: {name!r}: {key}")
    return content[name]
