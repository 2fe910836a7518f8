"""Rows for OpenAI's fine-tuning API: conversations, `weight: 0` for answers not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradsift.data.example import Chat
from gradsift.data.exports.rows import (
    CannotSayError,
    Exported,
    ExportRow,
    Notes,
    Setup,
    as_text,
    note_template_kwargs,
    say_rows,
    upto_last_answer,
    without_fields,
    write_lines,
)
from gradsift.files import write_text

FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal")
# What the API takes at least.
FEWEST = 10

SCRIPT = '''\
"""Starts a fine-tuning job on {file}; needs the package openai and OPENAI_API_KEY."""

import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit("give the model to fine-tune, one that the API offers for it")
client = OpenAI()
with (Path(__file__).resolve().parent / "{file}").open("rb") as rows:
    uploaded = client.files.create(file=rows, purpose="fine-tune")
print(client.fine_tuning.jobs.create(training_file=uploaded.id, model=sys.argv[1]).id)
'''


def write_openai(rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows and a script that uploads them and starts a job."""
    done, notes = say_rows(rows, _record, "openai")
    file = write_lines(folder / "openai.jsonl", (record for _, record in done))
    # Not openai.py: beside it, `import openai` would find it.
    script = folder / "train_openai.py"
    write_text(script, SCRIPT.format(file=file.name))
    few = [] if len(done) >= FEWEST else [f"{len(done)} rows: the API takes {FEWEST} or more"]
    return Exported((file, script), len(done), (*notes.lines(), *few))


def _record(row: ExportRow, notes: Notes) -> dict[str, Any]:
    if not isinstance(row.example, Chat):
        raise CannotSayError("plain text, where its form takes conversations only")
    note_template_kwargs(row, notes)
    example = upto_last_answer(row, notes)
    waiting: list[str] = []
    messages = []
    for i, (message, train) in enumerate(zip(example.messages, example.train, strict=True)):
        turn = without_fields(row, message, FIELDS, notes)
        if turn.get("tool_calls"):
            turn["tool_calls"] = _calls(turn["tool_calls"], i)
            waiting = [call["id"] for call in turn["tool_calls"]]
            if not turn.get("content"):
                turn.pop("content", None)
        if turn.get("function_call"):
            call = turn["function_call"]
            turn["function_call"] = {**call, "arguments": as_text(call.get("arguments", {}))}
        if turn["role"] == "tool":
            turn["tool_call_id"] = _answered(turn.get("tool_call_id"), waiting)
        if turn["role"] == "assistant" and not train:
            turn["weight"] = 0
        messages.append(turn)
    tools = {"tools": [_schema(tool) for tool in example.tools]} if example.tools else {}
    return {"messages": messages, **tools}


def _calls(calls: Sequence[dict[str, Any]], i: int) -> list[dict[str, Any]]:
    return [
        {
            "id": call.get("id") or f"call_{i}_{n}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": as_text(call["function"].get("arguments") or {}),
            },
        }
        for n, call in enumerate(calls)
    ]


def _answered(said_id: str | None, waiting: list[str]) -> str:
    # Rows without ids answer calls in their order.
    if said_id is not None and said_id in waiting:
        waiting.remove(said_id)
        return said_id
    if not waiting or said_id is not None:
        raise CannotSayError("a tool's turn answers no call before it")
    return waiting.pop(0)


def _schema(tool: Any) -> Any:
    bare = isinstance(tool, dict) and "function" not in tool and "name" in tool
    if not bare:
        return tool
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
