"""One normal form of a conversation, whatever shape a file gives it.

Turns are as OpenAI writes them, `arguments` as objects, tools as function schemas. Which form a
chat template wants is for rendering.py to find out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import THINKING_FIELDS, RowError
from gradsift.wording import few

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# A turn in these roles is a tool call of the assistant's, as JSON text.
CALL_ROLES = ("function_call", "tool_call")
# Whether a turn is trained on: OpenAI's and ShareGPT's, ms-swift's, axolotl's (two).
FLAGS = ("weight", "loss", "training", "train_on_turn", "train")
LIKE_A_FLAG = re.compile(r"(^|_)(train|loss|weight|mask|learn|supervis|ignore|skip)|^include")
YES_OR_NO: dict[object, bool] = {
    **dict.fromkeys((True, "true", "yes", "1", "1.0"), True),
    **dict.fromkeys((False, "false", "no", "0", "0.0"), False),
}
# What a call's name and arguments are called.
ARGUMENTS = ("arguments", "parameters", "args", "input")
# Types of the parts of a content.
TEXT, THINKING = ("text", "input_text", "output_text"), ("thinking", "reasoning")
LIKE_PYTHON = re.compile(r"\s*\[?\s*\{\s*'")
# Fields of a turn with text that nobody reads here.
UNREAD = ("reasoning_details", "refusal", "audio")
MOST_LEVELS, MOST_ENCODINGS = 100, 3


@dataclass(frozen=True)
class Turns:
    """The turns of a conversation in normal form.

    Attributes:
        train: For each turn, whether it is trained on.
        remarks: What a person should know of how they were read.
    """

    messages: tuple[dict[str, Any], ...]
    train: tuple[bool, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TurnNames:
    """What the fields of a turn are called, and what its roles mean (word → role or CALL_ROLES)."""

    role: str
    content: str
    roles: Mapping[str, str]


OPENAI = TurnNames("role", "content", {role: role for role in (*ROLES, *CALL_ROLES)})


def normal_turns(
    turns: Sequence[Any], names: TurnNames = OPENAI, tools: Sequence[Any] = (), *, filled: bool
) -> Turns:
    """Bring turns into the normal form, or raise a RowError.

    `filled` says that the rows come from a table, which puts null into every field that any other
    row has; `tools` then tell which arguments are null for real.
    """
    messages, train, remarks = [], [], []
    required = _required_arguments(tools) if filled else None
    for i, turn in enumerate(turns):
        require_object(turn, i)
        require_flat(turn, f"turn {i}")
        word = require_text(turn, names.role)
        if word not in names.roles:
            known = ", ".join(dict.fromkeys(names.roles))
            raise RowError("unknown_role", f"turn {i} is from {word[:50]!r}; known are {known}")
        role = names.roles[word]
        message = _message(turn, role, names, i, required)
        messages.append(message)
        flag, remark = _flag(turn, names, i)
        remarks += remark
        trains = message["role"] == "assistant" and flag is not False
        if flag and not trains:
            remarks.append("turns of other roles than assistant ask to be trained on; they are not")
        train.append(trains)
    if any(turn.get("function_call") is not None for turn in turns):
        # The old names go together.
        messages = [{**m, "role": "tool"} if m["role"] == "function" else m for m in messages]
    return Turns(tuple(messages), tuple(train), tuple(remarks))


def _message(
    turn: Mapping[str, Any],
    role: str,
    names: TurnNames,
    i: int,
    required: Mapping[str, set[str]] | None,
) -> dict[str, Any]:
    content, thinking = _content(turn.get(names.content), i)
    if role in CALL_ROLES:
        calls = normal_calls(content, f"turn {i}: {role}", required)
        if not calls:
            raise RowError("missing_field", f"turn {i}: a {role} turn holds no call")
        return {"role": "assistant", "content": "", "tool_calls": calls}
    by_field = [
        normal_calls(turn.get(field), f"turn {i}: {field}", required)
        for field in ("tool_calls", "function_call")
    ]
    calls = by_field[0] or by_field[1]  # Where there are both, they are the same call.
    left_out = {names.role, names.content, *FLAGS, "tool_calls", "function_call"}
    # Parquet fills absent fields of a turn with nulls; templates must not see them.
    rest = {k: v for k, v in turn.items() if v is not None and k not in left_out}
    rest = rest if required is None else without_nulls(rest)
    says = calls or thinking or any(rest.get(name) for name in THINKING_FIELDS)
    if content is None and not says:
        raise RowError("missing_field", f"turn {i} has neither {names.content} nor tool_calls")
    if thinking:
        rest.setdefault(THINKING_FIELDS[0], thinking)
    for name in THINKING_FIELDS:
        if isinstance(rest.get(name), list) and all(isinstance(t, str) for t in rest[name]):
            rest[name] = "\n".join(rest[name])
    message = {"role": role, "content": content or "", **rest}
    return {**message, "tool_calls": calls} if calls else message


def _flag(turn: Mapping[str, Any], names: TurnNames, i: int) -> tuple[bool | None, list[str]]:
    # Whether the turn says to train on it, if it says anything.
    said: dict[str, bool] = {}
    for name in FLAGS:
        value = turn.get(name)
        if value is None or value != value or name in (names.role, names.content):
            continue  # NaN is how pandas says that there is none.
        known = value.strip().lower() if isinstance(value, str) else value
        if isinstance(known, list | dict) or known not in YES_OR_NO:
            raise RowError(
                "wrong_type",
                f"turn {i}: {name} is {value!r:.50}; only whole turns are trained on or not: "
                "expected 0 or 1, false or true",
            )
        said[name] = YES_OR_NO[known]
    if len(set(said.values())) > 1:
        raise RowError("wrong_type", f"turn {i}: {' and '.join(said)} contradict each other")
    others = [
        f"turns have a field {name!r}, which is not followed"
        for name, value in turn.items()
        if value is not None and name not in (*FLAGS, names.role, names.content)
        and (LIKE_A_FLAG.search(name.lower()) or (name in UNREAD and value))
    ]  # fmt: skip
    return next(iter(said.values()), None), others


def _content(content: object, i: int) -> tuple[str | None, str]:
    # Text, and thinking where it is a part of its own.
    if content is None or isinstance(content, str):
        return content, ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [(part.get("type"), _text_of(part)) for part in content]
        if all(kind in (*TEXT, *THINKING) and text is not None for kind, text in texts):
            said, thought = (
                "".join(str(text) for kind, text in texts if kind in kinds)
                for kinds in (TEXT, THINKING)
            )
            return said if said or not thought else None, thought
        kinds = sorted({str(part.get("type"))[:50] for part in content})[:10]
        raise RowError("wrong_type", f"turn {i} holds {kinds}; only text is supported")
    raise RowError("wrong_type", f"turn {i}: content is {type_name(content)}, expected text")


def _text_of(part: Mapping[str, Any]) -> str | None:
    return next((part[k] for k in ("text", "thinking") if isinstance(part.get(k), str)), None)


def normal_calls(
    value: object, where: str, required: Mapping[str, set[str]] | None = None
) -> list[dict[str, Any]]:
    """Bring tool calls in any shape into OpenAI's, arguments as objects.

    `required` says of each tool which arguments it must have, where nulls may be filled in.
    """
    filled = None if isinstance(value, str) else required
    value = _parsed(value, where)
    calls = value if isinstance(value, list) else [value]
    if filled is not None:
        calls = [call for call in calls if without_nulls(call) not in (None, {}, {"function": {}})]
    return [_call(call, where, filled) for call in calls if call not in (None, {})]


def _call(call: object, where: str, required: Mapping[str, set[str]] | None) -> dict[str, Any]:
    # Nothing was filled into what is JSON text.
    required = None if isinstance(call, str) else required
    call = _parsed(call, where)
    function = call.get("function") or call if isinstance(call, dict) else call
    required = None if isinstance(function, str) else required
    if isinstance(function, str) and not function.lstrip().startswith("{"):
        function = {**call, "name": function}  # Arguments beside the name.
    function = _parsed(function, where)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RowError("wrong_type", f"{where}: a call holds no object with name and arguments")
    given = next((function[f] for f in ARGUMENTS if function.get(f) is not None), None)
    required = None if isinstance(given, str) else required
    arguments = _parsed(given, f"{where}: the arguments of {name[:50]}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(
            "wrong_type",
            f"{where}: the arguments of {name[:50]} are {type_name(arguments)}, expected an object",
        )
    if required is not None:
        arguments = {
            key: without_nulls(argument)
            for key, argument in arguments.items()
            if argument is not None or key in required.get(name, ())
        }
    ids = {"id": call["id"]} if call.get("id") is not None else {}
    return {**ids, "type": "function", "function": {"name": name, "arguments": arguments}}


def normal_tools(value: object, name: str, *, filled: bool) -> list[dict[str, Any]] | None:
    """Bring tool definitions in any shape into OpenAI's function schemas; None of none."""
    filled = filled and not isinstance(value, str)
    value = _parsed(value, name)
    if not value:
        return None
    tools = [
        without_nulls(tool) if filled and not isinstance(tool, str) else _parsed(tool, name)
        for tool in (value if isinstance(value, list) else [value])
    ]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError("wrong_type", f"{name} holds something else than objects with a name")
    return [_tool(tool, name) for tool in tools if tool]


def _tool(tool: dict[str, Any], name: str) -> dict[str, Any]:
    function = _parsed(tool.get("function", tool), name)
    if not isinstance(function, dict):
        raise RowError("wrong_type", f"{name}: a tool is {type_name(function)}, expected an object")
    for field in ("parameters", "input_schema"):
        if isinstance(function.get(field), str):
            function = {**function, field: _parsed(function[field], f"{name}: {field}")}
    if "function" in tool:
        return {"type": "function", **tool, "function": function}
    if not isinstance(function.get("name"), str):
        # A tool of another kind, for the template to know.
        return tool
    function = {k: v for k, v in function.items() if k != "type" or v != "function"}
    if "input_schema" in function:
        function = {**function, "parameters": function["input_schema"]}
        del function["input_schema"]
    return {"type": "function", "function": function}


def _required_arguments(tools: Iterable[Any]) -> dict[str, set[str]]:
    required = {}
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, dict) else None
        names = parameters.get("required") if isinstance(parameters, dict) else None
        required[str(function.get("name"))] = set(names) if isinstance(names, list) else set()
    return required


def without_nulls(value: Any) -> Any:
    """Leave out the fields of objects that a table has filled with null."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _parsed(value: object, where: str) -> Any:
    # What JSON text says, also where it was encoded twice; blank text says nothing.
    for _ in range(MOST_ENCODINGS):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            python = LIKE_PYTHON.match(value)
            advice = "; it is Python's notation: write it with json.dumps" if python else ""
            raise RowError(
                "wrong_type", f"{where}: {value[:50]!r} is text but not JSON{advice}"
            ) from None
    require_flat(value, where)
    return value


def require_flat(value: object, where: str, levels: int = MOST_LEVELS) -> None:
    """Refuse what is nested deeper than anybody means, and than templates can write."""
    at, level = [value], 0
    while at:
        if level > levels:
            raise RowError("wrong_type", f"{where}: nested more than {levels} levels deep")
        at = [
            inner
            for outer in at if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]  # fmt: skip
        level += 1


def json_or_value(value: object, name: str) -> Any:
    """Return what JSON text of a list or object says, and anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        return _parsed(value, name)
    return value


def type_name(value: object) -> str:
    """Return what a user calls the type of a value."""
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


def require_object(turn: object, i: int) -> None:
    """Require that a turn is an object."""
    if not isinstance(turn, dict):
        raise RowError("wrong_type", f"turn {i} is {type_name(turn)}, expected an object")


def require(record: Mapping[str, Any], name: str) -> Any:
    """Return a field that must be there and not null."""
    if record.get(name) is None:
        what = f"{name!r} is null" if name in record else f"no field {name!r}; found {few(record)}"
        raise RowError("missing_field", what)
    return record[name]


def require_text(record: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text."""
    value = require(record, name)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected text")
    return value
