"""What to paste into a trainer's configuration to train on the selected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from gradsift.data.dataset_info import dataset_info_entry
from gradsift.data.formats import Columns

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


def write_dataset_configs(selected: Path, row_format: str, columns: Columns) -> list[Path]:
    """Write stanzas for LLaMA-Factory and axolotl beside a file of selected rows.

    Args:
        selected: The file or folder of selected rows.
        row_format: Format of its rows.
        columns: Names of its fields.

    Returns:
        The files written; a trainer that cannot read the format gets none.
    """
    written = []
    entry = dataset_info_entry(selected.name, row_format, columns)
    if entry is not None:
        path = selected.parent / "dataset_info.json"
        path.write_text(json.dumps({"selected": entry}, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    stanza = axolotl_dataset(str(selected), row_format, columns)
    if stanza is not None:
        path = selected.parent / "axolotl.yaml"
        text = yaml.safe_dump({"datasets": [stanza]}, sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def axolotl_dataset(path: str, row_format: str, columns: Columns) -> dict[str, Any] | None:
    """Return an entry for axolotl's `datasets:`.

    Args:
        path: The file of selected rows.
        row_format: Format of its rows.
        columns: Names of its fields.

    Returns:
        The entry, or None where axolotl cannot read that format as it is.
    """
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


def _chat_template(row_format: str, columns: Columns) -> dict[str, Any]:
    messages, role, content = TURNS[row_format]
    stanza: dict[str, Any] = {
        "type": "chat_template",
        "field_messages": columns.messages or messages,
        "message_property_mappings": {
            "role": columns.role_tag or role,
            "content": columns.content_tag or content,
        },
    }
    if columns.system:
        stanza["field_system"] = columns.system
    if columns.tools:
        stanza["field_tools"] = columns.tools
    if row_format == "messages":
        # Turns of weight 0 are not trained on there either.
        stanza["message_field_training"] = "weight"
    if columns.roles:
        targets = dict.fromkeys(columns.roles.values())
        stanza["roles"] = {
            target: [word for word, role in columns.roles.items() if role == target]
            for target in targets
            if target != "function_call"
        }
    return stanza


def _instruction(prompt: str | None, response: str | None, columns: Columns) -> dict[str, Any]:
    formats = {"format": "{instruction}", "no_input_format": "{instruction}"}
    fields = {"field_instruction": prompt, "field_output": response}
    if columns.query:
        fields["field_input"] = columns.query
        formats["format"] = "{instruction}\n{input}"
    if columns.system:
        fields["field_system"] = columns.system
    return {**fields, **formats}
