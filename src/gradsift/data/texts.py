"""What people read of a row: the conversation before the trained answer, and that answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradsift.data.answers import traits_of
from gradsift.data.example import Example, Plain
from gradsift.data.pool import PoolRow
from gradsift.data.rendering import thinking_of


def texts_of(example: Example) -> tuple[str, str]:
    """Return what stands before the last turn that is trained on, and that turn.

    Several turns are joined, each after the name of its role; what a turn says beside its content
    (thinking, calls of tools as JSON) stands with it.
    """
    if isinstance(example, Plain):
        return example.prompt, example.response
    last = max(at for at, train in enumerate(example.train) if train)
    return _joined(example.messages[:last]), _text_of(example.messages[last])


# As `_joined` begins a turn.
_ROLE = re.compile(r"(?:system|developer|user|assistant|tool): ")


def asked_first(prompt: str) -> str:
    """Return a prompt as one line shows it: of a conversation what the user said last comes first.

    Turns are told by their roles, as `texts_of` joins them; a text that looks so is turned, too.
    """
    if not _ROLE.match(prompt):
        return prompt
    before, turn, asked = f"\n\n{prompt}".rpartition("\n\nuser: ")
    if not turn:
        return prompt
    return f"{asked} (after {before.strip()})" if before.strip() else asked


def _joined(turns: Sequence[Mapping[str, Any]]) -> str:
    if len(turns) == 1 and turns[0]["role"] == "user":
        return _text_of(turns[0])
    return "\n\n".join(f"{turn['role']}: {_text_of(turn)}" for turn in turns)


def _text_of(turn: Mapping[str, Any]) -> str:
    thinking = thinking_of(turn)
    calls = (call["function"] for call in turn.get("tool_calls", ()))
    parts = [
        "" if thinking is None else f"<think>\n{thinking.strip()}\n</think>",
        turn["content"],
        *(json.dumps(call, ensure_ascii=False, default=str) for call in calls),
    ]
    return "\n\n".join(part for part in parts if part)


def lines_of_texts(
    rows: Iterable[PoolRow], languages: Iterable[str | None]
) -> list[dict[str, object]]:
    """Return a line for each row: ids, texts, and what is told of its answer.

    `own_id` is what the row itself is called, where that is another id; texts and traits of a row
    that could not be read are left out. `languages` are those of the answers.
    """
    lines = []
    for row, language in zip(rows, languages, strict=True):
        line: dict[str, object] = {"instance_id": row.instance_id, "own_id": row.own_id}
        if row.example is not None:
            prompt, response = texts_of(row.example)
            said = {"prompt": prompt, "response": response}
            line |= {**said, **traits_of(row.example, language)}
        lines.append(line)
    return lines
