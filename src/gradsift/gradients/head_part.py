"""The LM head's part of a record, from the fused head, from log-likelihoods, or from hooks."""

from __future__ import annotations

import torch

from gradsift.gradients.fused import HeadRow, head_row
from gradsift.gradients.head import HeadBackprops, HeadTransform
from gradsift.gradients.observed import MicroBatch
from gradsift.gradients.records import TrackedModel
from gradsift.gradients.statistics import BLOCK_ROWS, Projection, linear_summary

# A loss that is the mean negative log-likelihood has the backprops of the closed form up to one
# factor, and rounding. What label smoothing or unequal token weights do is far above this.
RESIDUAL_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
LOW_PRECISION_RESIDUAL = 0.1


def head_part(
    batch: MicroBatch,
    row: int,
    model: TrackedModel,
    projection: Projection,
    *,
    backward: bool,
) -> tuple[HeadRow, torch.Tensor | None]:
    """Take the LM head's part of one row from whatever was seen of it.

    Args:
        batch: The micro-batch.
        row: Of it.
        model: The tracked modules.
        projection: For the sketch.
        backward: Whether there was a backward pass.

    Returns:
        The head's part, and the weight of one response token in the training loss (None without
        a backward pass).

    Raises:
        ValueError: If the loss is not the mean negative log-likelihood of the response tokens.
    """
    if batch.rows is not None:
        return batch.rows[row], batch.token_weight(row) if backward else None
    response_T = batch.response(row)
    targets_N = batch.labels_BT[row, 1:][response_T]
    transform = batch.transform or model.transform
    if not batch.head_calls:
        x_ND = batch.hidden_BTD[row, :-1][response_T]
        head = model.head
        closed = HeadBackprops(x_ND, head.weight, head.bias, targets_N, transform)
        weight = batch.token_weight(row) if backward else None
        return head_row(x_ND, closed, projection), weight
    x_ND, z_NV, delta_NV = batch.head_call(row)
    closed = HeadBackprops.from_outputs(z_NV, targets_N, transform)
    if not backward:
        return head_row(x_ND, closed, projection), None
    scale = _scale_of(delta_NV, closed)
    blocks = (block / scale for block in _at_least_float32(delta_NV).split(BLOCK_ROWS, dim=1))
    summary = linear_summary(x_ND, blocks, z_NV.shape[1], projection)
    head = HeadRow(closed.loss, closed.error_norm, len(x_ND), summary)
    return head, scale / len(x_ND)


def transform_between(
    z_BTV: torch.Tensor, logits_BTV: torch.Tensor, expected: HeadTransform
) -> HeadTransform:
    """Return what a model did to the head's output, told from the outcome.

    Some models scale the head's input instead of its output, as the same setting would have it.

    Args:
        z_BTV: Output of the head.
        logits_BTV: What the model gave.
        expected: What its configuration says.

    Returns:
        That, or no transform.

    Raises:
        ValueError: If the logits are neither.
    """
    if z_BTV.shape != logits_BTV.shape:
        return expected
    z_V, logits_V = (t.flatten(0, -2)[-1].double() for t in (z_BTV, logits_BTV))
    tolerance = 1e-2 if logits_BTV.dtype in (torch.bfloat16, torch.float16) else 1e-4
    for transform in (expected, HeadTransform()):
        if torch.allclose(transform.forward(z_V), logits_V, rtol=tolerance, atol=tolerance / 10):
            return transform
    ratio = float((logits_V * z_V).sum() / (z_V * z_V).sum())
    raise ValueError(
        "the model changes the logits after the head in a way that is not known here: they are "
        f"about {ratio:.4g} times the head's output, the configuration says {expected}."
    )


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scale_of(delta_NV: torch.Tensor, closed: HeadBackprops) -> torch.Tensor:
    """Return the factor by which a training loop's loss scales a row's instance loss.

    Args:
        delta_NV: Backprops that the loop caused at the head's output.
        closed: Those of the instance loss.

    Returns:
        The least-squares factor, 0-d.

    Raises:
        ValueError: If they are not proportional: the loss is another one.
    """
    want_NV = torch.cat(list(closed.blocks()), dim=1)
    got_NV = delta_NV.to(want_NV.dtype)
    scale = (got_NV * want_NV).sum() / want_NV.square().sum()
    size = torch.linalg.vector_norm(got_NV)
    residual = torch.linalg.vector_norm(got_NV - scale * want_NV) / size
    tolerance = RESIDUAL_TOLERANCE.get(delta_NV.dtype, LOW_PRECISION_RESIDUAL)
    if residual > tolerance:
        raise ValueError(
            "the training loss is not the mean negative log-likelihood of the response tokens: "
            f"its gradient at the head differs from that one's by {float(residual):.2g} of its "
            f"size (allowed {tolerance:.0e}). Label smoothing, token weights, labels other than "
            "those announced, or logits that the model changes after the head do this."
        )
    return scale
