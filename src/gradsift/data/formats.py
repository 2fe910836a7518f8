"""The row formats of the SFT community: read a record as an example, or say why it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradsift.data.conversations import (
    FLAGS,
    LIKE_A_FLAG,
    OPENAI,
    TurnNames,
    json_or_value,
    normal_tools,
    normal_turns,
    require,
    require_flat,
    require_object,
    require_text,
    type_name,
    without_nulls,
)
from gradsift.data.example import THINKING_FIELDS, Chat, Example, Plain, RowError, require_trainable
from gradsift.data.rendering import NOT_OF_A_TEMPLATE

# Names of turns in ShareGPT files, as found in the wild, and what templates call them.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
# Fields of a ShareGPT turn that say something, beside those that have other names.
OF_A_TURN = (*FLAGS, *THINKING_FIELDS, "tool_calls", "function_call", "tool_call_id", "name")
# How HH-RLHF writes a conversation into one text.
TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
# What is said once of all rows of a format.
FORMAT_NOTES = {
    "preference": "of the preference rows the chosen answer is trained on, the rejected one is "
    "left out",
}


@dataclass(frozen=True)
class Columns:
    """Names of the fields that a format reads.

    None means the usual name for what a format cannot do without, and "these rows have none" for
    input, system prompt, history and tools.

    Attributes:
        prompt: Of the question, or Alpaca's instruction.
        query: Of Alpaca's input.
        response: Of the answer, or Alpaca's output.
        history: Of Alpaca's earlier turns.
        messages: Of the list of turns.
        role_tag: Inside a turn, the field with the role.
        content_tag: Inside a turn, the field with the text.
        roles: What the file calls its roles → what templates call them; None means the usual.
    """

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    system: str | None = None
    history: str | None = None
    messages: str | None = None
    tools: str | None = None
    role_tag: str | None = None
    content_tag: str | None = None
    roles: Mapping[str, str] | None = None

    def names(self) -> set[str]:
        """Return all names that are known."""
        return {name for name in vars(self).values() if isinstance(name, str)}


@dataclass(frozen=True)
class Reader:
    """How records of a pool are read.

    Attributes:
        row_format: A key of ROW_FORMATS.
        train_on: "all" assistant turns, or only the "last".
        filled: Whether rows come from a table, which fills absent fields with null.
    """

    row_format: str
    columns: Columns
    train_on: str
    filled: bool = False

    def parse(self, record: Mapping[str, Any]) -> Example:
        """Read a record as an example with something to train on, or raise a RowError."""
        _require_wanted(record)
        example = ROW_FORMATS[self.row_format](record, self)
        example = replace(example, remarks=(*example.remarks, *_beside_the_turns(record)))
        if isinstance(example, Chat):
            example = replace(example, template_kwargs=self._template_kwargs(record))
            if self.train_on == "last":
                last = max((i for i, train in enumerate(example.train) if train), default=-1)
                example = replace(
                    example, train=tuple(i == last for i in range(len(example.train)))
                )
        return require_trainable(example)

    def chat(
        self,
        record: Mapping[str, Any],
        *parts: Sequence[Any],
        names: TurnNames = OPENAI,
        trained: int | None = None,
        source: object = None,
    ) -> Chat:
        """Return a conversation of one part or more; only turns of part `trained` have a loss.

        `source` is the field that they come from: into JSON text a table fills no nulls.
        """
        tools = self.tools(record)
        filled = self.filled and not isinstance(source, str)
        read = [normal_turns(part, names, tools or (), filled=filled) for part in parts]
        messages = [message for turns in read for message in turns.messages]
        train = [
            has_loss and trained in (None, at)
            for at, turns in enumerate(read)
            for has_loss in turns.train
        ]
        system = self._system_turn(record, messages)
        remarks = tuple(dict.fromkeys(remark for turns in read for remark in turns.remarks))
        return Chat((*system, *messages), (*[False] * len(system), *train), tools, remarks=remarks)

    def turn_names(self, role: str = "role", content: str = "content") -> TurnNames:
        """Return what turns call their fields, by the names given for the pool or else these."""
        roles = OPENAI.roles if self.columns.roles is None else self.columns.roles
        return TurnNames(self.columns.role_tag or role, self.columns.content_tag or content, roles)

    def tools(self, record: Mapping[str, Any]) -> list[Any] | None:
        """Return the tool schemas of a record."""
        name = self.columns.tools
        return None if name is None else normal_tools(record.get(name), name, filled=self.filled)

    def _system_turn(
        self, record: Mapping[str, Any], messages: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        # As LLaMA-Factory does: a system turn of its own is worth more than the field.
        system = _optional_text(record, self.columns.system)
        if not system or (messages and messages[0]["role"] in ("system", "developer")):
            return []
        return [{"role": "system", "content": system}]

    def _template_kwargs(self, record: Mapping[str, Any]) -> dict[str, Any]:
        given = json_or_value(record.get("chat_template_kwargs"), "chat_template_kwargs")
        if given is None or given == "":
            return {}
        if not isinstance(given, dict):
            raise RowError(
                "wrong_type", f"chat_template_kwargs is {type_name(given)}, expected an object"
            )
        if own := sorted(set(given) & set(NOT_OF_A_TEMPLATE)):
            raise RowError("wrong_type", f"chat_template_kwargs may not hold {', '.join(own)}")
        require_flat(given, "chat_template_kwargs")
        is_filled = self.filled and not isinstance(record["chat_template_kwargs"], str)
        return without_nulls(given) if is_filled else given


def _require_wanted(record: Mapping[str, Any]) -> None:
    # As KTO writes it; a number may be the label of a class.
    label = record.get("label")
    if label is False or (isinstance(label, str) and label.strip().lower() == "false"):
        raise RowError("unwanted_answer", f"its label is {label!r}: an answer not to give")


def _beside_the_turns(record: Mapping[str, Any]) -> list[str]:
    remarks = []
    if record.get("label") in (0, "0"):  # False has been refused.
        remarks.append("their label is 0, which is not taken for an answer not to give")
    if record.get("weight") is not None:
        remarks.append("they have a weight beside the turns, which is not followed")
    return remarks


def _prompt_completion(record: Mapping[str, Any], reader: Reader) -> Example:
    columns = reader.columns
    prompt = _turns_or_text(require(record, columns.prompt or "prompt"))
    completion = _turns_or_text(require(record, columns.response or "completion"))
    if isinstance(prompt, list) and isinstance(completion, list):
        source = record[columns.response or "completion"]
        return reader.chat(record, prompt, completion, trained=1, source=source)
    if isinstance(prompt, str) and isinstance(completion, str):
        return Plain(prompt, completion)
    raise RowError(
        "wrong_type",
        f"prompt is {type_name(prompt)} and completion {type_name(completion)}; both "
        "must be text, or both lists of messages",
    )


def _messages(record: Mapping[str, Any], reader: Reader) -> Example:
    name = reader.columns.messages or "messages"
    turns = _require_list(record, name)
    return reader.chat(record, turns, names=reader.turn_names(), source=record[name])


def _preference(record: Mapping[str, Any], reader: Reader) -> Example:
    # As trl's DPOTrainer takes them, with the prompt apart or inside both answers; as
    # LLaMA-Factory does, with the turns before the answer in conversations.
    columns = reader.columns
    chosen = _turns_or_text(require(record, columns.response or "chosen"))
    before = _turns_or_text(record.get(columns.messages or columns.prompt or "prompt"))
    if isinstance(before, str):
        before = [{"role": "user", "content": _question(record, columns, "prompt")}]
    if isinstance(chosen, str):
        chosen = _transcript(chosen, before)
    chosen = [chosen] if isinstance(chosen, dict) else chosen
    for name, turns in (("chosen", chosen), ("prompt", before or [])):
        if not isinstance(turns, list):
            raise RowError("wrong_type", f"{name} is {type_name(turns)}, expected text or messages")
    names = TurnNames("role", "content", {**OPENAI.roles, **SHAREGPT_ROLES})
    chosen, before = (_in_openai_words(turns, columns) for turns in (chosen, before or []))
    if any(turn["role"] in ("user", "human") for turn in chosen):
        before = []
    elif not before:
        raise RowError("missing_field", "there is no prompt beside chosen, nor inside it")
    # Of a conversation that both share, the last turn is what was chosen.
    *before, answer = [*before, *chosen]
    source = record[columns.response or "chosen"]
    return reader.chat(record, before, [answer], names=names, trained=1, source=source)


def _turns_or_text(value: Any) -> Any:
    # Turns may come as JSON text; text that only looks like JSON is text.
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            turns = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if all(isinstance(turn, dict) and "role" in turn for turn in turns):
            return turns
    return value


def _transcript(text: str, prompt: object) -> list[dict[str, Any]]:
    if prompt is not None or not TRANSCRIPT.match(text):
        return [{"role": "assistant", "content": text}]
    _, *pieces = TRANSCRIPT.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[word], "content": content}
        for word, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _text(record: Mapping[str, Any], reader: Reader) -> Example:
    return Plain("", require_text(record, reader.columns.prompt or "text"))


def _alpaca(record: Mapping[str, Any], reader: Reader) -> Example:
    # As LLaMA-Factory reads it: instruction and input joined by a line break, history before them.
    columns = reader.columns
    history = json_or_value(record.get(columns.history), "history") if columns.history else None
    turns: list[dict[str, Any]] = []
    for pair in history if isinstance(history, list) else [history] if history else []:
        texts = isinstance(pair, list) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) != 2:
            raise RowError("wrong_type", "history must hold [question, answer] pairs of text")
        turns += _turn_pair(*pair)
    question = _question(record, columns, "instruction")
    answer = require_text(record, columns.response or "output")
    return reader.chat(record, [*turns, *_turn_pair(question, answer)])


def _question(record: Mapping[str, Any], columns: Columns, name: str) -> str:
    parts = require_text(record, columns.prompt or name), _optional_text(record, columns.query)
    return "\n".join(part for part in parts if part)


def _sharegpt(record: Mapping[str, Any], reader: Reader) -> Example:
    columns = reader.columns
    name = columns.messages or next(
        (n for n in ("conversations", "conversation") if n in record), "conversations"
    )
    turns = _require_list(record, name)
    if all(isinstance(turn, str) for turn in turns):
        # LIMA and the first UltraChat: whose turn it is goes without saying.
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        return reader.chat(record, turns)
    roles = SHAREGPT_ROLES if columns.roles is None else columns.roles
    names = TurnNames("role", "content", roles)
    turns = _in_openai_words(turns, columns)
    return reader.chat(record, turns, names=names, source=record[name])


def _in_openai_words(turns: Sequence[Any], columns: Columns) -> list[dict[str, Any]]:
    # The fields of each turn by the names that it has.
    renamed = []
    for i, turn in enumerate(turns):
        require_object(turn, i)
        role_tag = columns.role_tag or ("from" if "from" in turn else "role")
        content_tag = columns.content_tag or ("value" if "value" in turn else "content")
        role = require_text(turn, role_tag)
        content = turn.get(content_tag) if turn.get("tool_calls") else require(turn, content_tag)
        rest = {k: v for k, v in turn.items() if k in OF_A_TURN or LIKE_A_FLAG.search(k.lower())}
        renamed.append({**rest, "role": role, "content": content})
    return renamed


# One function for each format, from a record to an example.
ROW_FORMATS: dict[str, Callable[[Mapping[str, Any], Reader], Example]] = {
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "preference": _preference,
    "text": _text,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "qa": _alpaca,
}


def _turn_pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _require_list(record: Mapping[str, Any], name: str) -> list[Any]:
    value = json_or_value(require(record, name), name)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected a list")
    return value


def _optional_text(record: Mapping[str, Any], name: str | None) -> str | None:
    return None if name is None or record.get(name) is None else require_text(record, name)
