"""A micro-batch as a loop hands it to its model: which row is where, and what it is called.

Shapes: B rows of the batch, T positions, I instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.tokens import ResponseTokens
from gradsift.recording.plain_loss import Batch, copied
from gradsift.recording.row_names import unboxed


@dataclass(frozen=True)
class LoopBatch:
    """What is remembered of a micro-batch; tensors are copies, as a loop may fill its own anew.

    Attributes:
        ids: What the column of ids held, or None; read with the records.
        is_numbered: Whether its mask numbers packed rows, though that was not expected; 0-d.
    """

    ids: Any
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    tokens: ResponseTokens
    is_numbered: torch.Tensor | None

    def tensors(self) -> Batch:
        """Return tokens, labels and their layout."""
        return self.input_ids_BT, self.labels_BT, self.tokens

    def split(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the tokens and the labels of each row, on the CPU."""
        tokens = self.tokens.to("cpu")
        return tuple(tokens.split(t.cpu()) for t in (self.input_ids_BT, self.labels_BT))

    def require_no_numbers(self) -> None:
        """Refuse a mask that numbers rows later than in the first batch; waits for the device."""
        if self.is_numbered is not None and bool(self.is_numbered):
            raise GradsiftError(
                "the attention mask numbers packed rows (1, 2, …), and in the first batch it did "
                "not: give position_ids that begin anew with each row, or numbers above 1 in the "
                "first batch, too."
            )


class LoopBatches:
    """Reads micro-batches off the calls of a model."""

    def __init__(self) -> None:
        """Whether masks number packed rows is seen in the first batch."""
        self._numbers_rows: bool | None = None

    def read(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], ids: Any, column: str | None
    ) -> LoopBatch:
        """Read one off the arguments of the model's call, and what its column of ids held."""
        if column is not None and ids is None:
            raise GradsiftError(
                f"the batch has no column {column!r}. transformers' Trainer removes columns that "
                "the model does not name: set remove_unused_columns=False. With a pool and its "
                "trainer in the model's place no ids are needed."
            )
        input_ids_BT = kwargs.get("input_ids", args[0] if args else None)
        labels_BT = kwargs.get("labels")
        mask_BT = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if input_ids_BT is None:
            raise GradsiftError(
                "the model was called without `input_ids`: the gradient of the embedding table is "
                "that of its tokens, so embeddings given in their place are not recorded."
            )
        if labels_BT is None:
            raise GradsiftError(
                "the model was called without `labels`, so it cannot be told which tokens are the "
                "response. Pass them to the model; its own loss need not be used. (transformers "
                "and trl take them away where compute_loss_func or label smoothing is set.)"
            )
        ids, input_ids_BT, labels_BT = (copied(v) for v in (ids, input_ids_BT, labels_BT))
        tokens = self._layout(labels_BT, mask_BT, _positions(kwargs, labels_BT))
        if ids is not None:
            ids = _one_per_row(ids, tokens, column)
        may_number = mask_BT is not None and mask_BT.dim() == 2 and not tokens.is_packed
        is_numbered = (mask_BT > 1).any() if may_number else None
        return LoopBatch(ids, input_ids_BT, labels_BT, tokens, is_numbered)

    def _layout(
        self,
        labels_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        position_ids_BT: torch.Tensor | None,
    ) -> ResponseTokens:
        if mask_BT is not None and mask_BT.dim() != 2:
            if position_ids_BT is None:
                raise GradsiftError(
                    f"an attention mask of {mask_BT.dim()} dimensions, and no position_ids: which "
                    "positions are padding, and where a packed row begins, cannot be told."
                )
            mask_BT = None
        if self._numbers_rows is None:
            self._numbers_rows = mask_BT is not None and bool((mask_BT > 1).any())
        if self._numbers_rows:
            return ResponseTokens.compact(labels_BT, mask_BT, position_ids_BT)
        return ResponseTokens.of(labels_BT, copied(mask_BT), position_ids_BT)


def _positions(kwargs: Mapping[str, Any], labels_BT: torch.Tensor) -> torch.Tensor | None:
    """Return the positions by which a packed row is told from the next, [B, T]."""
    positions, starts_I1 = kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q")
    if positions is None and starts_I1 is not None:
        return positions_from(starts_I1, labels_BT)
    if positions is None or positions.dim() < 3:
        return positions
    # Of height and width besides, for images; the first of four is that of the text.
    is_of_text = len(positions) == 4 or bool((positions == positions[0]).all())
    return positions[0] if is_of_text else None


def positions_from(starts_I1: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return positions [B, T] that begin anew where rows do, given FlashAttention's starts."""
    at_T = torch.arange(labels_BT.numel(), device=labels_BT.device)
    row_T = torch.searchsorted(starts_I1[1:].to(at_T), at_T, right=True)
    return (at_T - starts_I1.to(at_T)[row_T]).view(labels_BT.shape)


def _one_per_row(ids: Any, tokens: ResponseTokens, column: str) -> Any:
    """Require one id for each row; what is left over in a packed row needs none."""
    if not tokens.is_packed and hasattr(ids, "numel") and ids.numel() == tokens.n_rows:
        return ids  # Perhaps on a device, for which nobody need wait yet.
    ids = unboxed(ids)
    labelled = [row for row, length in enumerate(tokens.lengths) if length]
    if tokens.is_packed and len(ids) == len(labelled) != tokens.n_rows:
        by_row = dict(zip(labelled, ids, strict=True))
        ids = [by_row.get(row) for row in range(tokens.n_rows)]
    if len(ids) == tokens.n_rows:
        return ids
    where = "also for those that are packed into one"
    if tokens.is_packed:
        where = "a row begins wherever position_ids do not go on by one"
    raise GradsiftError(
        f"a batch of {tokens.n_rows} rows has {len(ids)} ids in {column!r}: expected one for each "
        f"row ({where})."
    )
