"""Texts as a model writes them when nobody asks for the likeliest: sampled at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradsift.attention import without_cudnn_attention
from gradsift.evaluation.generation import (
    ROWS_IN_A_BATCH,
    end_tokens,
    padded_left,
    padding_is_exact,
    padding_token,
)


@without_cudnn_attention()
@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = ROWS_IN_A_BATCH,
) -> list[list[int]]:
    """Return the new tokens behind each prompt, the token that ends them included if it came.

    The model's own generation settings are left out: it is its distribution that is drawn from. The
    same seed gives the same tokens on the same machine; other random numbers stay as they are.
    """
    ends, model_config = end_tokens(model, tokenizer), model.generation_config
    n_known, n_rows = len(tokenizer), model.get_output_embeddings().weight.shape[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends or None,
        pad_token_id=padding_token(tokenizer, ends),
        # Rows of the table that stand for nothing.
        suppress_tokens=list(range(n_known, n_rows)) or None,
    )
    same_length = len({len(prompt) for prompt in prompts}) == 1
    if not same_length and not padding_is_exact(model, max(prompts, key=len)):
        batch_size = 1
    written: list[list[int]] = []
    # What a configuration does not say, transformers takes from the model's own.
    model.generation_config = config
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                ids_BT, mask_BT = padded_left(
                    prompts[start : start + batch_size], config.pad_token_id
                )
                whole_BT = model.generate(
                    input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)
                )
                new_BT = whole_BT[:, ids_BT.shape[1] :].tolist()
                written += [_through_end(new_T, ends) for new_T in new_BT]
    finally:
        model.generation_config = model_config
    return written


def _through_end(new_T: list[int], ends: Sequence[int]) -> list[int]:
    n = next((i + 1 for i, token in enumerate(new_T) if token in ends), len(new_T))
    return new_T[:n]
