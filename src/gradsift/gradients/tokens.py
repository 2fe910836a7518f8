"""Which row each position of a micro-batch belongs to, and which predict a response token.

A row of the batch is one instance, or several that were packed end to end; *rows* are instances.
Shapes: B rows of the batch, T positions, I instances, N flattened tokens, X numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gradsift.terms import IGNORED_LABEL


@dataclass(frozen=True)
class ResponseTokens:
    """The tokens that have a loss, flattened row after row: whole rows are slices.

    How many tokens each row has is known to the host, so that nothing has to wait for
    the device. On the CPU these are the response tokens. Labels that are on an accelerator already
    cannot be counted without waiting for it; then every position is taken, and those without
    a response token have the target -100.

    Attributes:
        shape: B and T of the micro-batch.
        lengths: Of each row, how many flattened tokens it has.
        positions_N: Where each token is predicted, as a position in the flattened [B·T].
        targets_N: The tokens, -100 where a position predicts none.
        rows_N: The row of each.
        offsets_I1: Where each row begins, and the end of the last, int32.
        rows_BT: The row of every position; I where it belongs to none (padding).
        is_packed: Whether a row of the batch may hold several instances.
    """

    shape: tuple[int, int]
    lengths: tuple[int, ...]
    positions_N: torch.Tensor
    targets_N: torch.Tensor
    rows_N: torch.Tensor
    offsets_I1: torch.Tensor
    rows_BT: torch.Tensor
    is_packed: bool

    @classmethod
    def of(
        cls,
        labels_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        position_ids_BT: torch.Tensor | None = None,
    ) -> ResponseTokens:
        """Flatten the tokens of a micro-batch; waits for a device only if rows may be packed.

        The mask is 0 on padding; where rows are packed it may be 1, 2, … on the first, the second,
        …. A row also begins where position ids do not go on by one.
        """
        if labels_BT.device.type == "cpu" or position_ids_BT is not None:
            return cls.compact(labels_BT, mask_BT, position_ids_BT)
        return cls.every_position(labels_BT, mask_BT)

    @classmethod
    def compact(
        cls,
        labels_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        position_ids_BT: torch.Tensor | None = None,
    ) -> ResponseTokens:
        """Flatten the response tokens only; reads how many there are."""
        starts_BT = _starts(labels_BT, mask_BT, position_ids_BT)
        if starts_BT is None:
            n_rows, rows_BT = len(labels_BT), _rows_of_batch(labels_BT, mask_BT)
        else:
            rows_BT = starts_BT.flatten().cumsum(0).view_as(starts_BT) - 1
            n_rows = int(rows_BT[-1, -1]) + 1
            rows_BT = _without_padding(rows_BT, mask_BT, n_rows)
        targets_BS = _targets(labels_BT, rows_BT, n_rows)
        at_N, columns_N = (targets_BS != IGNORED_LABEL).nonzero(as_tuple=True)
        rows_N = rows_BT[at_N, columns_N]
        lengths = torch.bincount(rows_N, minlength=n_rows).tolist()
        return cls._flattened(
            lengths, at_N, columns_N, targets_BS[at_N, columns_N], rows_N, rows_BT,
            is_packed=starts_BT is not None,
        )  # fmt: skip

    @classmethod
    def every_position(
        cls, labels_BT: torch.Tensor, mask_BT: torch.Tensor | None = None
    ) -> ResponseTokens:
        """Flatten every position but the last of each row, where rows are not packed."""
        n_rows, n_positions = labels_BT.shape
        rows_BT = _rows_of_batch(labels_BT, mask_BT)
        at_BS = torch.arange(n_rows * (n_positions - 1), device=labels_BT.device)
        rows_N, columns_N = at_BS // max(1, n_positions - 1), at_BS % max(1, n_positions - 1)
        targets_N = _targets(labels_BT, rows_BT, n_rows).flatten()
        lengths = [n_positions - 1] * n_rows
        return cls._flattened(
            lengths, rows_N, columns_N, targets_N, rows_N, rows_BT, is_packed=False
        )

    @classmethod
    def _flattened(
        cls,
        lengths: list[int],
        at_N: torch.Tensor,
        columns_N: torch.Tensor,
        targets_N: torch.Tensor,
        rows_N: torch.Tensor,
        rows_BT: torch.Tensor,
        *,
        is_packed: bool,
    ) -> ResponseTokens:
        offsets_I1 = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        n_rows, n_positions = rows_BT.shape
        return cls(
            shape=(n_rows, n_positions),
            lengths=tuple(lengths),
            positions_N=at_N * n_positions + columns_N,
            targets_N=targets_N,
            rows_N=rows_N,
            offsets_I1=offsets_I1.to(rows_N.device, non_blocking=True),
            rows_BT=rows_BT,
            is_packed=is_packed,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ResponseTokens:
        """Return the same on another device; batches are moved by whoever loads data."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ResponseTokens:
        """Return the same in memory from which copies do not wait; data loaders call this."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ResponseTokens:
        names = ("positions_N", "targets_N", "rows_N", "offsets_I1", "rows_BT")
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    @property
    def n_rows(self) -> int:
        """Instances."""
        return len(self.lengths)

    @property
    def n_tokens_I(self) -> torch.Tensor:
        """Response tokens of each row, int64, on the device."""
        return self.sum_rows((self.targets_N != IGNORED_LABEL).long())

    def take(self, values_BTX: torch.Tensor) -> torch.Tensor:
        """Return what stands at the flattened positions, [N, ...], of values for all positions."""
        return values_BTX.flatten(0, 1).index_select(0, self.positions_N)

    def put(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Return values at their positions, [B, T, ...], zeros elsewhere; undoes `take`."""
        n_rows, n_positions = self.shape
        flat = values_NX.new_zeros(n_rows * n_positions, *values_NX.shape[1:])
        return flat.index_copy_(0, self.positions_N, values_NX).unflatten(0, self.shape)

    def sum_rows(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Return the sums of values over the tokens of each row, [I, ...]."""
        sums_IX = values_NX.new_zeros(self.n_rows, *values_NX.shape[1:])
        return sums_IX.index_add_(0, self.rows_N, values_NX)

    def sum_positions(self, values_BTX: torch.Tensor) -> torch.Tensor:
        """Return the sums of values over all positions of each row, padding excluded, [I, ...]."""
        sums_JX = values_BTX.new_zeros(self.n_rows + 1, *values_BTX.shape[2:])
        return sums_JX.index_add_(0, self.rows_BT.flatten(), values_BTX.flatten(0, 1))[:-1]

    def split(self, values_BT: torch.Tensor) -> list[torch.Tensor]:
        """Return the values of each row, padding excluded; on the CPU, as tensors there are."""
        rows_P, values_P = self.rows_BT.flatten(), values_BT.flatten()
        order_P = rows_P.argsort(stable=True)
        lengths = torch.bincount(rows_P, minlength=self.n_rows + 1).tolist()
        return list(values_P[order_P].split(lengths))[:-1]


def _rows_of_batch(labels_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    n_rows = len(labels_BT)
    rows_BT = torch.arange(n_rows, device=labels_BT.device)[:, None].expand(labels_BT.shape)
    return _without_padding(rows_BT, mask_BT, n_rows)


def _without_padding(
    rows_BT: torch.Tensor, mask_BT: torch.Tensor | None, n_rows: int
) -> torch.Tensor:
    return rows_BT if mask_BT is None else rows_BT.masked_fill(mask_BT <= 0, n_rows)


def _starts(
    labels_BT: torch.Tensor, mask_BT: torch.Tensor | None, position_ids_BT: torch.Tensor | None
) -> torch.Tensor | None:
    """Return where a row begins, or None if each row of the batch is one."""
    real_BT = torch.ones_like(labels_BT, dtype=torch.bool) if mask_BT is None else mask_BT > 0
    joins_BS = real_BT[:, 1:] & real_BT[:, :-1]
    breaks_BS = torch.zeros_like(joins_BS)
    if mask_BT is not None:
        breaks_BS |= mask_BT[:, 1:] != mask_BT[:, :-1]
    if position_ids_BT is not None:
        # What transformers, too, takes for the beginning of another sequence.
        breaks_BS |= position_ids_BT.expand_as(labels_BT).diff(dim=1) != 1
    if not bool((breaks_BS & joins_BS).any()):
        return None
    starts_BT = real_BT.clone()
    starts_BT[:, 1:] &= breaks_BS | ~real_BT[:, :-1]
    return starts_BT


def _targets(labels_BT: torch.Tensor, rows_BT: torch.Tensor, n_rows: int) -> torch.Tensor:
    # A token after padding or another row has nothing before it that could predict it.
    joins_BS = (rows_BT[:, 1:] == rows_BT[:, :-1]) & (rows_BT[:, 1:] < n_rows)
    return labels_BT[:, 1:].masked_fill(~joins_BS, IGNORED_LABEL)
