"""Greedy answers to prompts, in batches.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradsift.evaluation.losses import padded_left, padding_is_exact

ROWS_IN_A_BATCH = 32


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = ROWS_IN_A_BATCH,
    on_progress: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """Answer prompts by the likeliest token at each step.

    The model's own generation settings (penalties, sampling) are left out, so that arms differ in
    their weights only.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Tokens of each, at least two.
        max_new_tokens: Tokens of an answer.
        batch_size: Prompts answered together, where the model can be padded.
        on_progress: Called with the number of prompts done.

    Returns:
        The answers, in order, without control tokens.
    """
    ends, own = end_tokens(model, tokenizer), model.generation_config
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=padding_token(tokenizer, ends),
    )
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    if not padding_is_exact(model, prompts[order[-1]]):
        batch_size = 1
    answers = [""] * len(prompts)
    # What a configuration does not say, transformers takes from the model's own.
    model.generation_config = config
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = _answers(model, tokenizer, [prompts[i] for i in batch])
            for i, text in zip(batch, found, strict=True):
                answers[i] = text
            on_progress(start + len(batch))
    finally:
        model.generation_config = own
    return answers


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
) -> list[str]:
    ids_BT, mask_BT = padded_left(prompts, model.generation_config.pad_token_id)
    found_BT = model.generate(
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)
    )
    new_BT = found_BT[:, ids_BT.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new_BT, skip_special_tokens=True)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's and those the model comes with."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    return sorted(end for end in ends if end is not None)


def padding_token(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """Return a token to pad with; it is masked, so any will do."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return ends[0] if ends else 0
