"""What a row says, freed from its format: a conversation, or plain text; or why it says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What a turn's reasoning is called; the first is what most templates read.
THINKING_FIELDS = ("reasoning_content", "thinking", "reasoning")
NOT_RECORDED = "not_recorded"
NON_FINITE = "non_finite_gradient"
# Every reason for which a row is not an instance, and what it means.
DROP_REASONS = {
    "unreadable_line": "the line is not valid JSON, CSV or UTF-8",
    "not_an_object": "the line holds something else than an object with fields",
    "missing_field": "a field that the format needs is not there",
    "wrong_type": "a field holds another type than the format says",
    "unknown_role": "a turn's role is none that is known",
    "unwanted_answer": "its `label` says that it is an answer not to give",
    "no_assistant_turn": "no assistant turn is trained on",
    "empty_response": "the response is empty",
    "duplicate_id": "an earlier row has the same id and says the same, or with "
    "`duplicate_ids: drop` something else",
    "template_error": "the chat template refuses the conversation",
    "target_not_rendered": "the chat template leaves out what is to be trained on",
    "too_long": "longer than `max_length`, with `truncation: drop`",
    "no_response_token": "after truncation no token of the response is left",
    NOT_RECORDED: "the training loop did not come to it",
    NON_FINITE: "its gradient is not finite",
}


class RowError(Exception):
    """A row that cannot be an instance; `reason` is a key of DROP_REASONS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        assert reason in DROP_REASONS, reason
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Chat:
    """A conversation, to be rendered by the tokenizer's chat template.

    Attributes:
        messages: Turns in the normal form: `role`, `content`, perhaps `tool_calls` and more.
        train: For each turn, whether it is trained on; only assistant turns can be.
        tools: Tool schemas for the template, or None.
        template_kwargs: What the row gives its template beside the conversation.
        remarks: What a person should know of how the row was read; no part of what it says.
    """

    messages: tuple[dict[str, Any], ...]
    train: tuple[bool, ...]
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The turns that are trained on."""
        return [turn for turn, train in zip(self.messages, self.train, strict=True) if train]


@dataclass(frozen=True)
class Plain:
    """Text without a chat template: only the response is trained on."""

    prompt: str
    response: str
    remarks: tuple[str, ...] = field(default=(), compare=False)


Example = Chat | Plain


def last_exchange(example: Example) -> tuple[str, str]:
    """Return the last text that is trained on, after what was asked before it ("" if nothing)."""
    if isinstance(example, Plain):
        return example.prompt, example.response
    last = max(at for at, train in enumerate(example.train) if train)
    asked = [turn["content"] for turn in example.messages[:last] if turn["role"] == "user"]
    return (asked[-1] if asked else ""), example.messages[last]["content"]


def what_it_says(example: Example) -> dict[str, Any]:
    """Return what an example's hash is made of: all that is trained on or stands before it."""
    said = {k: v for k, v in vars(example).items() if k != "remarks"}
    # Rows without kept their hashes when this came.
    return {k: v for k, v in said.items() if k != "template_kwargs" or v}


def require_trainable(example: Example) -> Example:
    """Return the example if it has something to train on, else raise a RowError."""
    if isinstance(example, Plain):
        if not example.response.strip():
            raise RowError("empty_response", "the response is empty")
    elif not example.trained:
        raise RowError("no_assistant_turn", "no assistant turn is trained on")
    elif not any(_says_something(turn) for turn in example.trained):
        raise RowError("empty_response", "all trained assistant turns are empty")
    return example


def _says_something(turn: dict[str, Any]) -> bool:
    texts = [turn.get(name) for name in ("content", *THINKING_FIELDS)]
    says = any(isinstance(text, str) and text.strip() for text in texts)
    return says or bool(turn.get("tool_calls"))
