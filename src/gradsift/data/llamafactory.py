"""LLaMA-Factory's dataset_info.json: read its mappings, and write one for the selected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradsift.data.formats import Columns

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


def read_dataset_info(path: str, name: str) -> tuple[str, str, Columns]:
    """Read one entry of a dataset_info.json.

    Args:
        path: The file.
        name: The dataset's name in it.

    Returns:
        The data file (relative names are beside the JSON file) or hub id, the row format, and the
        names of its fields.

    Raises:
        ValueError: If the entry is not there, or asks for something that is not SFT on text.
    """
    entry = _entry(Path(path), name)
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    unknown = [key for key in columns if key not in COLUMN_NAMES]
    unknown += [key for key in tags if key not in (*TAG_ROLES, "role_tag", "content_tag")]
    if entry.get("ranking") or unknown:
        raise ValueError(
            f"{path}: {name!r} uses {unknown or ['ranking']}, which is not supported; only SFT on "
            "text is."
        )
    formatting = entry.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise ValueError(f"{path}: {name!r} has formatting {formatting!r}; known: {list(FORMATS)}.")
    if "file_name" in entry:
        data = str(Path(path).parent / entry["file_name"])
    elif "hf_hub_url" in entry:
        data = entry["hf_hub_url"]
    else:
        raise ValueError(f"{path}: {name!r} has neither file_name nor hf_hub_url.")
    return data, FORMATS[formatting], _columns(formatting, columns, tags)


def dataset_info_entry(file_name: str, row_format: str, columns: Columns) -> dict[str, Any] | None:
    """Return an entry of dataset_info.json for a file of selected rows.

    Args:
        file_name: The file, as the entry is to name it.
        row_format: Format of its rows.
        columns: Names of its fields.

    Returns:
        The entry, or None where LLaMA-Factory cannot read that format.
    """
    if row_format == "alpaca":
        names = {key: getattr(columns, key) for key in ("prompt", "query", "response", "system")}
        usual = {"prompt": "instruction", "query": "input", "response": "output"}
        given = {key: name or usual.get(key) for key, name in names.items()}
        return {"file_name": file_name, "columns": {k: v for k, v in given.items() if v}}
    if row_format == "text":
        return {"file_name": file_name, "columns": {"prompt": "text"}}
    if row_format == "qa":
        named = {"prompt": columns.prompt, "response": columns.response, "system": columns.system}
        return {"file_name": file_name, "columns": {k: v for k, v in named.items() if v}}
    if row_format == "sharegpt":
        tags = {}
        if columns.role_tag or columns.roles:
            roles = {role: said for said, role in (columns.roles or {}).items()}
            tags = {tag: roles.get(role, usual) for tag, (usual, role) in TAG_ROLES.items()}
            tags |= {"role_tag": columns.role_tag or "from"}
            tags |= {"content_tag": columns.content_tag or "value"}
        messages = {"messages": columns.messages or "conversations"}
        entry = {"file_name": file_name, "formatting": "sharegpt", "columns": messages}
        return {**entry, "tags": tags} if tags else entry
    if row_format == "messages":
        return {
            "file_name": file_name,
            "formatting": "sharegpt",
            "columns": {"messages": columns.messages or "messages"},
            "tags": {
                "role_tag": columns.role_tag or "role",
                "content_tag": columns.content_tag or "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    return None


def _columns(formatting: str, columns: dict[str, str], tags: dict[str, str]) -> Columns:
    openai = formatting == "openai"
    usual = {"human": "user", "gpt": "assistant", "observation": "tool"} if openai else {}
    roles = {tags.get(tag, usual.get(name, name)): role for tag, (name, role) in TAG_ROLES.items()}
    if openai:
        roles["tool"] = "tool"
        roles["developer"] = "developer"
    return Columns(
        **columns,
        role_tag=tags.get("role_tag"),
        content_tag=tags.get("content_tag"),
        roles=None if formatting == "alpaca" else roles,
    )


def _entry(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.") from None
    if not isinstance(content, dict) or name not in content:
        known = ", ".join(content) if isinstance(content, dict) else "none"
        raise ValueError(f"{path}: no dataset {name!r}; there are: {known}.")
    return content[name]
