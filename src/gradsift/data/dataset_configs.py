"""How LLaMA-Factory and axolotl are told what a file holds: read, and written for selected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gradsift.data.formats import Columns
from gradsift.errors import GradsiftError

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
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
# Usual names of the turns, and of role and text inside a turn.
TURNS = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}

# axolotl's name for what a file is.
DS_TYPES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    "": "",
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


def write_dataset_configs(selected: Path, row_format: str, columns: Columns) -> list[Path]:
    """Write dataset configs for LLaMA-Factory and axolotl beside a file of selected rows.

    Returns the files written; a trainer that cannot read the format gets none.
    """
    written = []
    entry = dataset_info_entry(selected.name, row_format, columns)
    if entry is not None:
        path = selected.parent / "dataset_info.json"
        path.write_text(json.dumps({"selected": entry}, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    dataset = axolotl_dataset(str(selected), row_format, columns)
    if dataset is not None:
        path = selected.parent / "axolotl.yaml"
        text = yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def dataset_info_entry(file_name: str, row_format: str, columns: Columns) -> dict[str, Any] | None:
    """Return an entry of dataset_info.json, or None where LLaMA-Factory cannot read such a file.

    `text` is for its stage `pt`; the columns are those of `settle_format`.
    """
    if Path(file_name).suffix not in SUFFIXES:
        return None
    usual = USUAL_COLUMNS if row_format == "alpaca" else {}
    named = {key: getattr(columns, key) for key in ("prompt", "query", "response")}
    named |= {"prompt": columns.prompt or usual.get("prompt")}
    named |= {"response": columns.response or usual.get("response")}
    named |= {"system": columns.system, "history": columns.history}
    if row_format in ("alpaca", "qa"):
        return {"file_name": file_name, "columns": {k: v for k, v in named.items() if v}}
    if row_format == "text":
        return {"file_name": file_name, "columns": {"prompt": columns.prompt or "text"}}
    if row_format in ("messages", "sharegpt"):
        return {"file_name": file_name, **_turns_entry(row_format, columns)}
    return None


def axolotl_dataset(path: str, row_format: str, columns: Columns) -> dict[str, Any] | None:
    """Return an entry for axolotl's `datasets:`, or None where it cannot read such rows."""
    suffix = Path(path).suffix
    if suffix not in DS_TYPES:
        return None
    # A folder of save_to_disk is recognised as one when no type is given.
    file = {"path": path} if suffix == "" else {"path": path, "ds_type": DS_TYPES[suffix]}
    if row_format in TURNS:
        return {**file, **_chat_template(row_format, columns)}
    if row_format == "text":
        return {**file, "type": "completion", "field": columns.prompt or "text"}
    if row_format == "qa":
        return {**file, "type": _instruction(columns.prompt, columns.response, columns)}
    if row_format == "alpaca" and not columns.history:
        named = (columns.prompt, columns.response, columns.system)
        if not any(named) and columns.query in (None, "input"):
            return {**file, "type": "alpaca"}
        prompt, response = columns.prompt or "instruction", columns.response or "output"
        return {**file, "type": _instruction(prompt, response, columns)}
    return None


def _turns_entry(row_format: str, columns: Columns) -> dict[str, Any]:
    openai = row_format == "messages"
    messages = columns.messages or ("messages" if openai else "conversations")
    named = {"messages": messages, "system": columns.system, "tools": columns.tools}
    # Only `openai` reads tool_calls inside a turn.
    formatting = "openai" if openai and columns.tools else "sharegpt"
    # A tag that is left out is none at all, once there are tags.
    tags = {
        "role_tag": columns.role_tag or ("role" if openai else "from"),
        "content_tag": columns.content_tag or ("content" if openai else "value"),
    }
    for tag, (tag_role, role) in TAG_ROLES.items():
        usual = role if openai else tag_role
        words = [word for word, meant in (columns.roles or {}).items() if meant == role]
        tags[tag] = words[0] if words else usual
    return {
        "formatting": formatting,
        "columns": {key: value for key, value in named.items() if value},
        "tags": tags,
    }


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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GradsiftError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise GradsiftError(f"{path}: not JSON: {error}.") from None
    if not isinstance(content, dict) or name not in content:
        known = ", ".join(content) if isinstance(content, dict) else "none"
        raise GradsiftError(f"{path}: no dataset {name!r}; there are: {known}.")
    if not isinstance(content[name], dict):
        raise GradsiftError(f"{path}: {name!r} is no object with file_name, formatting, columns.")
    return content[name]


def _chat_template(row_format: str, columns: Columns) -> dict[str, Any]:
    messages, role, content = TURNS[row_format]
    dataset: dict[str, Any] = {
        "type": "chat_template",
        "field_messages": columns.messages or messages,
        "message_property_mappings": {
            "role": columns.role_tag or role,
            "content": columns.content_tag or content,
        },
    }
    if columns.system:
        dataset["field_system"] = columns.system
    if columns.tools:
        dataset["field_tools"] = columns.tools
    if row_format == "messages":
        # Turns of weight 0 are not trained on there either.
        dataset["message_field_training"] = "weight"
    if columns.roles:
        targets = dict.fromkeys(columns.roles.values())
        dataset["roles"] = {
            target: [word for word, role in columns.roles.items() if role == target]
            for target in targets
            if target != "function_call"
        }
    return dataset


def _instruction(prompt: str | None, response: str | None, columns: Columns) -> dict[str, Any]:
    formats = {"format": "{instruction}", "no_input_format": "{instruction}"}
    fields = {"field_instruction": prompt, "field_output": response}
    if columns.query:
        fields["field_input"] = columns.query
        formats["format"] = "{instruction}\n{input}"
    if columns.system:
        fields["field_system"] = columns.system
    return {**fields, **formats}
