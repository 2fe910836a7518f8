"""What people read of a row: the conversation before the trained answer, and that answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

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


def texts_table(rows: Iterable[PoolRow]) -> pa.Table:
    """Return a line for each row: `instance_id`, `own_id`, `prompt`, `response`.

    `own_id` is what the row itself is called, where that is another id; the texts of a row that
    could not be read are null.
    """
    ids, own_ids, prompts, responses = [], [], [], []
    for row in rows:
        prompt, response = (None, None) if row.example is None else texts_of(row.example)
        ids.append(row.instance_id)
        own_ids.append(row.own_id)
        prompts.append(prompt)
        responses.append(response)
    return pa.table(
        {
            "instance_id": pa.array(ids, pa.string()),
            "own_id": pa.array(own_ids, pa.string()),
            "prompt": pa.array(prompts, pa.large_string()),
            "response": pa.array(responses, pa.large_string()),
        }
    )
