"""The LM head as training calls it: log-likelihoods, their gradients known in the forward pass.

While it has a listener, it also says what it sees of each row. Shapes: B rows, T positions, D
width, V vocabulary, N laid-out tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gradsift.gradients.arithmetic import Arithmetic, arithmetics_for
from gradsift.gradients.head import HeadProduct, HeadRows, head_pass
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

# Of the largest weight: what float32 makes of one weight for all.
WEIGHT_TOLERANCE = 1e-5

Listener = Callable[[torch.Tensor, HeadRows, torch.Tensor], None]


class FusedHead:
    """The LM head as training calls it; while it has a listener, it also summarises each row.

    Attributes:
        transform: What the model does to the head's output before the softmax.
        arithmetic: How to compute; None takes the fastest one of the device.
        listener: Called in every forward pass with the hidden states, the rows, and the
            log-likelihoods it returns.
        sketch: Of the weight's gradient; the listener sets it.
    """

    def __init__(self, transform: HeadTransform):
        """Nothing is listened to yet.

        Args:
            transform: What the model does to the head's output before the softmax.
        """
        self.transform = transform
        self.arithmetic: Arithmetic | None = None
        self.listener: Listener | None = None
        self.sketch: TensorSketch | None = None

    # A compiled model calls this as it is: its shapes change with every batch.
    @torch.compiler.disable
    def __call__(
        self, hidden_BTD: torch.Tensor, head: nn.Linear, tokens: ResponseTokens
    ) -> torch.Tensor:
        """Return the log-likelihood of each response token.

        Args:
            hidden_BTD: Last hidden state.
            head: The head; its weight and bias are read, and must be whole.
            tokens: Where the response tokens are.

        Returns:
            [N] float32 (or float64). Its gradient must be the same for all tokens, as that of a
            sum or mean is; where it is not, the gradients it causes are not numbers.
        """
        weight_VD, bias_V = head.weight, head.bias
        arithmetic = self.arithmetic or arithmetics_for(weight_VD.device, weight_VD.dtype)[0]
        sketch = None if self.listener is None else self.sketch
        job = _Job(tokens, self.transform, arithmetic, sketch, torch.is_grad_enabled())
        log_probs_N = _ResponseLogProbs.apply(hidden_BTD, weight_VD, bias_V, job)
        if self.listener is not None:
            self.listener(hidden_BTD.detach(), job.rows, log_probs_N)
        return log_probs_N


@dataclass
class _Job:
    """What one forward pass is to do, and (in rows, with a sketch) what it says of each row."""

    tokens: ResponseTokens
    transform: HeadTransform
    arithmetic: Arithmetic
    sketch: TensorSketch | None
    differentiable: bool
    rows: HeadRows | None = None


class _ResponseLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_BTD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        job: _Job,
    ) -> torch.Tensor:
        kind = hidden_BTD.device.type
        dtype = product_dtype(hidden_BTD)
        needed = ctx.needs_input_grad[:3] if job.differentiable else (False,) * 3
        with torch.autocast(kind, enabled=False):
            x_ND = job.tokens.take(hidden_BTD).to(dtype)
            done = head_pass(
                HeadProduct(x_ND, weight_VD, bias_V), job.tokens, job.transform, job.arithmetic,
                sketch=job.sketch, wanted=needed,
            )  # fmt: skip
        job.rows = done.rows
        ctx.gradients, ctx.tokens = done.gradients, job.tokens
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_BTD, weight_VD, bias_V)]
        return done.log_probs_N

    @staticmethod
    def backward(ctx, gradient_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The loss is −Σ w·log p; what was summed up is the gradient of −Σ log p.
        weight = common_weight(-gradient_N)
        (hidden_ND, weight_VD, bias_V), ctx.gradients = ctx.gradients, None
        tensors = zip((hidden_ND, weight_VD, bias_V), ctx.dtypes, strict=True)
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


def common_weight(weights_N: torch.Tensor) -> torch.Tensor:
    """Return the one weight of all tokens in the loss; not a number if they weigh unequally.

    Args:
        weights_N: Of each token; may be empty.

    Returns:
        A 0-d tensor.
    """
    if len(weights_N) == 0:
        return weights_N.new_zeros(())
    low, high = weights_N.aminmax()
    are_equal = high - low <= WEIGHT_TOLERANCE * torch.maximum(high.abs(), low.abs())
    return torch.where(are_equal, high, torch.nan)
