"""The row formats of the SFT community: read a record as an example, or say why it is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import Chat, Example, Plain, RowError, require_trainable

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Names of turns in ShareGPT files, as found in the wild, and what templates call them.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "function_call",
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


def parse_record(
    record: Mapping[str, Any], row_format: str, columns: Columns, train_on: str
) -> Example:
    """Read a record as an example with something to train on, or raise a RowError.

    `row_format` is a key of ROW_FORMATS; `train_on` is "all" assistant turns, or only the "last".
    """
    example = ROW_FORMATS[row_format](record, columns)
    if isinstance(example, Chat) and train_on == "last":
        last = max((i for i, train in enumerate(example.train) if train), default=-1)
        train = tuple(i == last for i in range(len(example.train)))
        example = Chat(example.messages, train, example.tools)
    return require_trainable(example)


def _prompt_completion(record: Mapping[str, Any], columns: Columns) -> Example:
    prompt = _require(record, columns.prompt or "prompt")
    completion = _require(record, columns.response or "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Plain(prompt, completion)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise RowError(
            "wrong_type",
            f"prompt is {_type_name(prompt)} and completion {_type_name(completion)}; both "
            "must be text, or both lists of messages",
        )
    before, _ = _openai_turns(prompt)
    after, train = _openai_turns(completion)
    tools = _tool_schemas(record, columns.tools)
    return Chat((*before, *after), (*[False] * len(before), *train), tools)


def _messages(record: Mapping[str, Any], columns: Columns) -> Example:
    turns = _require_list(record, columns.messages or "messages")
    messages, train = _openai_turns(turns, columns)
    system = _system_turn(record, columns, messages)
    messages, train = (*system, *messages), (*[False] * len(system), *train)
    return Chat(messages, train, _tool_schemas(record, columns.tools))


def _text(record: Mapping[str, Any], columns: Columns) -> Example:
    return Plain("", _require_text(record, columns.prompt or "text"))


def _alpaca(record: Mapping[str, Any], columns: Columns) -> Example:
    # As LLaMA-Factory reads it: instruction and input joined by a line break, history before them.
    prompt = _require_text(record, columns.prompt or "instruction")
    query = _optional_text(record, columns.query)
    messages = _system_turn(record, columns)
    history = record.get(columns.history) if columns.history else None
    for pair in history if isinstance(history, list) else [history] if history else []:
        texts = isinstance(pair, list) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) != 2:
            raise RowError("wrong_type", "history must hold [question, answer] pairs of text")
        messages += _turn_pair(*pair)
    content = "\n".join(part for part in (prompt, query) if part)
    messages += _turn_pair(content, _require_text(record, columns.response or "output"))
    return _chat(messages, None)


def _sharegpt(record: Mapping[str, Any], columns: Columns) -> Example:
    name = columns.messages or next(
        (n for n in ("conversations", "conversation") if n in record), "conversations"
    )
    roles = SHAREGPT_ROLES if columns.roles is None else columns.roles
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(_require_list(record, name)):
        _require_object(turn, i)
        role_tag = columns.role_tag or ("from" if "from" in turn else "role")
        content_tag = columns.content_tag or ("value" if "value" in turn else "content")
        word, content = _require_text(turn, role_tag), _require_text(turn, content_tag)
        if word not in roles:
            raise RowError(
                "unknown_role", f"turn {i} is from {word!r}; known are {', '.join(roles)}"
            )
        messages.append(_sharegpt_turn(roles[word], content))
    messages = [*_system_turn(record, columns, messages), *messages]
    return _chat(messages, _tool_schemas(record, columns.tools))


def _qa(record: Mapping[str, Any], columns: Columns) -> Example:
    question = _require_text(record, columns.prompt)
    answer = _require_text(record, columns.response)
    return _chat([*_system_turn(record, columns), *_turn_pair(question, answer)], None)


# One function for each format, from a record to an example.
ROW_FORMATS: dict[str, Callable[[Mapping[str, Any], Columns], Example]] = {
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "text": _text,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "qa": _qa,
}


def _openai_turns(
    turns: list[Any], columns: Columns = Columns()
) -> tuple[tuple[dict[str, Any], ...], tuple[bool, ...]]:
    role_tag, content_tag = columns.role_tag or "role", columns.content_tag or "content"
    messages, train = [], []
    for i, turn in enumerate(turns):
        _require_object(turn, i)
        word = _require_text(turn, role_tag)
        role = word if columns.roles is None else columns.roles.get(word)
        if role == "function_call":
            messages.append(_sharegpt_turn(role, _require_text(turn, content_tag)))
            train.append(True)
            continue
        if role not in ROLES:
            known = ", ".join(ROLES if columns.roles is None else columns.roles)
            raise RowError("unknown_role", f"turn {i} has role {word!r}; known are {known}")
        content = _content_text(turn.get(content_tag), i)
        if content is None and not turn.get("tool_calls"):
            raise RowError("missing_field", f"turn {i} has neither {content_tag} nor tool_calls")
        # Parquet fills absent fields of a turn with nulls; templates must not see them.
        rest = {k: v for k, v in turn.items() if v is not None and k not in (role_tag, "weight")}
        rest.pop(content_tag, None)
        messages.append({"role": role, "content": "" if content is None else content, **rest})
        train.append(role == "assistant" and turn.get("weight") != 0)
    return tuple(messages), tuple(train)


def _content_text(content: object, i: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(texts)
        kinds = sorted({str(part.get("type")) for part in content})
        raise RowError("wrong_type", f"turn {i} holds {kinds}; only text is supported")
    raise RowError("wrong_type", f"turn {i}: content is {_type_name(content)}, expected text")


def _sharegpt_turn(role: str, content: str) -> dict[str, Any]:
    if role != "function_call":
        return {"role": role, "content": content}
    try:
        call = json.loads(content)
    except (ValueError, RecursionError):
        raise RowError("wrong_type", "a function_call turn does not hold JSON") from None
    calls = call if isinstance(call, list) else [call]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowError("wrong_type", "a function_call turn holds no object with name and arguments")
    tool_calls = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def _system_turn(
    record: Mapping[str, Any], columns: Columns, messages: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    # As LLaMA-Factory does: a system turn of its own is worth more than the field.
    system = _optional_text(record, columns.system)
    if not system or (messages and messages[0]["role"] in ("system", "developer")):
        return []
    return [{"role": "system", "content": system}]


def _chat(messages: list[dict[str, Any]], tools: list[Any] | None) -> Chat:
    return Chat(tuple(messages), tuple(m["role"] == "assistant" for m in messages), tools)


def _turn_pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _type_name(value: object) -> str:
    # What a user calls the type of a value.
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


def _require(record: Mapping[str, Any], name: str) -> Any:
    # A field that must be there and not null.
    if record.get(name) is None:
        raise RowError("missing_field", f"no field {name!r}; found {sorted(record)}")
    return record[name]


def _require_object(turn: object, i: int) -> None:
    if not isinstance(turn, dict):
        raise RowError("wrong_type", f"turn {i} is {_type_name(turn)}, expected an object")


def _require_text(record: Mapping[str, Any], name: str) -> str:
    value = _require(record, name)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {_type_name(value)}, expected text")
    return value


def _require_list(record: Mapping[str, Any], name: str) -> list[Any]:
    value = _require(record, name)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {_type_name(value)}, expected a list")
    return value


def _optional_text(record: Mapping[str, Any], name: str | None) -> str | None:
    return None if name is None or record.get(name) is None else _require_text(record, name)


def _tool_schemas(record: Mapping[str, Any], name: str | None) -> list[Any] | None:
    # A list, or JSON text of one.
    schemas = None if name is None else record.get(name)
    if isinstance(schemas, str) and schemas.strip():
        try:
            schemas = json.loads(schemas)
        except (ValueError, RecursionError):
            raise RowError("wrong_type", f"{name} is text but not JSON") from None
    if not schemas:
        return None
    if not isinstance(schemas, list):
        raise RowError("wrong_type", f"{name} is {_type_name(schemas)}, expected a list")
    return schemas
