"""The records of the LM head: from the fused head, from the head's input, or from its output.

Shapes: B instances, N flattened tokens, D width, V vocabulary; R, n and r those of a chunk and a
block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradsift.gradients import kernels_torch
from gradsift.gradients.backends import Backend, Chunk, at_least_float32, widest
from gradsift.gradients.head import HeadOutputs, HeadProduct, HeadRecords, RowSums, Sweep, head_pass
from gradsift.gradients.micro_batch import MicroBatch
from gradsift.gradients.records import Check
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import IGNORED_LABEL

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


def head_records(
    batch: MicroBatch,
    transform: HeadTransform,
    sketch: TensorSketch,
    backend: Backend,
    *,
    backward: bool,
) -> tuple[HeadRecords, torch.Tensor | None]:
    """Take the head records of a micro-batch from whatever was seen of it; adds checks to it.

    Also returns the weight of one response token of each row in the training loss, [B], if there
    was a backward pass. `transform` is what the model is expected to do to the head's output.
    """
    if batch.head_records is not None:
        return batch.head_records, batch.row_weights() if backward else None
    transform = batch.transform or transform
    if batch.head_calls:
        x_BTD, z_BTV, delta_BTV = batch.head_call()
        x_ND = batch.tokens.take(x_BTD)
        outputs = HeadOutputs(batch.tokens, x_ND, z_BTV)
        if delta_BTV is None or not backward:
            result = head_pass(outputs, batch.tokens, transform, backend, sketch=sketch)
            return result.records, None
        backprops = HeadOutputs(batch.tokens, x_ND, delta_BTV)
        loss, records = from_backprops(outputs, backprops, batch.tokens, transform, backend, sketch)
        batch.checks += loss.checks(batch.step, delta_BTV.dtype)
        return records, loss.weight_B
    return _from_hidden(batch, transform, sketch, backend, backward=backward)


def hidden_gradient(batch: MicroBatch, transform: HeadTransform, backend: Backend) -> torch.Tensor:
    """Return the gradient of the response tokens' summed loss at the head's input, [B, T, D].

    Zeros where no response token is predicted. After the forward pass.
    """
    result = head_pass(
        _product(batch), batch.tokens, transform, backend, needs_grad=(True, False, False)
    )
    return batch.tokens.put(result.gradients[0])


def _product(batch: MicroBatch) -> HeadProduct:
    hidden_BTD = batch.hidden_BTD.reshape(*batch.labels_BT.shape, -1)
    x_ND = batch.tokens.take(hidden_BTD).to(batch.product_dtype)
    return HeadProduct(x_ND, *batch.head_weights)


def _from_hidden(
    batch: MicroBatch,
    transform: HeadTransform,
    sketch: TensorSketch,
    backend: Backend,
    *,
    backward: bool,
) -> tuple[HeadRecords, torch.Tensor | None]:
    # However the loss was computed, at the head's input it has the gradient of −Σ w·log p: the
    # factors w are estimated by least squares, and the residual says if anything else was there.
    tokens = batch.tokens
    result = head_pass(
        _product(batch), tokens, transform, backend,
        sketch=sketch, needs_grad=(backward, False, False),
    )  # fmt: skip
    if not backward:
        return result.records, None
    observed_ND = at_least_float32(tokens.take(batch.hidden_backprops))
    expected_ND = result.gradients[0].to(observed_ND.dtype)
    expected_N, product_N = (
        torch.linalg.vecdot(widest(other_ND), widest(expected_ND))
        for other_ND in (expected_ND, observed_ND)
    )
    product_B, expected_B, square_B = tokens.sum_rows(
        torch.stack([product_N, expected_N, widest(result.square_N)], 1)
    ).unbind(1)
    weight_B = product_B / expected_B
    residual_ND = (
        observed_ND - weight_B.to(observed_ND.dtype)[tokens.rows_N].unsqueeze(1) * expected_ND
    )
    residual_N = widest(torch.linalg.vector_norm(residual_ND, dim=1)).square()
    # As much of the head's weight as the row's errors meet: from the output's units to the input's.
    gain_N = (expected_B / square_B)[tokens.rows_N]
    loss = ObservedLoss.of_tokens(tokens, weight_B, expected_N, product_N, residual_N, gain_N)
    dtype = min(
        (batch.product_dtype, batch.hidden_backprops.dtype), key=lambda dtype: dtype.itemsize
    )
    batch.checks += loss.checks(batch.step, dtype)
    return result.records, weight_B


@dataclass(frozen=True)
class ObservedLoss:
    """A training loss as the backprops at the head's output or input show it.

    Attributes:
        weight_B: By which factor each row's backprops are those of −Σ log p.
        residual_B: Of that fit, relative to the backprops.
        unequal_N: By how much the factor of a single token differs from its row's, relative.
    """

    weight_B: torch.Tensor
    residual_B: torch.Tensor
    unequal_N: torch.Tensor

    @classmethod
    def of_tokens(
        cls,
        tokens: ResponseTokens,
        weight_B: torch.Tensor,
        expected_N: torch.Tensor,
        product_N: torch.Tensor,
        residual_N: torch.Tensor,
        gain_N: torch.Tensor | None = None,
    ) -> ObservedLoss:
        """Compare the training loss's backprops δ with the backprops ω of each token's own loss.

        `expected_N` is ‖ω‖², `product_N` δ·ω, `residual_N` ‖δ − wω‖². `gain_N` is how much larger
        squares are in their units than at the head's output, if they were not taken there.
        """
        gain_N = torch.ones_like(expected_N) if gain_N is None else gain_N
        is_ignored_N = tokens.targets_N == IGNORED_LABEL
        least_N = torch.maximum(expected_N, SMALL_BACKPROP**2 * gain_N).masked_fill(is_ignored_N, 0)
        residual_B, least_B = tokens.sum_rows(torch.stack([residual_N, least_N], 1)).unbind(1)
        factor_N = torch.where(expected_N > 0, product_N / expected_N, 0) / weight_B[tokens.rows_N]
        size_N = (expected_N / gain_N).sqrt() / SMALL_BACKPROP
        unequal_N = (factor_N - 1) * size_N.clamp(max=1)
        return cls(
            weight_B,
            (residual_B / least_B).sqrt() / weight_B.abs(),
            unequal_N.masked_fill(is_ignored_N, 0),
        )

    def checks(self, step: int, dtype: torch.dtype) -> list[Check]:
        """Return what must hold if the loss is the mean negative log-likelihood.

        `dtype` is that of the backprops.
        """

        def message(what: str) -> Callable[[float], str]:
            return lambda value: (
                f"step {step}: the training loss is not the mean negative log-likelihood of the "
                f"response tokens: {what} by {value:.2g}. Label smoothing, weights of tokens or "
                "classes, labels other than those announced, logits that the model changes after "
                "the head, or a loss scaled beyond what float32 holds do this."
            )

        return [
            Check(
                self.residual_B,
                RESIDUAL_TOLERANCE.get(dtype, LOW_PRECISION_RESIDUAL),
                message("its gradient at the head differs from that one's, relative to its size,"),
            ),
            Check(
                (self.weight_B < 0).float(),
                0.5,
                lambda _: (
                    f"step {step}: the loss makes the response of a row less likely, as that of "
                    "DPO, KTO or ORPO does with rejected ones, and label smoothing with rows that "
                    "are learnt by heart. Recording is for supervised fine-tuning."
                ),
            ),
            Check(
                self.unequal_N,
                UNEQUAL_TOLERANCE.get(dtype, LOW_PRECISION_UNEQUAL),
                message("it weighs the response tokens of one row unequally,"),
            ),
        ]


def from_backprops(
    outputs: HeadOutputs,
    backprops: HeadOutputs,
    tokens: ResponseTokens,
    transform: HeadTransform,
    backend: Backend,
    sketch: TensorSketch,
) -> tuple[ObservedLoss, HeadRecords]:
    """Summarise each row's own gradient from the backprops of a training loss at the outputs."""
    rows = RowSums(tokens, sketch)
    operand = backend.kernels().operand_dtype(backprops.dtype)
    width = outputs.x_ND.shape[1]
    parts = [
        _chunk_of_backprops(chunk, outputs, backprops, tokens, transform, backend, sketch, rows)
        for chunk in backend.chunks(tokens.lengths, outputs.n_columns, width, operand.itemsize)
    ]
    log_probs_N, square_N, expected_N, product_N, residual_N = torch.cat(parts).unbind(1)
    product_B, expected_B = tokens.sum_rows(torch.stack([product_N, expected_N], 1)).unbind(1)
    weight_B = product_B / expected_B
    loss = ObservedLoss.of_tokens(tokens, weight_B, expected_N, product_N, residual_N)
    return loss, rows.records(log_probs_N, square_N, outputs.x_ND, outputs.n_columns, weight_B)


def _chunk_of_backprops(
    chunk: Chunk,
    outputs: HeadOutputs,
    backprops: HeadOutputs,
    tokens: ResponseTokens,
    transform: HeadTransform,
    backend: Backend,
    sketch: TensorSketch,
    rows: RowSums,
) -> torch.Tensor:
    # Returns of each token its log-likelihood, ‖softmax − one-hot‖², and with the backprops ω of
    # its own loss and δ of the training loss ‖ω‖², δ·ω and ‖δ − wω‖²; w is the row's factor as its
    # targets alone have it. Adds δ's gradients to the rows.
    kernels = backend.kernels()
    x_nD, targets_n = outputs.x_ND[chunk.tokens], tokens.targets_N[chunk.tokens]
    sweep = Sweep(outputs, chunk)
    normaliser_n, picked_n = sweep.first(targets_n, transform, normalise=True)
    log_prob_n = (picked_n - normaliser_n).masked_fill(targets_n == IGNORED_LABEL, 0)
    weight_n = _weights_at_targets(chunk, backprops, tokens, transform, picked_n, log_prob_n)
    square_n, expected_n, product_n, residual_n = (
        torch.zeros_like(widest(picked_n)) for _ in range(4)
    )
    for block in sweep.blocks:
        errors = kernels_torch.errors(
            sweep.outputs(block), targets_n, block.start, transform, normaliser_n, None
        )
        delta_nr, expected_nr = backprops.outputs(chunk.tokens, block), errors.delta_nr
        observed_nr = at_least_float32(delta_nr)
        square_n += errors.square_n
        expected_n += torch.linalg.vecdot(expected_nr, expected_nr)
        product_n += torch.linalg.vecdot(observed_nr, expected_nr)
        residual_n += torch.linalg.vector_norm(
            observed_nr - weight_n.unsqueeze(1) * expected_nr, dim=1
        ).square()
        operand = kernels.operand_dtype(delta_nr.dtype)
        sums_R5, _ = kernels.row_gradients(
            delta_nr.to(operand), x_nD.to(operand), tokens, chunk, sums=True, total=False
        )
        rows.add(sums_R5, sketch.rows(observed_nr, block.start))
    rows.end_chunk()
    numbers_n5 = torch.stack([widest(log_prob_n), square_n, expected_n, product_n, residual_n], 1)
    return numbers_n5.masked_fill((targets_n == IGNORED_LABEL).unsqueeze(1), 0)


def _weights_at_targets(
    chunk: Chunk,
    backprops: HeadOutputs,
    tokens: ResponseTokens,
    transform: HeadTransform,
    logit_n: torch.Tensor,
    log_prob_n: torch.Tensor,
) -> torch.Tensor:
    # The factor of each token's row, from the one entry of its backprops that is largest.
    expected_n = log_prob_n.expm1() * transform.derivative(logit_n)
    observed_n = backprops.at_targets(chunk.tokens, tokens.targets_N[chunk.tokens]).to(
        expected_n.dtype
    )
    rows_n = tokens.rows_N[chunk.tokens] - chunk.rows.start
    sums_R2 = expected_n.new_zeros(len(chunk.lengths), 2)
    sums_R2.index_add_(0, rows_n, torch.stack([observed_n * expected_n, expected_n.square()], 1))
    return (sums_R2[:, 0] / sums_R2[:, 1])[rows_n]
