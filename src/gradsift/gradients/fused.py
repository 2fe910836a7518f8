"""The LM head as training calls it: log-likelihoods, their gradients known in the forward pass.

Shapes: B rows, T positions, D width, V vocabulary, N flattened tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gradsift.gradients.backends import Backend, backends_for
from gradsift.gradients.head import HeadProduct, HeadRecords, head_pass
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

# Of the largest weight: what float32 makes of one weight for all.
WEIGHT_TOLERANCE = 1e-5


class FusedHead:
    """The LM head as training calls it; while `on_forward` is set, it also summarises each row.

    Attributes:
        transform: What the model does to the head's output before the softmax.
        backend: How to compute; None takes the fastest one of the device.
        on_forward: Called in every forward pass with the hidden states [B, T, D], the head records,
            and the log-likelihoods that are returned.
        sketch: Of the weight's gradient; whoever sets `on_forward` sets it.
    """

    def __init__(self, transform: HeadTransform):
        self.transform = transform
        self.backend: Backend | None = None
        self.on_forward: Callable[[torch.Tensor, HeadRecords, torch.Tensor], None] | None = None
        self.sketch: TensorSketch | None = None

    # A compiled model calls this as it is: its shapes change with every batch.
    @torch.compiler.disable
    def __call__(
        self, hidden_BTD: torch.Tensor, head: nn.Linear, tokens: ResponseTokens
    ) -> torch.Tensor:
        """Return the log-likelihood of each response token, [N] float32 (or float64).

        Its gradient must be the same for all tokens, as that of a sum or mean is; where it is not,
        the gradients it causes are not numbers. The head's weight must be whole.
        """
        weight_VD, bias_V = head.weight, head.bias
        backend = self.backend or backends_for(weight_VD.device, weight_VD.dtype)[0]
        sketch = None if self.on_forward is None else self.sketch
        call = _Call(tokens, self.transform, backend, sketch, torch.is_grad_enabled())
        log_probs_N = _ResponseLogProbs.apply(hidden_BTD, weight_VD, bias_V, call)
        if self.on_forward is not None:
            self.on_forward(hidden_BTD.detach(), call.records, log_probs_N)
        return log_probs_N


@dataclass
class _Call:
    """What autograd does not look at: how to compute, and (with a sketch) the head records."""

    tokens: ResponseTokens
    transform: HeadTransform
    backend: Backend
    sketch: TensorSketch | None
    differentiable: bool
    records: HeadRecords | None = None


class _ResponseLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_BTD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        call: _Call,
    ) -> torch.Tensor:
        dtype = product_dtype(hidden_BTD)
        needs_grad = ctx.needs_input_grad[:3] if call.differentiable else (False,) * 3
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            x_ND = call.tokens.take(hidden_BTD).to(dtype)
            result = head_pass(
                HeadProduct(x_ND, weight_VD, bias_V), call.tokens, call.transform, call.backend,
                sketch=call.sketch, needs_grad=needs_grad,
            )  # fmt: skip
        call.records = result.records
        ctx.gradients, ctx.tokens = result.gradients, call.tokens
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_BTD, weight_VD, bias_V)]
        return result.log_probs_N

    @staticmethod
    def backward(ctx, gradient_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The loss is −Σ w·log p; what was summed up is the gradient of −Σ log p.
        weight = _common_weight(-gradient_N)
        tensors = zip(ctx.gradients, ctx.dtypes, strict=True)
        ctx.gradients = None
        hidden_ND, weight_VD, bias_V = (
            None if t is None else t.mul_(weight).to(dtype) for t, dtype in tensors
        )
        hidden_BTD = None if hidden_ND is None else ctx.tokens.put(hidden_ND)
        return hidden_BTD, weight_VD, bias_V, None


def product_dtype(hidden_BTD: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a head's product with these hidden states is taken here."""
    kind = hidden_BTD.device.type
    autocast = torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else hidden_BTD.dtype


def _common_weight(weights_N: torch.Tensor) -> torch.Tensor:
    """Return the one weight of all tokens in the loss, 0-d; NaN if they weigh unequally."""
    if len(weights_N) == 0:
        return weights_N.new_zeros(())
    low, high = weights_N.aminmax()
    are_equal = high - low <= WEIGHT_TOLERANCE * torch.maximum(high.abs(), low.abs())
    return torch.where(are_equal, high, torch.nan)
