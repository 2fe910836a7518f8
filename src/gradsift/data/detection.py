"""Which row format a file has, and what its fields are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradsift.data.conversations import json_or_value
from gradsift.data.example import RowError
from gradsift.data.formats import SHAREGPT_ROLES, Columns
from gradsift.errors import GradsiftError
from gradsift.utils import few

ROWS_TO_DETECT_FROM = 100
# Dolly has a context beside instruction and response, OpenOrca a system_prompt.
QA_PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)
# Usual names of what rows of a format may have and need not.
OPTIONAL_FIELDS = {
    "alpaca": {"query": "input", "system": "system", "history": "history"},
    "sharegpt": {"system": "system", "tools": "tools"},
    "messages": {"tools": "tools"},
    "prompt_completion": {"tools": "tools"},
    "preference": {"tools": "tools", "system": "system"},
    "qa": {"system": "system_prompt", "query": "context"},
}
# Fields with turns; the last is the first UltraChat's, and holds text alone.
TURNS = ("conversations", "conversation", "data")
# Fields of what a format cannot do without.
USUAL = {
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "alpaca": ("instruction", "output"),
    "preference": ("prompt", "chosen", "rejected"),
}
# Formats that have no question and answer, or no system prompt, to be named by the user.
WITHOUT_PAIR = ("messages", "sharegpt", "text")
WITHOUT_SYSTEM = ("prompt_completion", "text")


def settle_format(
    records: Sequence[Mapping[str, Any]], row_format: str | None, columns: Columns
) -> tuple[str, Columns]:
    """Detect the format if it is not given, and find out the names of its fields.

    The format (a key of ROW_FORMATS) is detected from the first hundred of all readable records;
    `columns` are those named by the user, and come back with the names that occur in the records.
    """
    fields = set().union(*records)
    first = records[:ROWS_TO_DETECT_FROM]
    row_format = row_format or _detect(first, columns)
    _require_useful(columns, row_format, fields)
    if row_format == "qa" and columns.prompt is None:
        prompt, response = _qa_pair(fields) or QA_PAIRS[0]
        columns = replace(columns, prompt=prompt, response=response)
    if row_format == "sharegpt":
        columns = _sharegpt_names(first, columns)
    optional = OPTIONAL_FIELDS.get(row_format, {})
    names = {key: name for key, name in optional.items() if name in fields}
    if row_format == "qa":  # Else a context may be anything.
        names = {k: v for k, v in names.items() if all(_is_text(r.get(v)) for r in first)}
    return row_format, replace(columns, **{k: getattr(columns, k) or v for k, v in names.items()})


def left_out(
    records: Sequence[Mapping[str, Any]], row_format: str, columns: Columns, others: Sequence[str]
) -> list[str]:
    """Return the fields of text that no instance will show, `others` than which are labels."""
    if row_format in ("messages", "sharegpt"):
        return []
    read = {name for name in vars(columns).values() if isinstance(name, str)}
    read |= {*USUAL.get(row_format, ()), *others}
    fields = {
        name
        for record in records[:ROWS_TO_DETECT_FROM]
        for name, value in record.items()
        if isinstance(value, str) and value.strip()
    }
    return sorted(fields - read)


def _qa_pair(fields: Iterable[str]) -> tuple[str, str] | None:
    by_lower = {name.lower(): name for name in fields}
    pair = next((p for p in QA_PAIRS if set(p) <= set(by_lower)), None)
    return None if pair is None else (by_lower[pair[0]], by_lower[pair[1]])


def _detect(first: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    if columns.prompt and columns.response:
        return "qa"
    # The majority decides: a stray row in a file of another format is dropped, with its reason.
    formats = Counter(filter(None, map(_format_of, first))).most_common(1)
    if not formats:
        fields = sorted(set().union(*first))
        semicolons = len(fields) == 1 and ";" in fields[0]
        raise GradsiftError(
            f"the row format is not recognised from the fields {few(fields)}. "
            + ("The columns seem to be separated by ';': save them with commas. " * semicolons)
            + "Known: messages; conversations (sharegpt); prompt + completion; instruction + "
            "output (alpaca); question + answer (qa); chosen + rejected (preference); text. Name "
            "two columns with `prompt_column` and `response_column`, or force one with `format`."
        )
    return formats[0][0]


def _format_of(record: Mapping[str, Any]) -> str | None:
    fields = set(record)
    if {"messages", "conversations"} <= fields:
        raise GradsiftError(
            "the rows have messages and conversations; choose one with `format`: messages or "
            "sharegpt."
        )
    if "messages" in fields:
        return "sharegpt" if "from" in next(iter(_turns(record, "messages")), {}) else "messages"
    if "conversations" in fields or "conversation" in fields or _all_text(record.get("data")):
        return "sharegpt"
    if {"chosen", "rejected"} <= fields:
        return "preference"
    if {"prompt", "completion"} <= fields:
        return "prompt_completion"
    if {"instruction", "output"} <= fields:
        return "alpaca"
    if _qa_pair(fields):
        return "qa"
    return "text" if "text" in fields else None


def _require_useful(columns: Columns, row_format: str, fields: set[str]) -> None:
    if columns.prompt and row_format in WITHOUT_PAIR:
        raise GradsiftError(
            f"rows of format {row_format} have no question and answer column; leave out "
            "`prompt_column` and `response_column`, or set `format` to qa."
        )
    if columns.system and row_format in WITHOUT_SYSTEM:
        raise GradsiftError(f"rows of format {row_format} take no `system_column`; leave it out.")
    if columns.query and row_format not in ("qa", "alpaca"):
        raise GradsiftError(f"rows of format {row_format} take no `context_column`; leave it out.")
    for name in (columns.prompt, columns.query, columns.response, columns.system):
        if name is not None and name not in fields:
            raise GradsiftError(f"no row has a field {name!r}; found {few(fields)}.")


def _sharegpt_names(first: Sequence[Mapping[str, Any]], columns: Columns) -> Columns:
    names = (*TURNS[:2], "messages", TURNS[2])
    messages = next((name for name in names if any(name in record for record in first)), None)
    turns = [turn for record in first for turn in _turns(record, messages)]
    tags = {("from", "value") if "from" in turn else ("role", "content") for turn in turns}
    if len(tags) != 1:
        # Either kind of turn is read, turn by turn.
        return replace(columns, messages=messages)
    role_tag, content_tag = tags.pop()
    # The words of this file stand first, for those who want one word for each role.
    seen = dict.fromkeys(str(turn.get(role_tag)) for turn in turns)
    words = [word for word in seen if word in SHAREGPT_ROLES]
    roles = {word: SHAREGPT_ROLES[word] for word in (*words, *SHAREGPT_ROLES)}
    return replace(
        columns, messages=messages, role_tag=role_tag, content_tag=content_tag, roles=roles
    )


def _turns(record: Mapping[str, Any], name: str | None) -> list[Mapping[str, Any]]:
    try:
        turns = json_or_value(record.get(name), str(name))
    except RowError:  # It is dropped for that when it is read.
        return []
    return [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _all_text(turns: object) -> bool:
    return isinstance(turns, list) and bool(turns) and all(isinstance(t, str) for t in turns)
