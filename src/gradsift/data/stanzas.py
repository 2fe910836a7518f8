"""What to paste into a trainer's configuration to train on the selected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from gradsift.data.formats import Columns
from gradsift.data.llamafactory import dataset_info_entry

# Usual names of the turns, and of role and text inside a turn.
TURNS = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}


def write_stanzas(selected: Path, row_format: str, columns: Columns) -> list[Path]:
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
    suffix = Path(path).suffix.lstrip(".")
    file = {"path": path, "ds_type": {"jsonl": "json", "ndjson": "json"}.get(suffix, suffix)}
    if row_format in TURNS:
        messages, role, content = TURNS[row_format]
        return {
            **file,
            "type": "chat_template",
            "field_messages": columns.messages or messages,
            "message_property_mappings": {
                "role": columns.role_tag or role,
                "content": columns.content_tag or content,
            },
        }
    if row_format == "alpaca" and not (columns.prompt or columns.response):
        return {**file, "type": "alpaca"}
    if row_format == "text":
        return {**file, "type": "completion", "field": "text"}
    if row_format == "qa":
        prompt, response = columns.prompt, columns.response
        fields = {"field_instruction": prompt, "field_output": response}
        formats = {"format": "{instruction}", "no_input_format": "{instruction}"}
        return {**file, "type": {**fields, **formats}}
    return None
