"""Examples → instances: tokens, and which of them are the response.

Chat templates are rendered and tokenized as trl's SFTTrainer does it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradsift.config import CaptureConfig
from gradsift.data.example import Chat, Example, Plain
from gradsift.errors import GradsiftError
from gradsift.schema import choices_of
from gradsift.terms import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")
ROLE_TITLES = {"user": "User", "assistant": "Assistant"}
TRUNCATIONS = choices_of(CaptureConfig, "truncation")
DEFAULTS = CaptureConfig()
EXAMPLES_AT_A_TIME = 500

# Things worth a line, with how many rows they concern.
NOTES = {
    "no_chat_template": "rows rendered as plain 'User: … Assistant: …' text, since the tokenizer "
    "has no chat template",
    "prompt_not_prefix": "rows whose tokenized prompt is no prefix of prompt + response; their "
    "response begins where the two diverge",
    "turn_rewritten": "rows with a trained turn that the template renders otherwise once the "
    "conversation goes on (old thinking left out); its response is what is still there",
    "turn_not_found": "rows with a trained turn of which the whole conversation shows nothing; "
    "that turn is not trained on",
    "double_bos": "rows that begin with two begin-of-sequence tokens",
    "control_tokens_in_text": "rows with control tokens of the tokenizer inside their own text",
    "truncated": "rows cut to the maximum length",
}


@dataclass(frozen=True)
class Instance:
    """One row, tokenized.

    Attributes:
        labels: The token where it belongs to the response, else -100.
    """

    instance_id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def n_response_tokens(self) -> int:
        """Response tokens that have a loss; the very first token of a row is never predicted."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])


@dataclass(frozen=True)
class Instances:
    """What became of the examples.

    Attributes:
        dropped: instance_id → (reason, detail) of those that are none.
        notes: Key of NOTES → number of rows.
    """

    items: tuple[Instance, ...]
    dropped: dict[str, tuple[str, str]]
    notes: Counter[str]


def build_instances(
    examples: Iterable[tuple[str, Example]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = DEFAULTS.max_length,
    truncation: str = DEFAULTS.truncation,
    vocab_size: int | None = None,
) -> Instances:
    """Tokenize examples as trl's SFTTrainer does, and mark the response.

    Conversations go through the tokenizer's chat template. The response is what the template's
    generation marks say, where it has them; else what a trained turn adds to the tokens of the
    turns before it. Plain text is prompt, response and end-of-sequence token.

    `truncation` is keep_start, keep_end or drop; with the model's `vocab_size`, a tokenizer that
    does not belong to it is refused.
    """
    if truncation not in TRUNCATIONS:
        raise GradsiftError(f"`truncation` is {truncation!r}; known are {', '.join(TRUNCATIONS)}.")
    renderer = _Renderer(tokenizer)
    control = _control_tokens(tokenizer)
    items: list[Instance] = []
    dropped: dict[str, tuple[str, str]] = {}
    notes: Counter[str] = Counter()
    remaining = iter(examples)
    while chunk := list(islice(remaining, EXAMPLES_AT_A_TIME)):
        for (instance_id, example), outcome in zip(chunk, renderer.tokens_of(chunk), strict=True):
            if isinstance(outcome, Exception):
                dropped[instance_id] = ("template_error", f"chat template: {outcome}")
                continue
            instance = _truncate(instance_id, *outcome, max_length, truncation)
            if not isinstance(instance, Instance):
                dropped[instance_id] = instance
                continue
            items.append(instance)
            notes["truncated"] += instance.truncated
            notes["double_bos"] += instance.input_ids[:2] == [tokenizer.bos_token_id] * 2
            notes["control_tokens_in_text"] += bool(control and control.search(_text(example)))
    largest = max((max(item.input_ids) for item in items), default=0)
    if vocab_size is not None and largest >= vocab_size:
        raise GradsiftError(
            f"the tokenizer gives token {largest}, but the model has a vocabulary of {vocab_size}: "
            "they do not belong together."
        )
    return Instances(tuple(items), dropped, notes + renderer.notes)


def _truncate(
    instance_id: str, ids: list[int], labels: list[int], max_length: int, truncation: str
) -> Instance | tuple[str, str]:
    n = len(ids)
    if n > max_length and truncation == "drop":
        return "too_long", f"{n} tokens, at most {max_length} are allowed"
    cut = slice(-max_length, None) if truncation == "keep_end" else slice(max_length)
    instance = Instance(instance_id, ids[cut], labels[cut], n > max_length)
    if instance.n_response_tokens:
        return instance
    where = (
        f"the response is beyond the first {max_length} of {n} tokens"
        if n > max_length
        else ("the rendered text holds no token of the response")
    )
    return "no_response_token", where


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    tokens = set(tokenizer.all_special_tokens)
    tokens |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    longest_first = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _text(example: Example) -> str:
    if isinstance(example, Plain):
        return example.prompt + "\n" + example.response
    contents: list[Any] = [message.get("content") for message in example.messages]
    return "\n".join(content for content in contents if isinstance(content, str))


@dataclass(frozen=True)
class _Plan:
    """Texts whose tokens decide an instance: the whole, then before and through each response."""

    texts: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    spans: int = 0
    everything: bool = False
    ready: tuple[list[int], list[int]] | None = None


class _Renderer:
    """Turns examples into tokens and labels, counting in `notes` what is worth a line."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self._has_template = bool(template)
        self._has_marks = isinstance(template, str) and bool(GENERATION_MARK.search(template))
        self.notes: Counter[str] = Counter()

    def tokens_of(
        self, chunk: Iterable[tuple[str, Example]]
    ) -> Iterator[tuple[list[int], list[int]] | Exception]:
        """Yield (input_ids, labels) of each example, or the error with which a template refused it.

        All texts of a chunk are tokenized together.
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
        except Exception as error:  # A template is a program: it may raise anything.
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
        labels = [IGNORED_LABEL] * len(ids)
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
        changed = Chat(({"role": first["role"], "content": other},), (True,), example.tools)
        return whole[: _common_prefix(self._render(changed, 1, False), whole)]

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
        labels = [IGNORED_LABEL] * len(whole)
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
