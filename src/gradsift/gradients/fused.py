"""Loss, weight gradient and per-sample statistics of a linear LM head from the same products.

A training step needs three products with the head's weight: logits, the gradient of the hidden
states, the gradient of the weight. The last one, taken row by row instead of for the whole batch,
is each row's own gradient. So the statistics cost only the passes that read them off. All three
are taken in the forward pass, as there the logits of one row are at hand anyway, and logits
[B, T, V] are never held. Shapes: B rows, T positions, D width, V vocabulary, N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gradsift.gradients.head import HeadBackprops, HeadTransform
from gradsift.gradients.statistics import GradientSummary, Projection, linear_summary

IGNORED_LABEL = -100


@dataclass(frozen=True)
class HeadRow:
    """What the LM head says of one row.

    Attributes:
        loss: Instance loss, mean over the response tokens, in nats (0-d).
        error_norm: See `HeadBackprops`.
        n_response_tokens: Tokens with a loss.
        summary: Of the gradient of the instance loss at the head's weight.
    """

    loss: torch.Tensor
    error_norm: torch.Tensor
    n_response_tokens: int
    summary: GradientSummary


def head_row(
    x_ND: torch.Tensor,
    backprops: HeadBackprops,
    projection: Projection,
    use_block: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> HeadRow:
    """Summarise one row's gradient at the head; no backward pass is needed for it.

    Args:
        x_ND: Input of the head at the positions that predict a response token.
        backprops: Of the same tokens.
        projection: For the sketch.
        use_block: See `linear_summary`.

    Returns:
        Loss, error norm and summary.
    """
    blocks = backprops.blocks()
    summary = linear_summary(x_ND, blocks, backprops.n_rows, projection, use_block)
    return HeadRow(backprops.loss, backprops.error_norm, len(x_ND), summary)


class FusedHead:
    """The LM head as training calls it; while it has a listener, it also summarises each row.

    Attributes:
        transform: What the model does to the head's output before the softmax.
        listener: Called in every forward pass with the hidden states, the rows (in the batch's
            order; None without a response token), and the log-likelihoods it returns.
        projection: For the sketches; the listener sets it.
    """

    def __init__(self, transform: HeadTransform):
        """Nothing is listened to yet.

        Args:
            transform: What the model does to the head's output before the softmax.
        """
        self.transform = transform
        self.listener: Callable[[torch.Tensor, list[HeadRow], torch.Tensor], None] | None = None
        self.projection: Projection | None = None

    # A compiled model calls this as it is: it loops over rows and talks to the listener.
    @torch.compiler.disable
    def __call__(
        self, hidden_BTD: torch.Tensor, head: nn.Linear, labels_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return the log-likelihood of each response token.

        Args:
            hidden_BTD: Last hidden state.
            head: The head; its weight and bias are read.
            labels_BT: The tokens where they belong to the response, else -100.

        Returns:
            [B, T-1] float32 (or float64); 0 where the next token has no label. Its gradient must
            be the same for all response tokens, as that of a sum or mean is.
        """
        weight_VD, bias_V = (_whole(tensor) for tensor in (head.weight, head.bias))
        rows = None if self.listener is None else []
        job = _Job(labels_BT, self.transform, self.projection, rows)
        log_probs_BT = _ResponseLogProbs.apply(
            hidden_BTD, weight_VD, bias_V, job, torch.is_grad_enabled()
        )
        if self.listener is not None:
            self.listener(hidden_BTD.detach(), rows, log_probs_BT)
        return log_probs_BT


@dataclass
class _Job:
    """What one forward pass is to do, and (in rows, if wanted) what it says of each row."""

    labels_BT: torch.Tensor
    transform: HeadTransform
    projection: Projection | None
    rows: list[HeadRow | None] | None


class _ResponseLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_BTD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        job: _Job,
        differentiable: bool,
    ) -> torch.Tensor:
        kind = hidden_BTD.device.type
        # Inside autocast the product has autocast's dtype; what is summed up has not.
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else hidden_BTD.dtype
        labels_BT = job.labels_BT[:, 1:].to(hidden_BTD.device)
        with torch.autocast(kind, enabled=False):
            ctx.needed = ctx.needs_input_grad[:3] if differentiable else (False,) * 3
            sums = _GradientSums(hidden_BTD, weight_VD, bias_V, ctx.needed)
            log_probs_BT = torch.zeros(labels_BT.shape, dtype=sums.dtype, device=labels_BT.device)
            for row, labels_T in enumerate(labels_BT):
                response_T = labels_T != IGNORED_LABEL
                x_ND = hidden_BTD[row, :-1][response_T].to(dtype)
                if len(x_ND) == 0:
                    if job.rows is not None:
                        job.rows.append(None)
                    continue
                targets_N = labels_T[response_T]
                backprops = HeadBackprops(x_ND, weight_VD, bias_V, targets_N, job.transform)
                log_probs_BT[row, response_T] = backprops.log_probs_T
                if differentiable or job.rows is not None:
                    sums.add_row(row, response_T, x_ND, backprops, job)
        ctx.sums, ctx.response_BT = sums, labels_BT != IGNORED_LABEL
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_BTD, weight_VD, bias_V)]
        return log_probs_BT

    @staticmethod
    def backward(ctx, log_prob_gradient_BT: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The loss is −Σ w·log p; what was summed up is the gradient of −Σ log p.
        weight = -_equal(log_prob_gradient_BT[ctx.response_BT])
        sums, ctx.sums = ctx.sums, None
        tensors = zip((sums.hidden_BTD, sums.weight_VD, sums.bias_V), ctx.dtypes, strict=True)
        return (
            *(None if t is None else t.mul_(weight).to(dtype) for t, dtype in tensors),
            None,
            None,
        )


class _GradientSums:
    """Gradients of the sum of all token losses, while the weight of a token is not yet known."""

    def __init__(
        self,
        hidden_BTD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        needed: tuple[bool, ...],
    ):
        self.dtype = torch.float64 if hidden_BTD.dtype == torch.float64 else torch.float32
        self._head_weight_VD = weight_VD
        self.hidden_BTD, self.weight_VD, self.bias_V = (
            torch.zeros(tensor.shape, dtype=self.dtype, device=tensor.device) if wanted else None
            for tensor, wanted in zip((hidden_BTD, weight_VD, bias_V), needed, strict=True)
        )

    def add_row(
        self,
        row: int,
        response_T: torch.Tensor,
        x_ND: torch.Tensor,
        backprops: HeadBackprops,
        job: _Job,
    ) -> None:
        x_ND = x_ND.to(self.dtype)
        n_tokens = len(x_ND)
        hidden_gradient_ND = torch.zeros_like(x_ND)

        def add(start: int, delta_NR: torch.Tensor, gradient_RD: torch.Tensor | None) -> None:
            stop = start + delta_NR.shape[1]
            if self.hidden_BTD is not None:
                hidden_gradient_ND.addmm_(delta_NR, self._head_weight_VD[start:stop].to(self.dtype))
            if self.weight_VD is not None:
                self.weight_VD[start:stop].add_(gradient_RD, alpha=n_tokens)
            if self.bias_V is not None:
                self.bias_V[start:stop].add_(delta_NR.sum(0), alpha=n_tokens)

        if job.rows is not None:
            job.rows.append(head_row(x_ND, backprops, job.projection, add))
        else:
            # The very products that a summary takes, so that training is the same to the bit.
            start = 0
            for delta_NR in backprops.blocks():
                add(start, delta_NR, None if self.weight_VD is None else delta_NR.T @ x_ND)
                start += delta_NR.shape[1]
        if self.hidden_BTD is not None:
            self.hidden_BTD[row, :-1][response_T] = hidden_gradient_ND.mul_(n_tokens)


def _equal(weights_N: torch.Tensor) -> torch.Tensor:
    if len(weights_N) == 0:
        return weights_N.new_zeros(())
    low, high = weights_N.aminmax()
    if high - low > 1e-5 * torch.maximum(high.abs(), low.abs()):
        raise ValueError(
            f"the loss weighs response tokens between {float(-high):.3g} and {float(-low):.3g}; "
            "the fused head needs one weight for all (loss_type: nll, no label smoothing)."
        )
    return high


def _whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    # FSDP2 keeps shards as DTensors; gathered whole, the gradient flows back to the shards.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
