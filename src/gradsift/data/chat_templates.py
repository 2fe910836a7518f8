"""Chat templates that trainers know by name, and whether a tokenizer's own says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsift.errors import GradsiftError
from gradsift.wording import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_DEFAULT = "tokenizer_default"


@dataclass(frozen=True)
class ChatFormat:
    """What a template writes around the turns of a conversation.

    Attributes:
        turn: Of each turn, with {role} and {content}.
        generation_prompt: What stands before an answer that is to be generated.
        bos: Whether the conversation begins with the tokenizer's first token.
        system: The system prompt of conversations without one.
        assistant: What the role of the model is called.
        system_in_user: Whether a system prompt is put into the first user turn.
    """

    turn: str
    generation_prompt: str
    bos: bool = False
    system: str | None = None
    assistant: str = "assistant"
    system_in_user: bool = False

    def render(self, messages: Sequence[dict[str, str]], bos_token: str) -> str:
        """Write a conversation."""
        turns = list(messages)
        if turns[0]["role"] != "system" and self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        if turns[0]["role"] == "system" and self.system_in_user:
            system, user, *rest = turns
            turns = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        roles = {"assistant": self.assistant}
        written = [
            self.turn.format(role=roles.get(turn["role"], turn["role"]), content=turn["content"])
            for turn in turns
        ]
        return (bos_token if self.bos else "") + "".join(written)


_CHATML = ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n")

CHAT_FORMATS = {
    "chatml": ChatFormat(*_CHATML),
    "qwen": ChatFormat(
        *_CHATML, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "smollm2": ChatFormat(
        *_CHATML, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."
    ),
    "llama3": ChatFormat(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos=True,
    ),
    "gemma": ChatFormat(
        "<start_of_turn>{role}\n{content}<end_of_turn>\n",
        "<start_of_turn>model\n",
        bos=True,
        assistant="model",
        system_in_user=True,
    ),
    "phi": ChatFormat("<|{role}|>\n{content}<|end|>\n", "<|assistant|>\n"),
    "phi4": ChatFormat(
        "<|im_start|>{role}<|im_sep|>{content}<|im_end|>", "<|im_start|>assistant<|im_sep|>"
    ),
    "granite3": ChatFormat(
        "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
}

# Conversations on which templates differ: with and without a system prompt, one and two answers.
_QUESTION = {"role": "user", "content": "How many?"}
_ANSWER = {"role": "assistant", "content": "Two."}
_SYSTEM = {"role": "system", "content": "Be brief."}
_CONVERSATIONS = tuple(
    (*system, *turns)
    for system in ((), (_SYSTEM,))
    for turns in (
        (_QUESTION, _ANSWER),
        (_QUESTION, _ANSWER, {"role": "user", "content": "And now?"}, _ANSWER),
    )
)


def require_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Require that a tokenizer's own chat template, which always renders, writes what `name` would.

    `name` is a key of CHAT_FORMATS, or TOKENIZER_DEFAULT: whatever it is, there must be one.
    """
    if name != TOKENIZER_DEFAULT and name not in CHAT_FORMATS:
        known = ", ".join((TOKENIZER_DEFAULT, *CHAT_FORMATS))
        raise GradsiftError(f"`chat_template` is {name!r}; known are {known}.")
    if not tokenizer.chat_template:
        raise GradsiftError(
            f"`chat_template` is {name!r}, but the tokenizer has none. Put one into the model's "
            "tokenizer_config.json, or leave `chat_template` out."
        )
    if name == TOKENIZER_DEFAULT:
        return
    for conversation in _CONVERSATIONS:
        expected = _expected(CHAT_FORMATS[name], conversation, tokenizer)
        actual = _actual(conversation, tokenizer)
        if expected != actual:
            raise GradsiftError(
                f"`chat_template` is {name!r}, which writes {expected!r}; the tokenizer's own "
                f"writes {actual!r}. Rows are rendered by the tokenizer's own: `chat_template` "
                f"{TOKENIZER_DEFAULT} takes the model's own instead."
            )


def _expected(
    chat_format: ChatFormat,
    conversation: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    # The last answer once as it is generated, and the whole.
    bos = tokenizer.bos_token or ""
    before = chat_format.render(conversation[:-1], bos) + chat_format.generation_prompt
    return f"{before} … {chat_format.render(conversation, bos)}"


def _actual(conversation: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    def render(messages: Sequence[dict[str, str]], generate: bool) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate
        )

    try:
        return f"{render(conversation[:-1], True)} … {render(conversation, False)}"
    except Exception as error:  # A template is a program of its author's: it may raise anything.
        return f"an error ({one_line(error)})"
