"""What the LM head says of each row, from the fused head, from log-likelihoods, or from hooks.

Shapes: B rows, N laid-out tokens, D width, V vocabulary; n tokens in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradsift.gradients import plain_torch
from gradsift.gradients.arithmetic import Arithmetic
from gradsift.gradients.head import HeadOutputs, HeadProduct, HeadRows, RowSums, head_pass
from gradsift.gradients.micro_batch import MicroBatch
from gradsift.gradients.precision import at_least_float32, widest
from gradsift.gradients.records import Check, TrackedModel
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import IGNORED_LABEL, ResponseTokens
from gradsift.gradients.transform import HeadTransform

# A loss that is the mean negative log-likelihood has the backprops of the closed form up to one
# factor, and rounding. What label smoothing does is far above this.
RESIDUAL_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
LOW_PRECISION_RESIDUAL = 0.1
# The factor is the same for each token. Backprops of float32 losses are off by some 2e-5, whatever
# their size (measured on a real model), so where a token is nearly certain and its backprops are
# small, a deviation counts in proportion to them, up to this size.
SMALL_BACKPROP = 0.5
UNEQUAL_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-4}
LOW_PRECISION_UNEQUAL = 0.03


def head_rows(
    batch: MicroBatch,
    model: TrackedModel,
    sketch: TensorSketch,
    arithmetic: Arithmetic,
    *,
    backward: bool,
) -> tuple[HeadRows, torch.Tensor | None]:
    """Take the LM head's part of a micro-batch from whatever was seen of it.

    Args:
        batch: The micro-batch; checks are added to it.
        model: The tracked modules.
        sketch: Of the head's gradient.
        arithmetic: How to compute.
        backward: Whether there was a backward pass.

    Returns:
        The head's part, and the weight of one response token of each row in the training loss,
        [B] (None without a backward pass).

    Raises:
        ValueError: If the head was not called once on all positions.
    """
    if batch.rows is not None:
        return batch.rows, batch.row_weights() if backward else None
    transform = batch.transform or model.transform
    if batch.head_calls:
        x_ND, z_NV, delta_NV = batch.head_call()
        if delta_NV is not None and backward:
            return _from_backprops(batch, x_ND, z_NV, delta_NV, transform, sketch, arithmetic)
        outputs = HeadOutputs(x_ND, z_NV)
        return head_pass(outputs, batch.tokens, transform, arithmetic, sketch=sketch).rows, None
    x_ND = batch.tokens.take(batch.hidden_BTD).to(batch.product_dtype)
    product = HeadProduct(x_ND, model.head.weight, model.head.bias)
    rows = head_pass(product, batch.tokens, transform, arithmetic, sketch=sketch).rows
    return rows, batch.row_weights() if backward else None


def _from_backprops(
    batch: MicroBatch,
    x_ND: torch.Tensor,
    z_NV: torch.Tensor,
    delta_NV: torch.Tensor,
    transform: HeadTransform,
    sketch: TensorSketch,
    arithmetic: Arithmetic,
) -> tuple[HeadRows, torch.Tensor]:
    tokens = batch.tokens
    seen = compare_backprops(z_NV, delta_NV, tokens, transform, arithmetic)
    batch.checks += seen.checks(batch.step, delta_NV.dtype)
    operations, rows = arithmetic.operations(), RowSums(tokens, sketch)
    operand = operations.operand_dtype(delta_NV.dtype)
    n_columns, width = z_NV.shape[1], x_ND.shape[1]
    for chunk in arithmetic.chunks(tokens.lengths, n_columns, width, operand.itemsize):
        x_nD = x_ND[chunk.tokens].to(operand)
        for block in chunk.blocks(n_columns):
            delta_nr = delta_NV[chunk.tokens, block].to(operand)
            sums_R5, _ = operations.row_gradients(
                delta_nr, x_nD, tokens, chunk, sums=True, total=False
            )
            rows.add(sums_R5, sketch.rows(at_least_float32(delta_nr), block.start))
        rows.end_chunk()
    said = rows.result(seen.log_probs_N, seen.square_N, x_ND, n_columns, seen.weight_B)
    return said, seen.weight_B


@dataclass(frozen=True)
class SeenLoss:
    """What the backprops at the head's output tell of a training loss.

    Attributes:
        log_probs_N: Log-likelihood of each token, in nats; 0 without a loss.
        square_N: Squared norm of softmax minus one-hot.
        weight_B: By which factor each row's backprops are those of −Σ log p.
        residual_B: What that factor leaves over, relative to the backprops.
        unequal_N: By how much the factor of a single token differs from its row's, relative.
    """

    log_probs_N: torch.Tensor
    square_N: torch.Tensor
    weight_B: torch.Tensor
    residual_B: torch.Tensor
    unequal_N: torch.Tensor

    def checks(self, step: int, dtype: torch.dtype) -> list[Check]:
        """Return what must hold if the loss is the mean negative log-likelihood.

        Args:
            step: For the messages.
            dtype: Of the backprops.

        Returns:
            The checks.
        """

        def message(what: str) -> Callable[[float], str]:
            return lambda value: (
                f"step {step}: the training loss is not the mean negative log-likelihood of the "
                f"response tokens: {what} by {value:.2g}. Label smoothing, weights of tokens or "
                "classes, labels other than those announced, or logits that the model changes "
                "after the head do this."
            )

        return [
            Check(
                self.residual_B,
                RESIDUAL_TOLERANCE.get(dtype, LOW_PRECISION_RESIDUAL),
                message("its gradient at the head differs from that one's, relative to its size,"),
            ),
            Check(
                self.unequal_N,
                UNEQUAL_TOLERANCE.get(dtype, LOW_PRECISION_UNEQUAL),
                message("it weighs the response tokens of one row unequally,"),
            ),
        ]


def compare_backprops(
    z_NV: torch.Tensor,
    delta_NV: torch.Tensor,
    tokens: ResponseTokens,
    transform: HeadTransform,
    arithmetic: Arithmetic,
) -> SeenLoss:
    """Find the factor between the backprops of a training loss and those of the closed form.

    Args:
        z_NV: The head's outputs.
        delta_NV: The gradient of the training loss at them.
        tokens: The layout.
        transform: What the model does to the head's output before the softmax.
        arithmetic: Bounds the bytes that are compared at once.

    Returns:
        The factors, and what they leave over.
    """
    at_once = max(1, arithmetic.logits_bytes // (z_NV.shape[1] * torch.float32.itemsize))
    parts = []
    for at in range(0, len(z_NV), at_once):
        z_nV, targets_n = z_NV[at : at + at_once], tokens.targets_N[at : at + at_once]
        errors = plain_torch.errors(z_nV, targets_n, 0, transform, None, None)
        want_nV = errors.delta_nr
        got_nV = delta_NV[at : at + at_once].to(want_nV.dtype)
        logit_n = z_nV.gather(1, targets_n.clamp(min=0).unsqueeze(1)).squeeze(1)
        log_prob_n = transform.forward(logit_n.to(want_nV.dtype)) - errors.normaliser_n
        product_n = widest((got_nV * want_nV).sum(1))
        want_n = widest(torch.linalg.vector_norm(want_nV, dim=1))
        weight_n = torch.where(want_n > 0, product_n / want_n.square(), 0)
        rest_nV = got_nV - weight_n.to(want_nV.dtype).unsqueeze(1) * want_nV
        rest_n, got_n = (
            widest(torch.linalg.vector_norm(t, dim=1)).square() for t in (rest_nV, got_nV)
        )
        no_loss_n = targets_n == IGNORED_LABEL
        numbers = (widest(log_prob_n), widest(errors.square_n), product_n, want_n, weight_n)
        columns = torch.stack([*numbers, rest_n, got_n], 1)
        parts.append(columns.masked_fill(no_loss_n.unsqueeze(1), 0))
    columns_N7 = torch.cat(parts)
    log_probs_N, square_N, product_N, want_N, weight_N, rest_N, got_N = columns_N7.unbind(1)
    totals_B4 = tokens.sum_rows(torch.stack([product_N, want_N.square(), rest_N, got_N], 1))
    weight_B = totals_B4[:, 0] / totals_B4[:, 1]
    unequal_N = (weight_N / weight_B[tokens.rows_N] - 1) * (want_N / SMALL_BACKPROP).clamp(max=1)
    return SeenLoss(
        log_probs_N,
        square_N,
        weight_B,
        (totals_B4[:, 2] / totals_B4[:, 3]).sqrt(),
        unequal_N.masked_fill(tokens.targets_N == IGNORED_LABEL, 0),
    )
