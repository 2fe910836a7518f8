"""Examples → tokens and response mask: chat templates, generation marks, prefixes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsift.data.example import Chat, Example, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")
ROLE_TITLES = {"user": "User", "assistant": "Assistant"}


class Renderer:
    """Turns examples into tokens and response masks, as trl's SFTTrainer does.

    Attributes:
        notes: Key of instances.NOTES → rows that it concerns, so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Look at what the tokenizer can do.

        Args:
            tokenizer: Of the model.
        """
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self._has_template = bool(template)
        self._has_marks = isinstance(template, str) and bool(GENERATION_MARK.search(template))
        self.notes: Counter[str] = Counter()

    def tokens_of(
        self, chunk: Iterable[tuple[str, Example]]
    ) -> Iterator[tuple[list[int], list[int]] | Exception]:
        """Render and tokenize examples.

        Args:
            chunk: (instance_id, example) pairs; all texts of a chunk are tokenized together.

        Yields:
            (input_ids, labels) of each example, or the error with which the template refused it.
        """
        plans = [self._plan(example) for _, example in chunk]
        texts = [text for plan in plans if not isinstance(plan, Exception) for text in plan.texts]
        tokens = iter(self._tokenize(texts, special=False))
        plain = [text for plan in plans if not isinstance(plan, Exception) for text in plan.plain]
        plain_tokens = iter(self._tokenize(plain, special=True))
        for plan in plans:
            if isinstance(plan, Exception):
                yield plan
                continue
            ids = [next(tokens) for _ in plan.texts] + [next(plain_tokens) for _ in plan.plain]
            yield self._label(plan, ids)

    def _plan(self, example: Example) -> _Plan | Exception:
        if isinstance(example, Plain):
            return self._plan_plain(example.prompt, example.response)
        if not self._has_template:
            self.notes["no_chat_template"] += 1
            return self._plan_without_template(example)
        try:
            if self._has_marks:
                marked = self._marked(example)
                if marked is not None:
                    return marked
            return self._plan_chat(example)
        except (
            Exception
        ) as error:  # A template is a program of its author's: it may raise anything.
            return error

    def _plan_plain(self, prompt: str, response: str) -> _Plan:
        eos = self._tokenizer.eos_token or ""
        end = "" if response.endswith(eos) else eos
        whole = prompt + response + end
        if not prompt:
            return _Plan(plain=(whole,), spans=1, everything=True)
        return _Plan(plain=(whole, prompt, whole), spans=1)

    def _plan_chat(self, example: Chat) -> _Plan:
        texts = [self._render(example, len(example.messages), False)]
        spans = 0
        for i, train in enumerate(example.train):
            if train:
                spans += 1
                before = self._render(example, i, True) if i else self._header(example, texts[0])
                texts.append(before)
                last = i + 1 == len(example.messages)
                texts.append(texts[0] if last else self._render(example, i + 1, False))
        return _Plan(texts=tuple(texts), spans=spans)

    def _plan_without_template(self, example: Chat) -> _Plan:
        eos = self._tokenizer.eos_token or ""
        so_far, pieces = "", []
        for message, train in zip(example.messages, example.train, strict=True):
            title = ROLE_TITLES.get(message["role"])
            before = so_far + (f"{title}: " if title else "")
            content = message["content"] if train else f"{message['content']}\n\n"
            so_far = before + content + (eos if train else "")
            if train:
                pieces += [before, so_far]
        return _Plan(plain=(so_far, *pieces), spans=len(pieces) // 2)

    def _marked(self, example: Chat) -> _Plan | None:
        # None where the marks do not give one span for each assistant turn.
        result = self._tokenizer.apply_chat_template(
            list(example.messages),
            tools=example.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = result["input_ids"], result["assistant_masks"]
        starts = [i for i, m in enumerate(mask) if m and (i == 0 or not mask[i - 1])]
        turns = [i for i, m in enumerate(example.messages) if m["role"] == "assistant"]
        if len(starts) != len(turns):
            return None
        labels = [IGNORED] * len(ids)
        for start, turn in zip(starts, turns, strict=True):
            stop = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
            if example.train[turn]:
                labels[start:stop] = ids[start:stop]
        return _Plan(ready=(ids, labels))

    def _header(self, example: Chat, whole: str) -> str:
        # Templates cannot render no messages: what stands before the first turn's own text is what
        # does not change with that text.
        first = example.messages[0]
        other = "b" if first["content"].strip().startswith("a") else "a"
        probe = Chat(({"role": first["role"], "content": other},), (True,), example.tools)
        return whole[: _common_prefix(self._render(probe, 1, False), whole)]

    def _render(self, example: Chat, n_messages: int, generate: bool) -> str:
        return self._tokenizer.apply_chat_template(
            list(example.messages[:n_messages]),
            tools=example.tools,
            tokenize=False,
            add_generation_prompt=generate,
        )

    def _tokenize(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]

    def _label(self, plan: _Plan, ids: list[list[int]]) -> tuple[list[int], list[int]]:
        if plan.ready is not None:
            return plan.ready
        whole = ids[0]
        if plan.everything:
            return whole, list(whole)
        labels = [IGNORED] * len(whole)
        clean, rewritten, lost = True, False, False
        for span in range(plan.spans):
            before, through = ids[1 + 2 * span], ids[2 + 2 * span]
            start, stop = _common_prefix(before, whole), _turn_end(through, whole)
            clean &= start == len(before)
            rewritten |= whole[: len(through)] != through
            lost |= stop <= start
            labels[start:stop] = whole[start:stop]
        self.notes["prompt_not_prefix"] += not clean
        self.notes["turn_rewritten"] += rewritten
        self.notes["turn_not_found"] += lost
        return whole, labels


@dataclass(frozen=True)
class _Plan:
    """Texts whose tokens decide an instance: the whole, then before and through each response."""

    texts: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    spans: int = 0
    everything: bool = False
    ready: tuple[list[int], list[int]] | None = None


def _common_prefix(ids: Sequence[int | str], others: Sequence[int | str]) -> int:
    if others[: len(ids)] == ids:
        return len(ids)
    pairs = zip([*ids, None], [*others, None], strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def _turn_end(through: list[int], whole: list[int]) -> int:
    # Some templates show more of a turn while it is the last one (Qwen3 its thinking). Then the
    # turn's remainder follows in the whole where the two diverge.
    end = _common_prefix(through, whole)
    starts = (i for i in range(end, len(through)) if through[i : i + 1] == whole[end : end + 1])
    rests = (through[i:] for i in starts)
    return end + next((len(rest) for rest in rests if whole[end : end + len(rest)] == rest), 0)
