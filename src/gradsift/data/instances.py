"""Examples → instances: tokens, and which of them are the response."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradsift.data.example import Example, Plain
from gradsift.data.rendering import IGNORED, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATIONS = ("keep_start", "keep_end", "drop")
EXAMPLES_AT_A_TIME = 500

# Things worth telling once, with how many rows they concern.
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
        instance_id: Of its row.
        input_ids: Its tokens.
        labels: The same where a token belongs to the response, else -100.
        truncated: Whether tokens were cut off.
    """

    instance_id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def n_response_tokens(self) -> int:
        """Response tokens that have a loss; the very first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Instances:
    """What became of the examples.

    Attributes:
        items: The instances, in the examples' order.
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
    max_length: int = 1024,
    truncation: str = "keep_start",
    vocab_size: int | None = None,
) -> Instances:
    """Tokenize examples as trl's SFTTrainer does, and mark the response.

    Conversations go through the tokenizer's chat template. The response is what the template's
    generation marks say, where it has them; else what a trained turn adds to the tokens of the
    turns before it. Plain text is prompt, response and end-of-sequence token.

    Args:
        examples: (instance_id, example) pairs.
        tokenizer: Of the model.
        max_length: Most tokens of an instance.
        truncation: What happens beyond: keep_start, keep_end, or drop.
        vocab_size: Of the model, to refuse a tokenizer that does not belong to it.

    Returns:
        The instances, and what was dropped and noticed.

    Raises:
        ValueError: If the tokenizer has tokens that the model does not have.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; known are {', '.join(TRUNCATIONS)}.")
    renderer = Renderer(tokenizer)
    control = _control_tokens(tokenizer)
    items: list[Instance] = []
    dropped: dict[str, tuple[str, str]] = {}
    notes: Counter[str] = Counter()
    source = iter(examples)
    while chunk := list(islice(source, EXAMPLES_AT_A_TIME)):
        for (instance_id, example), outcome in zip(chunk, renderer.tokens_of(chunk), strict=True):
            if isinstance(outcome, Exception):
                dropped[instance_id] = ("template_error", f"chat template: {outcome}")
                continue
            kept = _truncate(instance_id, *outcome, max_length, truncation)
            if isinstance(kept, Instance):
                items.append(kept)
                notes["truncated"] += kept.truncated
                notes["double_bos"] += kept.input_ids[:2] == [tokenizer.bos_token_id] * 2
                notes["control_tokens_in_text"] += bool(control and control.search(_text(example)))
            else:
                dropped[instance_id] = kept
    largest = max((max(item.input_ids) for item in items), default=0)
    if vocab_size is not None and largest >= vocab_size:
        raise ValueError(
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
    found = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _text(example: Example) -> str:
    if isinstance(example, Plain):
        return example.prompt + "\n" + example.response
    contents: list[Any] = [message.get("content") for message in example.messages]
    return "\n".join(content for content in contents if isinstance(content, str))
