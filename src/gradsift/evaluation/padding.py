"""Rows of different lengths in one batch, where the model allows it.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

TOLERANCE = 1e-2


def padded_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [B, T] tokens and attention mask, padded on the left.

    Args:
        rows: Of any lengths, at least one.
        pad: What is put before the shorter ones.

    Returns:
        Tokens, and 1 where there is one.
    """
    longest = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for at, row in enumerate(rows):
        ids_BT[at, longest - len(row) :] = torch.tensor(list(row))
        mask_BT[at, longest - len(row) :] = 1
    return ids_BT, mask_BT


def last_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], n_kept: int) -> torch.Tensor:
    """Run rows in one batch, padded on the left.

    Args:
        model: In evaluation mode.
        rows: Tokens of each.
        n_kept: Positions, from the end, whose logits are wanted.

    Returns:
        [B, n_kept, V] logits.
    """
    ids_BT, mask_BT = padded_left(rows, 0)
    return model(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0).to(model.device),
        use_cache=False,
        logits_to_keep=n_kept,
    ).logits[:, -n_kept:]


@torch.no_grad()
def padding_is_exact(model: PreTrainedModel, row: Sequence[int]) -> bool:
    """Say whether a row has the same logits alone and padded on the left.

    It has not where the state of a recurrent model runs through the padding, and where a model
    takes no positions.

    Args:
        model: In evaluation mode.
        row: At least two tokens.

    Returns:
        Whether rows may share a batch.
    """
    short = row[: max(2, len(row) // 2)]
    try:
        together = last_logits(model, [row, short], 1)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    alone = model(input_ids=torch.tensor([list(short)], device=model.device)).logits[0, -1]
    gap = (together[1, -1].float() - alone.float()).abs().max()
    return bool(gap <= TOLERANCE * (1 + alone.float().abs().max()))
