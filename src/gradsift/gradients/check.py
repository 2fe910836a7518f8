"""The self-check: are the recorded numbers what autograd gives for the same row alone?"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.kernels_torch import operand_dtype
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record, Records
from gradsift.gradients.statistics import GradientSummary, dense_summary
from gradsift.gradients.tracking import TrackedModel, WatchedLayer
from gradsift.terms import LAYERS, STATISTICS, RecordingMethod

# The same pass twice: only the size of the loss, and so rounding, differs (2e-6 on a real model).
# In bf16 the two are rounded apart, by 2e-2 there.
SAME_LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
LOW_PRECISION_SAME_LOSS = 0.05
# Mean ‖softmax − one-hot‖ below which they are allowed more, in proportion.
SMALL_ERROR = 0.2


# Whether they see each other is tried before (training/isolation.py).
PACKED = (
    "The rows are packed: do the position_ids of each begin anew at 0, and does nothing else tell "
    "a packed row from one that stands alone?"
)


@dataclass(frozen=True)
class CheckResult:
    """Outcome of the self-check.

    Attributes:
        n_rows: Rows compared; 0 if the check could not be made.
        worst_relative_error: The largest over rows, layers and statistics.
        tolerance: What was allowed.
        method: Of recording.
        arithmetic: Name of the backend, under the key that saved runs have.
        dtype: The lowest precision among the watched tensors.
        errors: The worst relative error of each layer and statistic, as "layer statistic".
        tried: Why other methods were not taken.
        warning: Why a row's gradient in a micro-batch is not quite that of the row alone; "" if it
            is.
    """

    n_rows: int
    worst_relative_error: float | None
    tolerance: float | None
    method: RecordingMethod
    arithmetic: str
    dtype: str
    errors: dict[str, float] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    def sentence(self) -> str:
        """Return the outcome as one line."""
        if self.n_rows == 0:
            return f"not made: the parameters are sharded; {self.method}, {self.arithmetic}"
        return (
            f"{self.n_rows} rows equal autograd within {self.worst_relative_error:.1e} "
            f"(allowed {self.tolerance:.0e} in {self.dtype}), {self.method}, {self.arithmetic}"
        )


def tolerance_for(dtype: torch.dtype) -> float:
    """Return the relative error that rounding alone may cause in a forward and backward pass.

    Many a float64 model computes its norms in float32 (Llama does).
    """
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 0.1)


def autograd_summaries(
    model: TrackedModel, recorder: Recorder, loss: Callable[[], torch.Tensor]
) -> dict[str, GradientSummary]:
    """Compute one instance's gradients by autograd on the model's own forward pass, by layer.

    Holds both V×D gradients at once, which is what recording avoids.
    """
    with _differentiable_alone(model) as weights, torch.enable_grad():
        gradients = torch.autograd.grad(loss(), weights)
    return {
        layer: dense_summary(gradient, recorder.sketch(layer))
        for layer, gradient in zip(LAYERS, gradients, strict=True)
    }


def relative_errors(
    record: Record, truth: dict[str, GradientSummary]
) -> dict[tuple[str, str], float]:
    """Return the relative error of each (layer, statistic), the sketch included.

    A statistic near zero is measured against a companion of the same unit: `mean` against
    `mean_abs`, `max` and `min` against the larger of the two, the sketch against the norm of the
    gradient. Infinite where a number is not finite.
    """
    errors = {}
    for layer in record.layers:
        recorded, expected = getattr(record, layer), truth[layer]
        expected_S = expected.values_S.cpu().double()
        largest = expected_S[:2].abs().max()
        spread, norm = expected_S[4], expected_S[5]
        scale = torch.stack([largest, largest, expected_S[3], expected_S[3], spread, norm, norm])
        gap_S = (recorded.values_S.cpu().double() - expected_S).abs()
        sketch_gap = (recorded.sketch_K - expected.sketch_K).norm().double()
        gap = torch.cat([gap_S, sketch_gap[None]])
        # No gradient at all (a head of zeros lets none through) is matched by none.
        error = torch.where(gap == 0, 0, gap / scale)
        for name, value in zip((*STATISTICS, "sketch"), error.tolist(), strict=True):
            errors[layer, name] = value if math.isfinite(value) else float("inf")
    return errors


def require_match(
    record: Record,
    truth: dict[str, GradientSummary],
    tolerance: float,
    *,
    is_packed: bool = False,
) -> float:
    """Return the worst relative error of a record to what autograd gives, if it is allowed.

    `is_packed` says whether the instance shared a row of the batch with others.
    """
    errors = relative_errors(record, truth)
    (layer, name), worst = max(errors.items(), key=lambda item: item[1])
    if worst <= tolerance:
        return worst
    norm, true_norm = (float(s.values_S[5]) for s in (getattr(record, layer), truth[layer]))
    ratio = norm / true_norm if true_norm else float("inf")
    raise GradsiftError(
        f"self-check failed: the recorded {layer} gradient of a row is not what autograd gives for "
        f"that row alone. Worst at `{name}`: relative error {worst:.2g}, allowed {tolerance:.0e}; "
        f"l2_norm recorded {norm:.6g}, autograd {true_norm:.6g}, ratio {ratio:.6g}. "
        f"{PACKED if is_packed else _likely_cause(layer, ratio)} Nothing was recorded."
    )


def require_same_loss(loop: Records, plain: Records) -> None:
    """Refuse a training loop whose loss is more than that of its response tokens.

    `loop` is what a backward pass of the loop brought, `plain` what the negative log-likelihood of
    the response tokens of the same micro-batch brings, with the same random numbers.
    """
    tolerance = SAME_LOSS_TOLERANCE.get(plain.dtype, LOW_PRECISION_SAME_LOSS)
    for observed, expected in zip(loop.read(), plain.read(), strict=True):
        if not (observed.finite and expected.finite):
            continue  # A loss scaler begins with overflows; such rows are marked.
        summaries = {layer: getattr(expected, layer) for layer in expected.layers}
        errors = relative_errors(observed, summaries)
        (layer, name), worst = max(errors.items(), key=lambda item: item[1])
        # Where the response is nearly certain its gradient is small, and the rounding of the
        # softmax is not.
        allowed = tolerance * max(1.0, SMALL_ERROR / max(expected.el2n, 1e-30))
        if worst > allowed:
            raise GradsiftError(
                f"the loop's loss is more than the mean negative log-likelihood of the response "
                f"tokens: without the rest, `{name}` of a row's {layer} gradient differs by "
                f"{worst:.2g} (allowed {allowed:.0e}). Auxiliary losses (a mixture of experts "
                "has one: router_aux_loss_coef=0, or output_router_logits=False), terms on hidden "
                "states or on prompt tokens, and a forward pass with random parts of its own do "
                "this. Record a loop without them, or capture the pool with `gradsift capture`."
            )


def _likely_cause(layer: str, ratio: float) -> str:
    if abs(ratio - 1) < 1e-3:
        return "The sizes agree but not the entries: is the layer used more than once in the model?"
    if layer == "embedding":
        return (
            "Likely causes: the embedding's output is scaled or normalised inside the module, the "
            "table is used more than once, or rows of a batch influence each other (the auxiliary "
            "loss of a mixture of experts does)."
        )
    return (
        "Likely causes: the model changes the logits after the head in a way that is not known "
        "here, or training uses another head than `get_output_embeddings()`."
    )


@contextmanager
def _differentiable_alone(
    model: TrackedModel,
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Let both weights be trained, each apart from the other (tied weights would mix).

    A layer that is wrapped or quantised gets a weight of zeros beside its own, whose product is
    added to its output: that has the gradient which its own would have. Yields the tensors of
    embedding and head.
    """
    with ExitStack() as stack:
        embedding, head = model.embedding, model.head
        holder = head.base if isinstance(head, WatchedLayer) else head
        if not isinstance(embedding, WatchedLayer):
            if holder.weight is embedding.weight:
                untied = nn.Parameter(holder.weight.detach().clone(), requires_grad=False)
                stack.callback(setattr, holder, "weight", holder.weight)
                holder.weight = untied
            table = _trained_meanwhile(embedding, stack)
        else:
            index = embedding.padding_idx
            table = _beside(embedding, lambda ids, zeros: F.embedding(ids, zeros, index), stack)
        if isinstance(head, WatchedLayer):
            yield table, _beside(head, lambda x, zeros: F.linear(x, zeros.to(x.dtype)), stack)
        else:
            yield table, _trained_meanwhile(head, stack)


def _trained_meanwhile(layer: nn.Module, stack: ExitStack) -> torch.Tensor:
    stack.callback(layer.weight.requires_grad_, layer.weight.requires_grad)
    return layer.weight.requires_grad_(True)


def _beside(
    layer: WatchedLayer,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    stack: ExitStack,
) -> torch.Tensor:
    weight = layer.weight
    dtype = operand_dtype(weight.dtype)
    zeros = torch.zeros(weight.shape, dtype=dtype, device=weight.device, requires_grad=True)

    def add(_: object, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + product(inputs[0], zeros).to(output.dtype)

    stack.callback(layer.register_forward_hook(add).remove)
    return zeros
