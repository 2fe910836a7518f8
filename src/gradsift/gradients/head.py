"""The backprops of the LM head in closed form, from the last hidden state: no backward pass.

For one instance with n response tokens and loss `l = -1/n Σ_t log p_t(y_t)` the gradient with
respect to the logits is `(softmax − one-hot) / n`. Where logits are scaled or soft-capped after
the projection, the chain rule multiplies it. Shapes as in statistics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from gradsift.gradients.statistics import BLOCK_ROWS

# Up to this size the logits of one instance are kept between the two sweeps over the vocabulary.
KEEP_LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to the head's output before the softmax: `cap · tanh(scale · z / cap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits for the head's raw output `z` (any shape)."""
        z = z if self.scale == 1 else z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def derivative(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Return d logits / d z, given the logits themselves."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())


class HeadBackprops:
    """Loss and backprops of the LM head for the response tokens of one instance.

    Attributes:
        n_rows: V, rows of the head's weight.
        log_probs_T: Log-likelihood of each response token, in nats.
        loss: Mean negative log-likelihood over the response tokens, in nats (a 0-d tensor).
        error_norm: Mean over the response tokens of ‖softmax − one-hot‖₂, which is EL2N (arXiv
            2107.07075) with tokens for classes; None until `blocks` has been run through.
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
            x_TD: Last hidden state at the positions that predict a response token. Its dtype is
                that of the product with the weight; what follows is in at least float32.
            weight_VD: Weight of the head.
            bias_V: Bias of the head, or None.
            targets_T: The response tokens.
            transform: Scale and soft-cap after the projection.
        """

        def outputs(start: int) -> torch.Tensor:
            z_TR = x_TD @ weight_VD[start : start + BLOCK_ROWS].T.to(x_TD.dtype)
            if bias_V is not None:
                z_TR = z_TR + bias_V[start : start + BLOCK_ROWS].to(x_TD.dtype)
            return z_TR

        n_bytes = x_TD.shape[0] * weight_VD.shape[0] * _at_least_float32(x_TD.dtype).itemsize
        self._sweep(outputs, weight_VD.shape[0], targets_T, transform, keep=n_bytes)

    @classmethod
    def from_outputs(
        cls, z_TV: torch.Tensor, targets_T: torch.Tensor, transform: HeadTransform
    ) -> HeadBackprops:
        """Take the head's outputs that a forward pass has computed.

        Args:
            z_TV: The head's raw outputs at the positions that predict a response token.
            targets_T: The response tokens.
            transform: Scale and soft-cap after the projection.

        Returns:
            The same as from the hidden states.
        """
        new = cls.__new__(cls)
        new._sweep(
            lambda start: z_TV[:, start : start + BLOCK_ROWS],
            z_TV.shape[1],
            targets_T,
            transform,
            keep=0,
        )
        return new

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of the loss with respect to the head's output, block by block.

        Yields:
            delta_TR for consecutive blocks of at most BLOCK_ROWS vocabulary rows.
        """
        n_tokens = len(self._targets_T)
        rows_T = torch.arange(n_tokens, device=self._targets_T.device)
        square_sum_T = torch.zeros_like(self._log_normaliser_T)
        for i, start in enumerate(self._starts):
            logits_TR = self._logits(start) if self._kept is None else self._kept[i]
            delta_TR = (logits_TR - self._log_normaliser_T.unsqueeze(1)).exp_()
            inside_T, column_T = self._targets_in(start, logits_TR.shape[1])
            delta_TR[rows_T, column_T] -= inside_T.to(delta_TR.dtype)
            square_sum_T += torch.linalg.vector_norm(delta_TR, dim=1).square()
            yield delta_TR.mul_(self._transform.derivative(logits_TR)).div_(n_tokens)
        self.error_norm = square_sum_T.sqrt().mean()

    def _sweep(
        self,
        outputs: Callable[[int], torch.Tensor],
        n_rows: int,
        targets_T: torch.Tensor,
        transform: HeadTransform,
        *,
        keep: int,
    ) -> None:
        self._outputs, self._transform, self._targets_T = outputs, transform, targets_T
        self.n_rows = n_rows
        self._starts = range(0, n_rows, BLOCK_ROWS)
        self._kept: list[torch.Tensor] | None = [] if 0 < keep <= KEEP_LOGITS_BYTES else None
        self.error_norm: torch.Tensor | None = None
        log_sums, found = [], []
        for start in self._starts:
            logits_TR = self._logits(start)
            if self._kept is not None:
                self._kept.append(logits_TR)
            log_sums.append(logits_TR.logsumexp(1))
            inside_T, column_T = self._targets_in(start, logits_TR.shape[1])
            found_T = logits_TR.gather(1, column_T.unsqueeze(1)).squeeze(1)
            found.append(torch.where(inside_T, found_T, 0.0))
        self._log_normaliser_T = torch.stack(log_sums).logsumexp(0)
        self.log_probs_T = torch.stack(found).sum(0) - self._log_normaliser_T
        self.loss = -self.log_probs_T.mean()

    def _logits(self, start: int) -> torch.Tensor:
        z_TR = self._outputs(start)
        return self._transform.forward(z_TR.to(_at_least_float32(z_TR.dtype)))

    def _targets_in(self, start: int, n_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        column_T = self._targets_T - start
        inside_T = (column_T >= 0) & (column_T < n_columns)
        return inside_T, column_T.clamp(0, n_columns - 1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
