"""The LM head of a micro-batch: loss, backprops, training's gradients and each row's own sums.

A training step needs three products with the head's weight: logits, the gradient of the hidden
states, the gradient of the weight. What a row's own gradient looks like is read off on the way,
in the forward pass, when the logits are at hand: softmax minus one-hot takes their place. Nothing
here waits for the device or loops over rows, tokens or the vocabulary, other than in chunks of
bounded size.

Shapes: N flattened tokens, D width, V vocabulary, B instances, K numbers of a sketch; n, r for
those of one chunk or block. Everything is of the sum of the tokens' losses until it is divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gradsift.gradients.backends import Backend, Chunk, at_least_float32, widest
from gradsift.gradients.kernels_torch import target_columns
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import GradientSummaries, combined_sums, scaled_sums
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import IGNORED_LABEL


@dataclass(frozen=True)
class HeadRecords:
    """What is recorded at the LM head of each row of a micro-batch; on the device.

    Attributes:
        loss_B: Instance loss, mean over the response tokens, in nats; NaN without one.
        el2n_B: Mean over the response tokens of ‖softmax − one-hot‖₂: EL2N (arXiv 2107.07075) with
            tokens for classes.
        n_tokens_B: Response tokens.
        summaries: Of the gradient of the instance loss at the head's weight.
    """

    loss_B: torch.Tensor
    el2n_B: torch.Tensor
    n_tokens_B: torch.Tensor
    summaries: GradientSummaries


@dataclass(frozen=True)
class HeadPass:
    """What one pass over the head gives.

    Attributes:
        log_probs_N: Log-likelihood of each token, in nats; 0 without a loss. At least float32.
        square_N: Squared norms of softmax minus one-hot; zeros without records and gradients.
        records: None without a sketch.
        gradients: Of −Σ log p with respect to hidden states [N, D], weight [V, D] and bias [V];
            None where they need none.
    """

    log_probs_N: torch.Tensor
    square_N: torch.Tensor
    records: HeadRecords | None
    gradients: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class HeadProduct:
    """The head's outputs as its product with hidden states, a block of the vocabulary at a time.

    The product has the dtype of these, `x_ND`, at the flattened tokens.
    """

    def __init__(self, x_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None):
        self.x_ND, self.dtype = x_ND, x_ND.dtype
        self.weight_VD = weight_VD.to(x_ND.dtype)
        self._bias_V = None if bias_V is None else bias_V.to(x_ND.dtype)
        self.n_columns = len(weight_VD)

    def outputs(self, tokens: slice, block: slice) -> torch.Tensor:
        """Return [n, r], which may be overwritten."""
        bias_r = None if self._bias_V is None else self._bias_V[block]
        return F.linear(self.x_ND[tokens], self.weight_VD[block], bias_r)


class HeadOutputs:
    """The head's outputs as a forward pass has computed them, or other values for each of them.

    `x_ND` is the head's input at the flattened tokens.
    """

    def __init__(self, tokens: ResponseTokens, x_ND: torch.Tensor, z_BTV: torch.Tensor):
        self.x_ND = x_ND
        self.n_columns = z_BTV.shape[-1]
        self.dtype = z_BTV.dtype
        self._z_PV, self._positions_N = z_BTV.flatten(0, 1), tokens.positions_N

    def outputs(self, tokens: slice, block: slice) -> torch.Tensor:
        """Return [n, r], a copy which may be overwritten."""
        return self._z_PV[:, block].index_select(0, self._positions_N[tokens])

    def at_targets(self, tokens: slice, targets_n: torch.Tensor) -> torch.Tensor:
        """Return the values at each token's target, [n]; any for a target of -100."""
        return self._z_PV[self._positions_N[tokens], targets_n.clamp(min=0)]


def head_pass(
    head: HeadProduct | HeadOutputs,
    tokens: ResponseTokens,
    transform: HeadTransform,
    backend: Backend,
    *,
    sketch: TensorSketch | None = None,
    needs_grad: tuple[bool, bool, bool] = (False, False, False),
) -> HeadPass:
    """Compute the losses of a micro-batch, with a sketch its records, and gradients.

    `needs_grad` is for hidden states, weight and bias, as in autograd, and for a `HeadProduct`
    only. Logits have the dtype of the product; what follows has the `operand_dtype` of the
    backend, sums at least float32.
    """
    operand = backend.kernels().operand_dtype(head.dtype)
    chunks = backend.chunks(tokens.lengths, head.n_columns, head.x_ND.shape[1], operand.itemsize)
    totals = _Totals(head, needs_grad)
    rows = None if sketch is None else RowSums(tokens, sketch)
    parts = [
        _chunk_pass(chunk, head, tokens, transform, backend, sketch, totals, rows)
        for chunk in chunks
    ]
    log_probs_N, square_N = (torch.cat(chunk_parts) for chunk_parts in zip(*parts, strict=True))
    records = None
    if rows is not None:
        records = rows.records(log_probs_N, square_N, head.x_ND, head.n_columns)
    gradients = (totals.hidden_ND, totals.weight_VD, totals.bias_V)
    return HeadPass(log_probs_N, square_N, records, gradients)


def _chunk_pass(
    chunk: Chunk,
    head: HeadProduct | HeadOutputs,
    tokens: ResponseTokens,
    transform: HeadTransform,
    backend: Backend,
    sketch: TensorSketch | None,
    totals: _Totals,
    rows: RowSums | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-likelihoods and squared error norms of a chunk's tokens; add it to the sums."""
    kernels = backend.kernels()
    x_nD, targets_n = head.x_ND[chunk.tokens], tokens.targets_N[chunk.tokens]
    # Under autocast the head's input is still in float32 where its outputs are not.
    x_nD = x_nD.to(kernels.operand_dtype(head.dtype))
    needs_errors = totals.needs_any or rows is not None
    sweep = Sweep(head, chunk)
    in_second = needs_errors and len(sweep.blocks) == 1  # Then it finds the normaliser, too.
    normaliser_n, picked_n = sweep.first(targets_n, transform, normalise=not in_second)
    square_n = torch.zeros_like(picked_n)
    for block in sweep.blocks if needs_errors else ():
        errors = kernels.errors(
            sweep.outputs(block), targets_n, block.start, transform, normaliser_n, sketch
        )
        normaliser_n = errors.normaliser_n
        square_n += errors.square_n
        sums_R5, total_rD = kernels.row_gradients(
            errors.delta_nr, x_nD, tokens, chunk, sums=rows is not None, total=totals.needs_weight
        )
        totals.add(chunk.tokens, block, errors.delta_nr, total_rD)
        if rows is not None:
            rows.add(sums_R5, errors.left_nK)
    if rows is not None:
        rows.end_chunk()
    return (picked_n - normaliser_n).masked_fill(targets_n == IGNORED_LABEL, 0), square_n


class Sweep:
    """Two sweeps over the vocabulary; the outputs are computed twice where they are not kept."""

    def __init__(self, head: HeadProduct | HeadOutputs, chunk: Chunk):
        self.blocks = chunk.blocks(head.n_columns)
        self._head, self._tokens = head, chunk.tokens
        self._keeps = chunk.keeps_logits or len(self.blocks) == 1
        self._kept: dict[int, torch.Tensor] = {}

    def first(
        self, targets_n: torch.Tensor, transform: HeadTransform, *, normalise: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the softmax' normalisers, if wanted, and the targets' logits, both [n]."""
        log_sums, picked = [], []
        for block in self.blocks:
            z_nr = self._head.outputs(self._tokens, block)
            inside_n, column_n = target_columns(targets_n, block.start, z_nr.shape[1])
            z_n = at_least_float32(z_nr.gather(1, column_n.unsqueeze(1)).squeeze(1))
            picked.append(transform.forward(z_n).masked_fill(~inside_n, 0))
            if normalise:
                log_sums.append(transform.forward(at_least_float32(z_nr)).logsumexp(1))
            if self._keeps:
                self._kept[block.start] = z_nr
        normaliser_n = torch.stack(log_sums).logsumexp(0) if normalise else None
        return normaliser_n, torch.stack(picked).sum(0)

    def outputs(self, block: slice) -> torch.Tensor:
        """Return the outputs of a block in the second sweep, to be overwritten."""
        if self._keeps:
            return self._kept.pop(block.start)
        return self._head.outputs(self._tokens, block)


class _Totals:
    """The gradients that training needs, of the sum of all tokens' losses, as they grow."""

    def __init__(self, head: HeadProduct | HeadOutputs, needs_grad: tuple[bool, bool, bool]):
        self.needs_any, self.needs_weight = any(needs_grad), needs_grad[1]
        self._head = head
        self._empty = {"dtype": at_least_float32(head.x_ND[:0]).dtype, "device": head.x_ND.device}
        self.hidden_ND = torch.zeros(head.x_ND.shape, **self._empty) if needs_grad[0] else None
        self.weight_VD: torch.Tensor | None = None
        self.bias_V = torch.zeros(head.n_columns, **self._empty) if needs_grad[2] else None

    def add(
        self, tokens: slice, block: slice, delta_nr: torch.Tensor, total_rD: torch.Tensor | None
    ) -> None:
        if self.hidden_ND is not None:
            weight_rD = self._head.weight_VD[block].to(delta_nr.dtype)
            _add_product(self.hidden_ND[tokens], delta_nr, weight_rD)
        if total_rD is not None:
            self._add_weight(tokens, block, total_rD)
        if self.bias_V is not None:
            self.bias_V[block].add_(delta_nr.sum(0, dtype=self.bias_V.dtype))

    def _add_weight(self, tokens: slice, block: slice, total_rD: torch.Tensor) -> None:
        x_ND = self._head.x_ND
        if len(total_rD) == self._head.n_columns and tokens == slice(0, len(x_ND)):
            self.weight_VD = total_rD  # It is the whole: nothing is to be added.
            return
        if self.weight_VD is None:
            self.weight_VD = torch.zeros(self._head.n_columns, x_ND.shape[1], **self._empty)
        self.weight_VD[block].add_(total_rD)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


class RowSums:
    """The records of each row as they grow, chunk by chunk and block by block."""

    def __init__(self, tokens: ResponseTokens, sketch: TensorSketch):
        self._tokens, self._sketch = tokens, sketch
        self._parts: list[torch.Tensor] = []
        self._left_nK: torch.Tensor | float = 0.0
        self._sums: list[torch.Tensor] = []
        self._left: list[torch.Tensor] = []

    def add(self, sums_R5: torch.Tensor, left_nK: torch.Tensor) -> None:
        """Take a block of a chunk: sums over its gradients, count sketches of its backprops."""
        self._parts.append(sums_R5)
        self._left_nK = self._left_nK + left_nK

    def end_chunk(self) -> None:
        """Put the blocks of a chunk together."""
        self._sums.append(combined_sums(torch.stack(self._parts)))
        self._left.append(self._left_nK)
        self._parts, self._left_nK = [], 0.0

    def records(
        self,
        log_probs_N: torch.Tensor,
        square_N: torch.Tensor,
        x_ND: torch.Tensor,
        n_columns: int,
        scale_B: torch.Tensor | None = None,
    ) -> HeadRecords:
        """Divide by what turns sums over tokens into means.

        `square_N` are the squared norms of softmax minus one-hot, `scale_B` by how much the
        backprops were larger than those of the tokens' own losses.
        """
        tokens = self._tokens
        counted_B = tokens.n_tokens_I
        n_tokens_B = widest(counted_B)
        log_prob_B, el2n_B = (
            tokens.sum_rows(widest(values_N)) for values_N in (log_probs_N, square_N.sqrt())
        )
        factor_B = 1 / n_tokens_B if scale_B is None else 1 / (n_tokens_B * scale_B)
        left_NK = torch.cat(self._left)
        right_NK = at_least_float32(self._sketch.columns(at_least_float32(x_ND)))
        sketch_BK = self._sketch.convolve(left_NK, right_NK, tokens.sum_rows)
        summaries = GradientSummaries.from_sums(
            scaled_sums(torch.cat(self._sums), factor_B),
            n_columns * x_ND.shape[1],
            sketch_BK * factor_B.unsqueeze(1),
        )
        return HeadRecords(-log_prob_B / n_tokens_B, el2n_B / n_tokens_B, counted_B, summaries)
