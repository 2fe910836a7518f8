"""Chat templates that trainers know by name, and whether a tokenizer's own says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsift.errors import GradsiftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "tokenizer_default"


@dataclass(frozen=True)
class Form:
    """What a template writes around the turns of a conversation.

    Attributes:
        turn: Of each turn, with {role} and {content}.
        opening: What stands before an answer that is to be generated.
        bos: Whether the conversation begins with the tokenizer's first token.
        system: The system prompt of conversations without one.
        assistant: What the role of the model is called.
        system_in_user: Whether a system prompt is put into the first user turn.
    """

    turn: str
    opening: str
    bos: bool = False
    system: str | None = None
    assistant: str = "assistant"
    system_in_user: bool = False

    def text(self, messages: Sequence[dict[str, str]], bos: str) -> str:
        """Write a conversation.

        Args:
            messages: Its turns.
            bos: The tokenizer's first token.

        Returns:
            The text.
        """
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
        return (bos if self.bos else "") + "".join(written)


_CHATML = ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n")

FORMS = {
    "chatml": Form(*_CHATML),
    "qwen": Form(
        *_CHATML, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "smollm2": Form(
        *_CHATML, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."
    ),
    "llama3": Form(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos=True,
    ),
    "gemma": Form(
        "<start_of_turn>{role}\n{content}<end_of_turn>\n",
        "<start_of_turn>model\n",
        bos=True,
        assistant="model",
        system_in_user=True,
    ),
    "phi": Form("<|{role}|>\n{content}<|end|>\n", "<|assistant|>\n"),
    "phi4": Form(
        "<|im_start|>{role}<|im_sep|>{content}<|im_end|>", "<|im_start|>assistant<|im_sep|>"
    ),
    "granite3": Form(
        "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
}

# Conversations on which templates differ: with and without a system prompt, one and two answers.
_QUESTION = {"role": "user", "content": "How many?"}
_ANSWER = {"role": "assistant", "content": "Two."}
_SYSTEM = {"role": "system", "content": "Be brief."}
PROBES = tuple(
    (*system, *turns)
    for system in ((), (_SYSTEM,))
    for turns in (
        (_QUESTION, _ANSWER),
        (_QUESTION, _ANSWER, {"role": "user", "content": "And now?"}, _ANSWER),
    )
)


def require_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Require that a tokenizer's own chat template writes what the named one would.

    Rows are rendered by the tokenizer's own template, always.

    Args:
        tokenizer: Of the model.
        name: A key of FORMS, or OWN: whatever it is, there must be one.

    Raises:
        ValueError: If it writes something else, or there is none.
    """
    if name != OWN and name not in FORMS:
        raise GradsiftError(f"chat_template is {name!r}; known are {', '.join((OWN, *FORMS))}.")
    advice = f"`chat_template` {OWN} takes the model's own instead."
    if not tokenizer.chat_template:
        advice = "Put one into the model's tokenizer_config.json, or leave chat_template out."
        raise GradsiftError(f"chat_template is {name!r}, but the tokenizer has none. {advice}")
    if name == OWN:
        return
    for probe in PROBES:
        wanted, found = _wanted(FORMS[name], probe, tokenizer), _found(probe, tokenizer)
        if wanted != found:
            raise GradsiftError(
                f"chat_template is {name!r}, which writes {wanted!r}; the tokenizer's own writes "
                f"{found!r}. Rows are rendered by the tokenizer's own: {advice}"
            )


def _wanted(form: Form, probe: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    # The last answer once as it is generated, and the whole.
    bos = tokenizer.bos_token or ""
    return f"{form.text(probe[:-1], bos)}{form.opening} … {form.text(probe, bos)}"


def _found(probe: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    def render(messages: Sequence[dict[str, str]], generate: bool) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate
        )

    try:
        return f"{render(probe[:-1], True)} … {render(probe, False)}"
    except Exception as error:  # A template is a program of its author's: it may raise anything.
        return f"an error ({error})"
