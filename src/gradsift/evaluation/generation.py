"""Greedy answers to prompts, in batches.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradsift.attention import without_cudnn_attention
from gradsift.progress import Progress, no_progress

ROWS_IN_A_BATCH = 32
TOLERANCE = 1e-2


@without_cudnn_attention()
@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = ROWS_IN_A_BATCH,
    progress: Progress = no_progress,
) -> list[str]:
    """Answer prompts (two tokens or more) by the likeliest token at each step.

    The model's own generation settings (penalties, sampling) are left out, so that arms differ in
    their weights only. Control tokens are not in the answers. `progress` is called with prompts
    done, all prompts, and the tokens of either.
    """
    ends, model_config = end_tokens(model, tokenizer), model.generation_config
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=padding_token(tokenizer, ends),
    )
    n = len(prompts)
    order = sorted(range(n), key=lambda i: (len(prompts[i]), i))
    progress(0, n, 0, n * max_new_tokens)
    if not padding_is_exact(model, prompts[order[-1]]):
        batch_size = 1
    answers = [""] * n
    # What a configuration does not say, transformers takes from the model's own.
    model.generation_config = config
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            texts = _answers(model, tokenizer, [prompts[i] for i in batch])
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
            done = start + len(batch)
            progress(done, n, done * max_new_tokens, n * max_new_tokens)
    finally:
        model.generation_config = model_config
    return answers


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
) -> list[str]:
    ids_BT, mask_BT = padded_left(prompts, model.generation_config.pad_token_id)
    whole_BT = model.generate(
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)
    )
    new_BT = whole_BT[:, ids_BT.shape[1] :]
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


def padded_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [B, T] tokens and attention mask, padded on the left."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for at, row in enumerate(rows):
        ids_BT[at, longest - len(row) :] = torch.tensor(list(row))
        mask_BT[at, longest - len(row) :] = 1
    return ids_BT, mask_BT


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Return [B, T] positions of tokens that are padded on the left."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def padding_is_exact(model: PreTrainedModel, row: Sequence[int]) -> bool:
    """Return whether a row of two tokens or more has the same logits alone and padded on the left.

    It has not where the state of a recurrent model runs through the padding, and where a model
    takes no positions.
    """
    short = row[: max(2, len(row) // 2)]
    ids_BT, mask_BT = (part.to(model.device) for part in padded_left([row, short], 0))
    try:
        padded_V = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions(mask_BT),
            use_cache=False,
            logits_to_keep=1,
        ).logits[1, -1]
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    alone_V = model(input_ids=torch.tensor([list(short)], device=model.device)).logits[0, -1]
    gap = (padded_V.float() - alone_V.float()).abs().max()
    return bool(gap <= TOLERANCE * (1 + alone_V.float().abs().max()))
