"""Examples → instances: tokens, and which of them are the response.

Chat templates are rendered and tokenized as trl's SFTTrainer does it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradsift.config import CaptureConfig
from gradsift.data.example import Example, Plain, RowError
from gradsift.data.rendering import Template
from gradsift.data.responses import Labeller, Tokens
from gradsift.errors import GradsiftError
from gradsift.schema import choices_of
from gradsift.terms import IGNORED_LABEL
from gradsift.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATIONS = choices_of(CaptureConfig, "truncation")
DEFAULTS = CaptureConfig()
EXAMPLES_AT_A_TIME = 500

# Things worth a line, with how many rows they concern.
NOTES = {
    "no_chat_template": "rendered as plain 'User: … Assistant: …' text, since the tokenizer "
    "has no chat template",
    "prompt_not_prefix": "whose tokenized prompt is no prefix of prompt + response; their "
    "response begins where the two diverge",
    "turn_rewritten": "with a trained turn that the template renders otherwise once the "
    "conversation goes on (old thinking left out); its response is what is still there",
    "turn_not_found": "with a trained turn of which the whole conversation shows nothing; "
    "that turn is not trained on",
    "thinking_not_rendered": "with thinking in a trained turn that the chat template leaves out",
    "answer_rewritten": "with an answer that the chat template writes otherwise in places",
    "template_kwargs_not_read": "with chat_template_kwargs that the template does not read",
    "tools_not_rendered": "with tool definitions that the chat template leaves out",
    "system_not_rendered": "with a system prompt that the chat template leaves out",
    "prompt_not_rendered": "with a turn before the answer that the chat template leaves out",
    "double_bos": "that begin with two begin-of-sequence tokens",
    "control_tokens_in_text": "with control tokens of the tokenizer inside their own text",
    "truncated": "cut to the maximum length",
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
        first: Key of NOTES → the first of these rows.
    """

    items: tuple[Instance, ...]
    dropped: dict[str, tuple[str, str]]
    notes: Counter[str]
    first: dict[str, str]

    def lines(self) -> list[str]:
        """Return lines worth telling: notes, and what was dropped, each with an example."""
        lines = [
            f"{counted(n, 'row')} {NOTES[key]}; the first is {self.first[key]}"
            for key, n in self.notes.items()
        ]
        reasons = Counter(reason for reason, _ in self.dropped.values())
        for reason, n in reasons.items():
            at, detail = next((i, d) for i, (r, d) in self.dropped.items() if r == reason)
            lines.append(f"{counted(n, 'row')} dropped, {reason}; the first, {at}: {detail}")
        return lines


def build_instances(
    examples: Iterable[tuple[str, Example]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = DEFAULTS.max_length,
    truncation: str = DEFAULTS.truncation,
    vocab_size: int | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    template_date: date | None = None,
) -> Instances:
    """Tokenize examples as trl's SFTTrainer does, and mark the response.

    Conversations go through the tokenizer's chat template, in the form that it wants. The response
    is what the template's generation marks say, where it has them; else what a trained turn adds to
    the tokens of the turns before it. Plain text is prompt, response and end-of-sequence token.
    A row of which the template does not show what is trained on is dropped.

    Args:
        examples: Ids and what the rows say.
        tokenizer: The model's.
        max_length: Tokens after which an instance is truncated.
        truncation: keep_start, keep_end or drop.
        vocab_size: Of the model: a tokenizer that does not belong to it is refused.
        template_kwargs: What the chat template is given; a row's own go before.
        template_date: The day that a chat template writes; today if None.
    """
    if truncation not in TRUNCATIONS:
        raise GradsiftError(f"`truncation` is {truncation!r}; known are {', '.join(TRUNCATIONS)}.")
    template = Template(tokenizer, kwargs=template_kwargs, day=template_date)
    renderer = Labeller(tokenizer, template, max_length, truncation)
    control = _control_tokens(tokenizer)
    items: list[Instance] = []
    dropped: dict[str, tuple[str, str]] = {}
    notes: Counter[str] = Counter()
    first: dict[str, str] = {}
    remaining = iter(examples)
    while chunk := list(islice(remaining, EXAMPLES_AT_A_TIME)):
        for (instance_id, example), outcome in zip(chunk, renderer.tokens_of(chunk), strict=True):
            if isinstance(outcome, Exception):
                dropped[instance_id] = _reason(outcome)
                continue
            instance = _truncate(instance_id, outcome, max_length, truncation)
            if not isinstance(instance, Instance):
                dropped[instance_id] = instance
                continue
            items.append(instance)
            found = [*outcome.notes, *(["truncated"] if instance.truncated else [])]
            if instance.input_ids[:2] == [tokenizer.bos_token_id] * 2:
                found.append("double_bos")
            if control and control.search(_text(example)):
                found.append("control_tokens_in_text")
            notes.update(found)
            for key in found:
                first.setdefault(key, instance_id)
    if vocab_size is not None:
        _require_in_table(items, tokenizer, vocab_size)
    return Instances(tuple(items), dropped, notes, first)


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, RowError):
        return error.reason, error.detail
    return "template_error", f"chat template: {str(error)[:500]}"


def _require_in_table(
    items: Sequence[Instance], tokenizer: PreTrainedTokenizerBase, n_rows: int
) -> None:
    outside = [
        item for item in items if not 0 <= min(item.input_ids) <= max(item.input_ids) < n_rows
    ]
    if not outside:
        return
    token = next(i for i in outside[0].input_ids if not 0 <= i < n_rows)
    raise GradsiftError(
        f"the tokenizer gives token {token} ({tokenizer.convert_ids_to_tokens(token)!r}), but the "
        f"model's embedding has {n_rows} rows: {len(outside)} of {len(items)} rows have such "
        f"tokens, the first is {outside[0].instance_id}. Use the tokenizer that belongs to the "
        "model, or save the model after model.resize_token_embeddings(len(tokenizer))."
    )


def _truncate(
    instance_id: str, tokens: Tokens, max_length: int, truncation: str
) -> Instance | tuple[str, str]:
    ids, labels, n = tokens.ids, tokens.labels, len(tokens.ids)
    in_all = f"more than {n}" if tokens.is_part else str(n)
    if n > max_length and truncation == "drop":
        return "too_long", f"{in_all} tokens, at most {max_length} are allowed"
    cut = slice(-max_length, None) if truncation == "keep_end" else slice(max_length)
    instance = Instance(instance_id, ids[cut], labels[cut], n > max_length)
    if instance.n_response_tokens:
        return instance
    where = (
        f"the response is beyond the first {max_length} of {in_all} tokens"
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
    return "\n".join(message["content"] for message in example.messages)
