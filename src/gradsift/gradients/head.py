"""The backprops of the LM head in closed form, from the last hidden state: no backward pass.

For one instance with n response tokens and loss `l = -1/n Σ_t log p_t(y_t)` the gradient with
respect to the logits is `(softmax − one-hot) / n`. Where logits are scaled or soft-capped after
the projection, the chain rule multiplies it. Shapes as in statistics.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gradsift.gradients.statistics import BLOCK_ROWS

# Up to this size the logits of one instance are kept between the two sweeps over the vocabulary.
KEEP_LOGITS_BYTES = 512 * 2**20


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to the head's output before the softmax: `cap · tanh(scale · z / cap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits for the head's raw output `z` (any shape)."""
        z = z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def derivative(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Return d logits / d z, given the logits themselves."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())


class HeadBackprops:
    """Loss and backprops of the LM head for the response tokens of one instance.

    Attributes:
        loss: Mean negative log-likelihood over the response tokens, in nats (a 0-d tensor).
    """

    def __init__(
        self,
        x_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_T: torch.Tensor,
        transform: HeadTransform,
    ):
        """Sweep over the vocabulary once, for the normaliser of the softmax.

        Args:
            x_TD: Last hidden state at the positions that predict a response token.
            weight_VD: Weight of the head.
            bias_V: Bias of the head, or None.
            targets_T: The response tokens.
            transform: Scale and soft-cap after the projection.
        """
        dtype = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        self._x_TD = x_TD.to(dtype)
        self._weight_VD, self._bias_V = weight_VD, bias_V
        self._targets_T, self._transform, self._dtype = targets_T, transform, dtype
        self._starts = range(0, weight_VD.shape[0], BLOCK_ROWS)
        n_bytes = x_TD.shape[0] * weight_VD.shape[0] * dtype.itemsize
        self._kept: list[torch.Tensor] | None = [] if n_bytes <= KEEP_LOGITS_BYTES else None
        log_sums = []
        target_logits_T = torch.zeros(x_TD.shape[0], dtype=dtype, device=x_TD.device)
        for start in self._starts:
            logits_TR = self._logits(start)
            if self._kept is not None:
                self._kept.append(logits_TR)
            log_sums.append(logits_TR.logsumexp(1))
            inside_T, column_T = self._targets_in(start, logits_TR.shape[1])
            found_T = logits_TR.gather(1, column_T.unsqueeze(1)).squeeze(1)
            target_logits_T = torch.where(inside_T, found_T, target_logits_T)
        self._log_normaliser_T = torch.stack(log_sums).logsumexp(0)
        self.loss = (self._log_normaliser_T - target_logits_T).mean()

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of the loss with respect to the head's output, block by block.

        Yields:
            delta_TR for consecutive blocks of at most BLOCK_ROWS vocabulary rows.
        """
        n_tokens = self._x_TD.shape[0]
        rows_T = torch.arange(n_tokens, device=self._x_TD.device)
        for i, start in enumerate(self._starts):
            logits_TR = self._logits(start) if self._kept is None else self._kept[i]
            delta_TR = (logits_TR - self._log_normaliser_T.unsqueeze(1)).exp_()
            inside_T, column_T = self._targets_in(start, logits_TR.shape[1])
            delta_TR[rows_T, column_T] -= inside_T.to(delta_TR.dtype)
            yield delta_TR.mul_(self._transform.derivative(logits_TR)).div_(n_tokens)

    def _logits(self, start: int) -> torch.Tensor:
        z_TR = self._x_TD @ self._weight_VD[start : start + BLOCK_ROWS].T.to(self._dtype)
        if self._bias_V is not None:
            z_TR = z_TR + self._bias_V[start : start + BLOCK_ROWS].to(self._dtype)
        return self._transform.forward(z_TR)

    def _targets_in(self, start: int, n_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        column_T = self._targets_T - start
        inside_T = (column_T >= 0) & (column_T < n_columns)
        return inside_T, column_T.clamp(0, n_columns - 1)
