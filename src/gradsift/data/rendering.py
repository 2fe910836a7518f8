"""Conversations → text, by a tokenizer's chat template: in the form it wants, and what it left out.

A template is a program of its author's. What it wants is found out once, with a conversation of
words that are nowhere else; what it wrote is compared with what the row says.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from gradsift.data.example import THINKING_FIELDS, Chat
from gradsift.errors import GradsiftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Arguments of apply_chat_template that are not for the template.
NOT_OF_A_TEMPLATE = (
    "chat_template", "tools", "tokenize", "add_generation_prompt", "continue_final_message",
    "conversation", "messages", "return_dict", "return_tensors", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "padding", "truncation", "max_length", "documents",
    "sanitize_control_tokens",
)  # fmt: skip
GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")
CLOCK, CODES = "strftime_now", "aAbBcdFHIjmMpSUwWxXyYZ"
# What stands in an answer before its last </think> is thinking.
THINKING_IN_TEXT = re.compile(r"^\s*(?:<think>)?(.*)</think>", re.DOTALL)
CHARACTERS_LOOKED_FOR = 200


@dataclass(frozen=True)
class Form:
    """How a template wants to be given what the normal form holds.

    Attributes:
        arguments_as_text: Arguments of calls as JSON text.
        content_as_parts: Contents as a list of parts of type text.
        with_ids: Calls have ids of nine characters, and results say of which call they are.
        with_names: Results say of which tool they are.
    """

    arguments_as_text: bool = False
    content_as_parts: bool = False
    with_ids: bool = False
    with_names: bool = False

    def of(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages in this form."""
        messages = [_with_thinking(message) for message in messages]
        if self.with_ids or self.with_names:
            messages = self._linked(messages)
        return [self._formed(message) for message in messages]

    def _formed(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message["content"]
        if self.content_as_parts:
            message = {**message, "content": [{"type": "text", "text": content}]}
        if self.arguments_as_text and message.get("tool_calls"):
            calls = [
                {**call, "function": {**call["function"], "arguments": _json(arguments)}}
                for call in message["tool_calls"]
                for arguments in [call["function"]["arguments"]]
            ]
            message = {**message, "tool_calls": calls}
        return message

    def _linked(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Results follow their calls in order, unless they say otherwise.
        linked, n_calls = [], 0
        open_calls: dict[str, str] = {}
        for message in messages:
            if calls := message.get("tool_calls"):
                named = [{"id": f"call{n_calls + at:05}", **call} for at, call in enumerate(calls)]
                n_calls += len(calls)
                open_calls = {str(c["id"]): c["function"]["name"] for c in named}
                message = {**message, "tool_calls": named} if self.with_ids else message
            elif message["role"] == "tool" and open_calls:
                id_ = message.get("tool_call_id", next(iter(open_calls)))
                name = open_calls.pop(str(id_), None)
                ids = {"tool_call_id": id_} if self.with_ids else {}
                names = {"name": name} if self.with_names and name is not None else {}
                message = {**ids, **names, **message}
            linked.append(message)
        return linked


def _with_thinking(message: Mapping[str, Any]) -> dict[str, Any]:
    # As transformers does since 5.20: templates read it under one name or the other.
    thinking = thinking_of(message)
    if thinking is None:
        return dict(message)
    return {"thinking": thinking, **message, "reasoning_content": thinking}


def thinking_of(message: Mapping[str, Any]) -> str | None:
    """Return the reasoning that a turn has in a field of its own."""
    texts = (message.get(name) for name in THINKING_FIELDS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


FORMS = [Form(*options) for options in product((False, True), repeat=4)]


class Template:
    """A tokenizer's chat template, as rows are rendered by it.

    Attributes:
        has_marks: Whether it says which text is generated.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kwargs: Mapping[str, Any] | None = None,
        day: date | None = None,
    ):
        """Take the chat template's own arguments for all rows, and the day it is to write."""
        self._tokenizer, self._kwargs = tokenizer, dict(kwargs or {})
        if tokenizer.chat_template:
            require_read(tokenizer, self._kwargs)
        self._day = day or date.today()
        self._sources: dict[bool, str] = {}
        marked = tokenizer.chat_template
        self.has_marks = isinstance(marked, str) and bool(GENERATION_MARK.search(marked))

    def render(
        self, example: Chat, n_messages: int | None = None, *, generate: bool = False
    ) -> str:
        """Write the first messages of a conversation."""
        return self._render(self.form, example, n_messages, generate)

    def render_marked(self, example: Chat) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation, and return which of its characters are generated."""
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = self.form.of(example.messages)
        rendered, spans = render_jinja_template(
            [messages],
            tools=example.tools,
            chat_template=self._source(example.tools),
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **self._kwargs, **example.template_kwargs},
        )
        return rendered[0], [(start, stop) for start, stop in spans[0] if stop > start]

    def _render(
        self, form: Form, example: Chat, n_messages: int | None = None, generate: bool = False
    ) -> str:
        return self._tokenizer.apply_chat_template(
            form.of(example.messages[:n_messages]),
            tools=example.tools,
            tokenize=False,
            add_generation_prompt=generate,
            chat_template=self._source(example.tools),
            **{**self._kwargs, **example.template_kwargs},
        )

    def _source(self, tools: object) -> str:
        # Some tokenizers have another one for conversations with tools.
        key = bool(tools)
        if key not in self._sources:
            source = self._tokenizer.get_chat_template(None, tools=tools)
            self._sources[key] = with_clock_stopped(source, self._day)
        return self._sources[key]

    @cached_property
    def form(self) -> Form:
        """The form in which the template leaves out and garbles least."""
        return min(FORMS, key=self._faults)

    def _faults(self, form: Form) -> int:
        return sum(self._faults_of(form, probe) for probe in PROBES)

    def _faults_of(self, form: Form, probe: Chat) -> int:
        words = PROBE_WORDS.findall(_json([probe.messages, probe.tools]))
        try:
            text = self._render(form, probe)
        except Exception:  # A template is a program: it may raise anything.
            return 10 * len(words)
        # Encoded twice, and as Python writes it: what has been lost is worse.
        garbled = len(GARBLED.findall(text))
        return 10 * sum(word not in text for word in words) + garbled


PROBE_WORDS = re.compile(r"zq\w+")
GARBLED = re.compile(r"\\+\"zq|'zq\w+': 'zq")
_USER = {"role": "user", "content": "zquser"}
_CALL = {
    "type": "function",
    "function": {"name": "zqname", "arguments": {"zqkey": "zqvalue"}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "zqname",
        "description": "zqdescription",
        "parameters": {
            "type": "object",
            "properties": {"zqkey": {"type": "string", "description": "zqwhat"}},
            "required": ["zqkey"],
        },
    },
}
# Apart, so that a template that refuses one still tells of the others.
PROBES = (
    Chat((_USER, {"role": "assistant", "content": "zqanswer"}), (False, True)),
    Chat((_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}), (), [_TOOL]),
    Chat(
        (
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "zqresult"},
            {"role": "assistant", "content": "zqanswer"},
        ),
        (),
        [_TOOL],
    ),
)


def require_read(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that a chat template does not read."""
    for name in kwargs:
        if name in NOT_OF_A_TEMPLATE:
            raise GradsiftError(f"`chat_template_kwargs`: {name} is not for the template to know.")
        if not reads(tokenizer, name):
            raise GradsiftError(
                f"`chat_template_kwargs`: the model's chat template does not read {name!r}."
            )


def reads(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Return whether a name is in a chat template at all."""
    return bool(re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)))


def asks_for_the_day(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a chat template writes the day of rendering."""
    return CLOCK in str(tokenizer.chat_template)


def with_clock_stopped(source: str, day: date) -> str:
    """Return a template that writes `day`, at midnight, where it would write the time of day."""
    if CLOCK not in source:
        return source
    midnight = datetime(day.year, day.month, day.day)
    codes = {*re.findall(r"%[-_0^#]?[a-zA-Z]", source), *(f"%{code}" for code in CODES)}
    replaced = "".join(f" | replace({c!r}, {midnight.strftime(c)!r})" for c in sorted(codes))
    # A macro of that name goes before the function; the line break after a block is dropped.
    return f"{{%- macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{source}"


# What a template wrote, against what the row says.


@dataclass(frozen=True)
class Missing:
    """What the text of a row does not show.

    Attributes:
        target: Of a turn that is trained on: words for it, or None.
        notes: Keys of tokenization.NOTES.
    """

    target: str | None = None
    notes: tuple[str, ...] = ()


def missing(example: Chat, whole: str, regions: Mapping[int, str]) -> Missing:
    """Compare a conversation with its text; `regions` are the texts of the trained turns."""
    notes: Counter[str] = Counter()
    for i, message in enumerate(example.messages):
        region = regions.get(i)
        if region is None:
            notes.update(_missing_before(message, whole))
            continue
        if (lost := _missing_of_target(message, region)) is not None:
            return Missing(f"turn {i}: {lost} is not in the rendered text")
        thinking, answer = parts_of(message)
        notes["thinking_not_rendered"] += bool(thinking) and not shows(region, thinking)
        notes["answer_rewritten"] += not shows(region, answer, all_of_it=True)
    tools = [_told_by(tool) for tool in example.tools or ()]
    notes["tools_not_rendered"] += any(words and not shows(whole, words) for words in tools)
    return Missing(None, tuple(key for key, n in notes.items() if n))


def _missing_of_target(message: Mapping[str, Any], region: str) -> str | None:
    thinking, answer = parts_of(message)
    if answer.strip() and not shows(region, answer):
        return f"the answer {answer.strip()[:50]!r}"
    for call in message.get("tool_calls", ()):
        if not _shows_call(region, call):
            return f"the call of {call['function']['name'][:50]}"
    if not answer.strip() and not message.get("tool_calls") and not shows(region, thinking):
        return "the thinking, which is all there is,"
    return None


def _shows_call(text: str, call: Mapping[str, Any]) -> bool:
    function = call["function"]
    return all(shows(text, word) for word in (function["name"], *words_of(function["arguments"])))


def _missing_before(message: Mapping[str, Any], whole: str) -> Iterator[str]:
    _, answer = parts_of(message)
    if answer.strip() and not shows(whole, answer):
        yield (
            "system_not_rendered"
            if message["role"] in ("system", "developer")
            else ("prompt_not_rendered")
        )
    if not all(_shows_call(whole, call) for call in message.get("tool_calls", ())):
        yield "prompt_not_rendered"


def parts_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return a turn's thinking, wherever it stands, and the rest of its text."""
    content = message["content"]
    in_text = THINKING_IN_TEXT.match(content) if message["role"] == "assistant" else None
    thinking = thinking_of(message) or ""
    if in_text is None:
        return thinking, content
    return thinking + in_text[1], content[in_text.end() :]


def words_of(arguments: Any) -> Iterator[str]:
    """Return the names and texts of a call's arguments, at any depth."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            yield str(key)
            yield from words_of(value)
    elif isinstance(arguments, list):
        for value in arguments:
            yield from words_of(value)
    elif isinstance(arguments, str):
        yield arguments


def shows(text: str, said: str, *, all_of_it: bool = False) -> bool:
    """Return whether a text holds what is said: its first, its longest or its last line.

    As it is or in JSON; blanks at the ends of lines do not count, nor what follows in long ones.
    `all_of_it` asks for the three of them.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return True
    lines = dict.fromkeys((lines[0], max(lines, key=len), lines[-1]))
    looked_for = [line[:CHARACTERS_LOOKED_FOR] for line in lines]
    found = [any(form in text for form in _written(line)) for line in looked_for]
    if all_of_it or any(found):
        return all(found) if all_of_it else True
    # Some templates collapse blanks, or write in capitals.
    plain = _collapsed(text)
    return any(form in plain for line in looked_for for form in map(_collapsed, _written(line)))


def _written(line: str) -> tuple[str, ...]:
    # As it is, in JSON, and as Python writes it in a call.
    in_python = line.replace("\\", "\\\\").replace("'", "\\'")
    return line, _json(line)[1:-1], json.dumps(line)[1:-1], in_python


def _collapsed(text: str) -> str:
    return " ".join(text.casefold().split())


def _told_by(tool: object) -> str | None:
    # A call shows the tool's name, too.
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    words = (function.get(k) for k in ("description", "name")) if isinstance(function, dict) else ()
    return next((text for text in words if isinstance(text, str) and text.strip()), None)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
