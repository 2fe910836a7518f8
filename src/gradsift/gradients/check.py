"""The self-check: are the recorded numbers what autograd gives for the same row alone?"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from gradsift.gradients.fused import IGNORED_LABEL
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record, RecordingPath, TrackedModel
from gradsift.gradients.statistics import GradientSummary, dense_summary
from gradsift.terms import LAYERS, STATISTICS


@dataclass(frozen=True)
class CheckResult:
    """Outcome of the self-check.

    Attributes:
        n_rows: Rows compared; 0 if the check could not be made.
        worst_relative_error: The largest over rows, layers and statistics.
        tolerance: What was allowed.
        path: How the recording was done.
        errors: The worst relative error of each layer and statistic, as "layer statistic".
        tried: Why other ways were not taken, by their name.
    """

    n_rows: int
    worst_relative_error: float | None
    tolerance: float | None
    path: RecordingPath
    errors: dict[str, float] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """Return the outcome as one line."""
        if self.n_rows == 0:
            return f"not made: the parameters are sharded; {self.path}"
        return (
            f"{self.n_rows} rows equal autograd within {self.worst_relative_error:.1e} "
            f"(allowed {self.tolerance:.0e}), {self.path}"
        )


def recorded_layers(record: Record) -> tuple[str, ...]:
    """Return which of LAYERS a record has."""
    return tuple(layer for layer in LAYERS if getattr(record, layer) is not None)


def tolerance_for(dtype: torch.dtype) -> float:
    """Return the relative error that rounding alone may cause in a forward and backward pass."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)


def autograd_summaries(
    model: TrackedModel,
    recorder: Recorder,
    input_ids_T: torch.Tensor,
    labels_T: torch.Tensor,
) -> dict[str, GradientSummary]:
    """Compute one row's gradients by a batch of one and autograd on the model's own forward pass.

    Holds both V×D gradients at once, which is what recording avoids.

    Args:
        model: The tracked modules.
        recorder: Supplies the projections of the sketches.
        input_ids_T: The row's tokens, without padding.
        labels_T: The same where a token belongs to the response, else -100.

    Returns:
        The summary for each of LAYERS.
    """
    with _differentiable_alone(model), torch.enable_grad():
        weights = (model.embedding.weight, model.head.weight)
        logits_TV = model.outer(input_ids=input_ids_T[None]).logits[0]
        dtype = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
        loss = F.cross_entropy(
            logits_TV[:-1].to(dtype), labels_T[1:], ignore_index=IGNORED_LABEL, reduction="mean"
        )
        gradients = torch.autograd.grad(loss, weights)
    projections = (recorder.projection("embedding"), recorder.projection("lm_head"))
    return {
        layer: dense_summary(gradient, projection)
        for layer, gradient, projection in zip(LAYERS, gradients, projections, strict=True)
    }


def compare(record: Record, truth: dict[str, GradientSummary]) -> dict[tuple[str, str], float]:
    """Return the relative error of each (layer, statistic), the sketch included.

    A statistic near zero is measured against a companion of the same unit: `mean` against
    `mean_abs`, `max` and `min` against the larger of the two, the sketch against its length.

    Args:
        record: What was recorded.
        truth: What autograd gives.

    Returns:
        Non-negative errors; infinite where a number is not finite.
    """
    errors = {}
    for layer in recorded_layers(record):
        got, want = getattr(record, layer), truth[layer]
        got_S, want_S = got.values_S.double().cpu(), want.values_S.double().cpu()
        largest = want_S[:2].abs().max()
        scale_S = torch.stack([largest, largest, want_S[3], want_S[3], want_S[4], want_S[5]])
        error_S = (got_S - want_S).abs() / scale_S
        sketch = (got.sketch_K2 - want.sketch_K2).norm() / want.sketch_K2.norm()
        for name, error in zip((*STATISTICS, "sketch"), (*error_S, sketch), strict=True):
            errors[layer, name] = float(error) if torch.isfinite(error) else float("inf")
    return errors


def require_match(record: Record, truth: dict[str, GradientSummary], tolerance: float) -> float:
    """Refuse a record that is not what autograd gives.

    Args:
        record: What was recorded.
        truth: What autograd gives.
        tolerance: Largest relative error allowed.

    Returns:
        The worst relative error.

    Raises:
        ValueError: If it is above the tolerance; says which layer, by what ratio, and why.
    """
    errors = compare(record, truth)
    (layer, name), worst = max(errors.items(), key=lambda item: item[1])
    if worst <= tolerance:
        return worst
    got, want = (float(s.values_S[5]) for s in (getattr(record, layer), truth[layer]))
    raise ValueError(
        f"self-check failed: the recorded {layer} gradient of a row is not what autograd gives for "
        f"that row alone. Worst at `{name}`: relative error {worst:.2g}, allowed {tolerance:.0e}; "
        f"l2_norm recorded {got:.6g}, autograd {want:.6g}, ratio {got / want:.6g}. "
        f"{_likely_cause(layer, got / want)} Nothing was recorded."
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
def _differentiable_alone(model: TrackedModel) -> Generator[None, None, None]:
    """Give the head a weight of its own (tied weights would mix); let both weights be trained."""
    embedding, head = model.embedding.weight, model.head.weight
    was_trained = embedding.requires_grad
    tied = head is embedding
    own = nn.Parameter(head.detach().clone()) if tied else head
    head_was_trained = own.requires_grad
    model.head.weight = own
    embedding.requires_grad_(True)
    own.requires_grad_(True)
    try:
        yield
    finally:
        embedding.requires_grad_(was_trained)
        own.requires_grad_(head_was_trained)
        if tied:
            model.head.weight = head
