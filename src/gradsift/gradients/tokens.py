"""Which positions of a micro-batch predict a response token, row after row.

Shapes: B rows, T positions, N tokens laid out end to end, F numbers of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

IGNORED_LABEL = -100


@dataclass(frozen=True)
class ResponseTokens:
    """The tokens that have a loss, laid out row after row: whole rows are slices.

    How many tokens are laid out of each row is known to the host, so that nothing has to wait for
    the device. On the CPU these are the response tokens. Labels that are on an accelerator already
    cannot be counted without waiting for it; then every position is laid out, and those without
    a response token have the target -100.

    Attributes:
        shape: B and T of the micro-batch.
        lengths: Of each row, how many tokens are laid out.
        positions_N: Where each token is predicted, as a position in the flattened [B·T].
        targets_N: The tokens, -100 where a position predicts none.
        rows_N: The row of each.
        offsets_B1: Where each row begins, and the end of the last, int32.
    """

    shape: tuple[int, int]
    lengths: tuple[int, ...]
    positions_N: torch.Tensor
    targets_N: torch.Tensor
    rows_N: torch.Tensor
    offsets_B1: torch.Tensor

    @classmethod
    def of(cls, labels_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> ResponseTokens:
        """Lay out the tokens of a micro-batch without waiting for a device.

        Args:
            labels_BT: The tokens where they belong to the response, else -100.
            mask_BT: 0 on padding, or None where there is none.

        Returns:
            The response tokens only, if the labels are on the CPU, else every position.
        """
        layout = cls.packed if labels_BT.device.type == "cpu" else cls.every_position
        return layout(labels_BT, mask_BT)

    @classmethod
    def packed(cls, labels_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> ResponseTokens:
        """Lay out the response tokens only; reads how many there are.

        Args:
            labels_BT: The tokens where they belong to the response, else -100.
            mask_BT: 0 on padding, or None where there is none.

        Returns:
            The layout.
        """
        targets_BS = _targets(labels_BT, mask_BT)
        rows_N, columns_N = (targets_BS != IGNORED_LABEL).nonzero(as_tuple=True)
        lengths = (targets_BS != IGNORED_LABEL).sum(1).tolist()
        return cls._laid_out(
            labels_BT.shape, lengths, rows_N, columns_N, targets_BS[rows_N, columns_N]
        )

    @classmethod
    def every_position(
        cls, labels_BT: torch.Tensor, mask_BT: torch.Tensor | None = None
    ) -> ResponseTokens:
        """Lay out every position but the last of each row.

        Args:
            labels_BT: The tokens where they belong to the response, else -100.
            mask_BT: 0 on padding, or None where there is none.

        Returns:
            The layout.
        """
        n_rows, n_positions = labels_BT.shape
        at_BS = torch.arange(n_rows * (n_positions - 1), device=labels_BT.device)
        rows_N, columns_N = at_BS // max(1, n_positions - 1), at_BS % max(1, n_positions - 1)
        targets_N = _targets(labels_BT, mask_BT).flatten()
        lengths = [n_positions - 1] * n_rows
        return cls._laid_out(labels_BT.shape, lengths, rows_N, columns_N, targets_N)

    @classmethod
    def _laid_out(
        cls,
        shape: torch.Size,
        lengths: list[int],
        rows_N: torch.Tensor,
        columns_N: torch.Tensor,
        targets_N: torch.Tensor,
    ) -> ResponseTokens:
        offsets_B1 = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(
            shape=(shape[0], shape[1]),
            lengths=tuple(lengths),
            positions_N=rows_N * shape[1] + columns_N,
            targets_N=targets_N,
            rows_N=rows_N,
            offsets_B1=offsets_B1.to(rows_N.device, non_blocking=True),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ResponseTokens:
        """Return the same on another device; batches are moved by whoever loads data."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ResponseTokens:
        """Return the same in memory from which copies do not wait; data loaders call this."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, do) -> ResponseTokens:
        names = ("positions_N", "targets_N", "rows_N", "offsets_B1")
        return replace(self, **{name: do(getattr(self, name)) for name in names})

    @property
    def n_tokens_B(self) -> torch.Tensor:
        """Response tokens of each row, int64, on the device."""
        return self.sum_rows((self.targets_N != IGNORED_LABEL).long())

    def take(self, values_BTX: torch.Tensor) -> torch.Tensor:
        """Return what stands at the laid-out positions, [N, ...], of values for all positions."""
        return values_BTX.flatten(0, 1).index_select(0, self.positions_N)

    def put(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Return values at their positions, [B, T, ...], zeros elsewhere; undoes `take`."""
        n_rows, n_positions = self.shape
        flat = values_NX.new_zeros(n_rows * n_positions, *values_NX.shape[1:])
        return flat.index_copy_(0, self.positions_N, values_NX).unflatten(0, self.shape)

    def sum_rows(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Return the sums of values over the tokens of each row, [B, ...]."""
        sums_BX = values_NX.new_zeros(self.shape[0], *values_NX.shape[1:])
        return sums_BX.index_add_(0, self.rows_N, values_NX)


def _targets(labels_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    targets_BS = labels_BT[:, 1:]
    if mask_BT is None:
        return targets_BS
    # A token after padding has nothing before it that could predict it.
    real_BS = (mask_BT[:, 1:] > 0) & (mask_BT[:, :-1] > 0)
    return targets_BS.masked_fill(~real_BS, IGNORED_LABEL)
