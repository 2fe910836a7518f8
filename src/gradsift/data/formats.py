"""Take a field out of a record, or say as a RowError what is wrong with it.

The row formats of the SFT community: read a record as an example.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import Chat, Example, Plain, RowError, require_trainable


def require(record: Mapping[str, Any], name: str) -> Any:
    """Return a field that must be there and not null.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field.
    """
    if record.get(name) is None:
        raise RowError("missing_field", f"no field {name!r}; found {sorted(record)}")
    return record[name]


def require_text(record: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field or wrong_type.
    """
    value = require(record, name)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected text")
    return value


def require_list(record: Mapping[str, Any], name: str) -> list[Any]:
    """Return a field that must be a list.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field or wrong_type.
    """
    value = require(record, name)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected a list")
    return value


def optional_text(record: Mapping[str, Any], name: str | None) -> str | None:
    """Return a field that must be text if it has a name, is there and is not null."""
    return None if name is None or record.get(name) is None else require_text(record, name)


def tool_schemas(record: Mapping[str, Any], name: str | None) -> list[Any] | None:
    """Return tool schemas, a list or JSON text of one.

    Args:
        record: Fields by name.
        name: Of the field; None where the rows have none.

    Returns:
        The schemas, or None where there are none.

    Raises:
        RowError: wrong_type.
    """
    schemas = None if name is None else record.get(name)
    if isinstance(schemas, str) and schemas.strip():
        try:
            schemas = json.loads(schemas)
        except (ValueError, RecursionError):
            raise RowError("wrong_type", f"{name} is text but not JSON") from None
    if not schemas:
        return None
    if not isinstance(schemas, list):
        raise RowError("wrong_type", f"{name} is {type_name(schemas)}, expected a list")
    return schemas


def type_name(value: object) -> str:
    """Return what a user calls the type of a value."""
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


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
        system: Of a system prompt.
        history: Of Alpaca's earlier turns.
        messages: Of the list of turns.
        tools: Of the tool schemas.
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
    """Read a record as an example.

    Args:
        record: One row of the file.
        row_format: A key of ROW_FORMATS.
        columns: Names of fields where they differ from the usual.
        train_on: "all" assistant turns, or only the "last".

    Returns:
        The example, with something to train on.

    Raises:
        RowError: With the reason why there is none.
    """
    example = ROW_FORMATS[row_format](record, columns)
    if isinstance(example, Chat) and train_on == "last":
        last = max((i for i, train in enumerate(example.train) if train), default=-1)
        train = tuple(i == last for i in range(len(example.train)))
        example = Chat(example.messages, train, example.tools)
    return require_trainable(example)


def _prompt_completion(record: Mapping[str, Any], columns: Columns) -> Example:
    prompt = require(record, columns.prompt or "prompt")
    completion = require(record, columns.response or "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Plain(prompt, completion)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise RowError(
            "wrong_type",
            f"prompt is {type_name(prompt)} and completion {type_name(completion)}; both "
            "must be text, or both lists of messages",
        )
    before, _ = _openai_turns(prompt)
    after, train = _openai_turns(completion)
    tools = tool_schemas(record, columns.tools)
    return Chat((*before, *after), (*[False] * len(before), *train), tools)


def _messages(record: Mapping[str, Any], columns: Columns) -> Example:
    turns = require_list(record, columns.messages or "messages")
    messages, train = _openai_turns(turns, columns)
    system = optional_text(record, columns.system)
    if system and not _opens_with_system(messages):
        messages, train = ({"role": "system", "content": system}, *messages), (False, *train)
    return Chat(messages, train, tool_schemas(record, columns.tools))


def _text(record: Mapping[str, Any], columns: Columns) -> Example:
    return Plain("", require_text(record, columns.prompt or "text"))


def _alpaca(record: Mapping[str, Any], columns: Columns) -> Example:
    # As LLaMA-Factory reads it: instruction and input joined by a line break, history before them.
    prompt = require_text(record, columns.prompt or "instruction")
    query = optional_text(record, columns.query)
    messages: list[dict[str, Any]] = []
    system = optional_text(record, columns.system)
    if system:
        messages.append({"role": "system", "content": system})
    history = record.get(columns.history) if columns.history else None
    for pair in history if isinstance(history, list) else [history] if history else []:
        texts = isinstance(pair, list) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) != 2:
            raise RowError("wrong_type", "history must hold [question, answer] pairs of text")
        messages += _turn_pair(*pair)
    content = "\n".join(part for part in (prompt, query) if part)
    messages += _turn_pair(content, require_text(record, columns.response or "output"))
    return _chat(messages, None)


def _sharegpt(record: Mapping[str, Any], columns: Columns) -> Example:
    name = columns.messages or next(
        (n for n in ("conversations", "conversation") if n in record), "conversations"
    )
    roles = SHAREGPT_ROLES if columns.roles is None else columns.roles
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(require_list(record, name)):
        if not isinstance(turn, dict):
            raise RowError("wrong_type", f"turn {i} is {type_name(turn)}, expected an object")
        role_tag = columns.role_tag or ("from" if "from" in turn else "role")
        content_tag = columns.content_tag or ("value" if "value" in turn else "content")
        said, content = require_text(turn, role_tag), require_text(turn, content_tag)
        if said not in roles:
            raise RowError(
                "unknown_role", f"turn {i} is from {said!r}; known are {', '.join(roles)}"
            )
        messages.append(_sharegpt_turn(roles[said], content))
    system = optional_text(record, columns.system)
    if system and not _opens_with_system(messages):
        # As LLaMA-Factory does: a system turn of its own is worth more than the field.
        messages.insert(0, {"role": "system", "content": system})
    return _chat(messages, tool_schemas(record, columns.tools))


def _qa(record: Mapping[str, Any], columns: Columns) -> Example:
    question = require_text(record, columns.prompt)
    answer = require_text(record, columns.response)
    messages = _turn_pair(question, answer)
    system = optional_text(record, columns.system)
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return _chat(messages, None)


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
        if not isinstance(turn, dict):
            raise RowError("wrong_type", f"turn {i} is {type_name(turn)}, expected an object")
        said = require_text(turn, role_tag)
        role = said if columns.roles is None else columns.roles.get(said)
        if role == "function_call":
            messages.append(_sharegpt_turn(role, require_text(turn, content_tag)))
            train.append(True)
            continue
        if role not in ROLES:
            known = ", ".join(ROLES if columns.roles is None else columns.roles)
            raise RowError("unknown_role", f"turn {i} has role {said!r}; known are {known}")
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
    raise RowError("wrong_type", f"turn {i}: content is {type_name(content)}, expected text")


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


def _opens_with_system(messages: Sequence[dict[str, Any]]) -> bool:
    return bool(messages) and messages[0]["role"] in ("system", "developer")


def _chat(messages: list[dict[str, Any]], tools: list[Any] | None) -> Chat:
    return Chat(tuple(messages), tuple(m["role"] == "assistant" for m in messages), tools)


def _turn_pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
