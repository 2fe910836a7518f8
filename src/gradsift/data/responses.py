"""Which tokens of an example are its response.

The response is what a template's generation marks say, where it has them; else what a trained turn
adds to the tokens of the turns before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gradsift.data.example import Chat, Example, Plain, RowError
from gradsift.data.rendering import Template, missing, parts_of, reads
from gradsift.terms import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLE_TITLES = {"user": "User", "assistant": "Assistant"}
BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")
# Of a text that is cut anyway so many tokens more are made: near where it ends they may be others.
TOKENS_BEYOND = 64
# No conversation has it.
WORD = "zqturnzq"


@dataclass(frozen=True)
class Tokens:
    """Tokens and labels of an example, or of a part of one that is cut anyway."""

    ids: list[int]
    labels: list[int]
    notes: tuple[str, ...] = ()
    is_part: bool = False


@dataclass(frozen=True)
class _Plan:
    """Texts whose tokens decide an instance.

    Attributes:
        whole: The text of the example.
        turns: Before and through each response.
        spans: Which characters of the whole are the response, where they are known.
        special: Whether the tokenizer adds its special tokens.
        everything: Whether each token is of the response.
        regions: The text of each turn that is trained on, by its place.
    """

    whole: str
    turns: tuple[tuple[str, str], ...] = ()
    spans: tuple[tuple[int, int], ...] | None = None
    special: bool = False
    everything: bool = False
    notes: tuple[str, ...] = ()
    regions: dict[int, str] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """All texts, the whole first."""
        return [self.whole, *(text for pair in self.turns for text in pair)]

    def characters(self) -> Sequence[tuple[int, int]]:
        """Return which characters are the response, as near as it can be told without tokens."""
        if self.spans is not None:
            return self.spans
        if self.everything:
            return [(0, len(self.whole))]
        return [
            (_common_length(before, self.whole), _common_length(through, self.whole))
            for before, through in self.turns
        ]


class Labeller:
    """Turns examples into tokens and labels."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        max_length: int,
        truncation: str,
    ):
        self._tokenizer, self._template = tokenizer, template
        self._has_template = bool(tokenizer.chat_template)
        self._n_enough = max_length + TOKENS_BEYOND
        self._keeps_end = truncation == "keep_end"
        longest = max(map(len, tokenizer.get_vocab()), default=1)
        # Enough tokens for sure, unless the tokenizer leaves characters out.
        self._most_characters = self._n_enough * longest

    def tokens_of(self, chunk: Iterable[tuple[str, Example]]) -> Iterator[Tokens | Exception]:
        """Yield tokens and labels of each example, or why there are none.

        All texts of a chunk are tokenized together.
        """
        plans = [self._plan(example) for _, example in chunk]
        parts = [self._part(plan) if isinstance(plan, _Plan) else None for plan in plans]
        whole = [
            plan
            for plan, part in zip(plans, parts, strict=True)
            if isinstance(plan, _Plan) and part is None
        ]
        by_kind = {
            special: iter(self._tokenize([p for p in whole if p.special is special], special))
            for special in (False, True)
        }
        for plan, part in zip(plans, parts, strict=True):
            if not isinstance(plan, _Plan):
                yield plan
            else:
                yield part or next(by_kind[plan.special])

    def _plan(self, example: Example) -> _Plan | Exception:
        if isinstance(example, Plain):
            return self._plan_plain(example.prompt, example.response)
        if not self._has_template:
            return self._checked(self._plan_without_template(example), example)
        try:
            plan = self._plan_marked(example) if self._template.has_marks else None
            return self._checked(plan or self._plan_chat(example), example)
        except Exception as error:  # A template is a program: it may raise anything.
            return error

    def _plan_plain(self, prompt: str, response: str) -> _Plan:
        eos = self._tokenizer.eos_token or ""
        whole = prompt + response + ("" if response.endswith(eos) else eos)
        if not prompt:
            return _Plan(whole, special=True, everything=True)
        return _Plan(whole, ((prompt, whole),), special=True)

    def _plan_chat(self, example: Chat) -> _Plan:
        whole = self._template.render(example)
        turns, spans, regions, notes = [], [], {}, {}
        for i, train in enumerate(example.train):
            if not train:
                continue
            last = i + 1 == len(example.messages)
            before = self._before(example, i, whole)
            through = whole if last else self._template.render(example, i + 1)
            turns.append((before, through))
            sure = before
            if not whole.startswith(before):
                # What asks for an answer may be no part of one.
                sure = self._template.render(example, i) if i else ""
            if whole.startswith(sure) and whole.startswith(through):
                spans.append((_common_length(before, whole), len(through)))
                regions[i] = whole[len(sure) : len(through)]
            else:
                notes["turn_rewritten"] = None
                span = self._span_among(example, i, whole)
                if span is None:
                    notes["turn_not_found"] = None
                    continue
                spans.append(span)
                regions[i] = whole[slice(*span)]
        if notes:
            return _Plan(whole, spans=tuple(spans), notes=tuple(notes), regions=regions)
        return _Plan(whole, tuple(turns), regions=regions)

    def _before(self, example: Chat, i: int, whole: str) -> str:
        if i:
            return self._template.render(example, i, generate=True)
        # Templates cannot render no messages: what stands before the first turn's own text is what
        # does not change with that text.
        first = example.messages[0]
        other = "b" if first["content"].strip().startswith("a") else "a"
        changed = replace(
            example, messages=({"role": first["role"], "content": other},), train=(True,)
        )
        return whole[: _common_length(self._template.render(changed), whole)]

    def _span_among(self, example: Chat, i: int, whole: str) -> tuple[int, int] | None:
        # Templates may render a turn otherwise once the conversation goes on (Qwen3 without its
        # thinking). With a word of ours in its place, all before and all after it stay as they are.
        message, others = example.messages[i], example.messages
        calls = [
            {**call, "function": {**call["function"], "arguments": {WORD: WORD}}}
            for call in message.get("tool_calls", ())
        ]
        content = WORD if parts_of(message)[1].strip() or not calls else ""
        marked = {"role": message["role"], "content": content}
        marked |= {"tool_calls": calls} if calls else {}
        try:
            alone, among = (
                self._template.render(replace(example, messages=messages))
                for messages in ((*others[:i], marked), (*others[:i], marked, *others[i + 1 :]))
            )
        except Exception:  # Without its own words the template may refuse it.
            return None
        if WORD not in alone:
            raise RowError("target_not_rendered", f"turn {i} is not in the rendered text")
        if WORD not in among:
            return None
        before = self._before(example, i, alone)
        if i and not alone.startswith(before):
            before = self._template.render(example, i)
        # What the template writes before the turn's own words, if that can be told.
        lead = alone[len(before) : alone.index(WORD)] if alone.startswith(before) else ""
        start = among.index(WORD)
        if among[:start].endswith(lead):
            start -= len(lead)
        elif not content:
            ends_alike = _common_length(lead[::-1], among[:start][::-1])
            start -= len(lead[len(lead) - ends_alike :].lstrip())
        end, rest = (text[text.rindex(WORD) + len(WORD) :] for text in (alone, among))
        rest = rest[_common_length(end, rest) :]
        stop = len(whole) - len(rest)
        if start >= stop or not (whole.startswith(among[:start]) and whole.endswith(rest)):
            return None
        region = whole[start:stop]
        if any(_is_inside(region, other, message) for other in others if other is not message):
            raise RowError("target_not_rendered", f"turn {i}: another turn is rendered inside it")
        return start, stop

    def _plan_without_template(self, example: Chat) -> _Plan:
        eos = self._tokenizer.eos_token or ""
        so_far, turns = "", []
        for message, train in zip(example.messages, example.train, strict=True):
            title = ROLE_TITLES.get(message["role"])
            before = so_far + (f"{title}: " if title else "")
            content = message["content"] if train else f"{message['content']}\n\n"
            so_far = before + content + (eos if train else "")
            if train:
                turns.append((before, so_far))
        trained = (i for i, train in enumerate(example.train) if train)
        regions = {
            i: through[len(before) :] for i, (before, through) in zip(trained, turns, strict=True)
        }
        return _Plan(
            so_far, tuple(turns), special=True, notes=("no_chat_template",), regions=regions
        )

    def _plan_marked(self, example: Chat) -> _Plan | None:
        # None where the marks do not give one span for each assistant turn.
        whole, spans = self._template.render_marked(example)
        turns = [i for i, m in enumerate(example.messages) if m["role"] == "assistant"]
        if len(spans) != len(turns):
            return None
        trained = {i: span for i, span in zip(turns, spans, strict=True) if example.train[i]}
        regions = {i: whole[slice(*span)] for i, span in trained.items()}
        return _Plan(whole, spans=tuple(trained.values()), regions=regions)

    def _checked(self, plan: _Plan, example: Chat) -> _Plan | Exception:
        found = missing(example, plan.whole, plan.regions)
        if found.target is not None:
            return RowError("target_not_rendered", found.target)
        unread = not all(reads(self._tokenizer, name) for name in example.template_kwargs)
        notes = (*plan.notes, *found.notes, *(["template_kwargs_not_read"] if unread else []))
        return replace(plan, notes=notes)

    def _tokenize(self, plans: Sequence[_Plan], special: bool) -> Iterator[Tokens]:
        texts = [text for plan in plans for text in plan.texts]
        if not texts:
            return
        encoded = self._tokenizer(texts, add_special_tokens=special, verbose=False)
        ids, at = encoded["input_ids"], 0
        for plan in plans:
            if plan.spans is None:
                yield _labelled(plan, ids[at : at + len(plan.texts)])
            else:
                labels = [IGNORED_LABEL] * len(ids[at])
                for start, stop in plan.spans:
                    # As apply_chat_template makes its assistant_masks.
                    first = encoded.char_to_token(at, start)
                    last = encoded.char_to_token(at, stop - 1)
                    if first is not None:
                        span = slice(first, None if last is None else last + 1)
                        labels[span] = ids[at][span]
                yield Tokens(ids[at], labels, plan.notes)
            at += len(plan.texts)

    def _part(self, plan: _Plan) -> Tokens | None:
        # Of a text far beyond the maximum length only the part that stays is tokenized.
        n = self._most_characters
        if len(plan.whole) <= 2 * n or not self._tokenizer.is_fast:
            return None
        begin = 0
        if self._keeps_end:
            # Tokens begin anew there, wherever the text before it began.
            between = BETWEEN_WORDS.search(plan.whole, len(plan.whole) - 2 * n)
            if between is None or between.start() > len(plan.whole) - n:
                return None
            begin = between.start()
        encoded = self._tokenizer(
            plan.whole[begin:] if self._keeps_end else plan.whole[:n],
            add_special_tokens=plan.special,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids = encoded["input_ids"]
        if len(ids) < self._n_enough:
            return None
        labels = list(ids) if plan.everything else [IGNORED_LABEL] * len(ids)
        for start, stop in plan.characters():
            for at, (first, last) in enumerate(encoded["offset_mapping"]):
                if first < last and first + begin < stop and start < last + begin <= stop:
                    labels[at] = ids[at]
        return Tokens(ids, labels, plan.notes, is_part=True)


def _labelled(plan: _Plan, ids: list[list[int]]) -> Tokens:
    whole, *others = ids
    if plan.everything:
        return Tokens(whole, list(whole), plan.notes)
    labels = [IGNORED_LABEL] * len(whole)
    notes = dict.fromkeys(plan.notes)
    for before, through in zip(others[::2], others[1::2], strict=True):
        start, stop = _common_prefix(before, whole), _common_prefix(through, whole)
        notes |= {"prompt_not_prefix": None} if start != len(before) else {}
        labels[start:stop] = whole[start:stop]
    return Tokens(whole, labels, tuple(notes))


def _common_prefix(ids: Sequence[int], others: Sequence[int]) -> int:
    if others[: len(ids)] == ids:
        return len(ids)
    pairs = zip([*ids, None], [*others, None], strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def _common_length(text: str, other: str) -> int:
    # By halves: texts may be long.
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_inside(region: str, other: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    said = other["content"].strip()
    return bool(said) and said in region and said not in str(message)
