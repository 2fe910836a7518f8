"""Which row format a file has, and what its fields are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradsift.data.conversations import json_or_value
from gradsift.data.example import RowError
from gradsift.data.formats import SHAREGPT_ROLES, Columns
from gradsift.errors import GradsiftError
from gradsift.wording import few

ROWS_TO_DETECT_FROM = 100
QA_PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("prompt", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)
# Fields with turns; the last is the first UltraChat's, and holds text alone.
TURNS = ("conversations", "conversation", "data")
# Usual names of what rows of a format may have and need not, the likeliest first.
SYSTEM, TOOLS = ("system", "system_prompt"), ("tools", "functions")
OPTIONAL_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    # Dolly has a context beside instruction and response.
    "alpaca": {
        "query": ("input", "context"),
        "response": ("output", "response"),
        "system": SYSTEM,
        "history": ("history",),
    },
    "sharegpt": {"system": SYSTEM, "tools": TOOLS},
    "messages": {"system": SYSTEM, "tools": TOOLS},
    "prompt_completion": {"tools": TOOLS},
    "preference": {
        "prompt": ("prompt", "question", "instruction", "query", "input"),
        "messages": TURNS[:2],
        "tools": TOOLS,
        "system": SYSTEM,
    },
    "qa": {"system": SYSTEM, "query": ("context",), "history": ("history",)},
}
# What such a field holds is for the model, whatever it is.
FOR_THE_MODEL = re.compile(r"system|function|tool|histor|instruction|context|knowledge|document")
# Fields of what a format cannot do without.
USUAL = {
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
}
# Columns that hold text.
TEXTS = ("query", "response", "system")
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
    for key, names in OPTIONAL_FIELDS.get(row_format, {}).items():
        if getattr(columns, key) is None:
            free = (name for name in names if name in fields and name not in columns.names())
            name = next((n for n in free if key not in TEXTS or _are_texts(first, n)), None)
            columns = replace(columns, **{key: name})
    if row_format == "preference" and columns.prompt == "instruction" and "input" in fields:
        columns = replace(columns, query="input")
    return row_format, columns


def left_out(
    records: Sequence[Mapping[str, Any]], row_format: str, columns: Columns, others: Sequence[str]
) -> list[str]:
    """Return the fields that no instance will show though they look like it.

    Text, except beside turns, and what is called as if it were for the model; `others` are labels.
    """
    read = {*columns.names(), *USUAL.get(row_format, ()), *others, "chat_template_kwargs"}
    has_turns = row_format in ("messages", "sharegpt", "preference")

    def looks_like_it(name: str, value: object) -> bool:
        is_text = isinstance(value, str) and bool(value.strip())
        is_meant = value not in (None, "", [], {}) and FOR_THE_MODEL.search(name.lower())
        return bool(is_meant) or (is_text and not has_turns)

    return sorted(
        {
            name
            for record in records[:ROWS_TO_DETECT_FROM]
            for name, value in record.items()
            if name not in read and looks_like_it(name, value)
        }
    )


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
    if {"chosen", "rejected"} <= fields:
        return "preference"
    if "messages" in fields:
        return "sharegpt" if "from" in next(iter(_turns(record, "messages")), {}) else "messages"
    if "conversations" in fields or "conversation" in fields or _all_text(record.get("data")):
        return "sharegpt"
    if {"prompt", "completion"} <= fields:
        return "prompt_completion"
    if "instruction" in fields and fields & {"output", "response"}:
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


def _are_texts(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(record.get(name), str | None) for record in records)


def _all_text(turns: object) -> bool:
    return isinstance(turns, list) and bool(turns) and all(isinstance(t, str) for t in turns)
