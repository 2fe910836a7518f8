"""Statistics of per-sample gradients, for a micro-batch at once, and the slow reference.

Shapes: B instances, P positions, D width, V rows of the weight (vocabulary), R rows in one block,
K numbers of a sketch. *Sums* are max, min, Σ, Σ|·| and Σ(·)² over entries of a gradient, float64,
in this order; sums of parts combine to sums of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradsift.gradients.backends import at_least_float32, widest
from gradsift.gradients.sketch import TensorSketch

REFERENCE_ENTRIES = 2**24


@dataclass(frozen=True)
class GradientSummary:
    """What is kept of one gradient: its statistics over all V·D entries, and its sketch.

    `values_S` (float64) holds terms.STATISTICS in their order; `sketch_K` is float32.
    """

    values_S: torch.Tensor
    sketch_K: torch.Tensor


@dataclass(frozen=True)
class GradientSummaries:
    """The same of the rows of a micro-batch, on the device: `values_BS` and `sketch_BK`."""

    values_BS: torch.Tensor
    sketch_BK: torch.Tensor

    @classmethod
    def from_sums(
        cls, sums_B5: torch.Tensor, n_entries: int, sketch_BK: torch.Tensor
    ) -> GradientSummaries:
        """Return the statistics that sums over all entries make."""
        high_B, low_B, sum_B, abs_B, square_B = sums_B5.unbind(1)
        mean_B = sum_B / n_entries
        variance_B = (square_B / n_entries - mean_B.square()).clamp(min=0)
        values = [high_B, low_B, mean_B, abs_B / n_entries, variance_B.sqrt(), square_B.sqrt()]
        return cls(torch.stack(values, 1), sketch_BK.float())

    def cpu(self) -> list[GradientSummary]:
        """Return them one by one, on the CPU; waits for the device."""
        pairs = zip(self.values_BS.cpu(), self.sketch_BK.cpu(), strict=True)
        return [GradientSummary(values_S, sketch_K) for values_S, sketch_K in pairs]


def entry_sums(gradient_BRD: torch.Tensor) -> torch.Tensor:
    """Return the sums of each of B gradients that are at hand, [B, 5]."""
    if len(gradient_BRD) == 1:  # Reductions to one number use all cores, along a dimension not.
        low_B, high_B = (end.unsqueeze(0) for end in gradient_BRD.aminmax())
        total_B, l1_B = gradient_BRD.sum().unsqueeze(0), gradient_BRD.abs().sum().unsqueeze(0)
    else:
        flat_BE = gradient_BRD.flatten(1)
        (low_B, high_B), total_B = flat_BE.aminmax(dim=1), flat_BE.sum(1)
        l1_B = widest(torch.linalg.vector_norm(gradient_BRD, ord=1, dim=2)).sum(1)
    # Row by row: over a whole block, float32 accumulation inside vector_norm is off by up to 5e-4.
    square_B = widest(torch.linalg.vector_norm(gradient_BRD, dim=2)).square().sum(1)
    return torch.stack([widest(t) for t in (high_B, low_B, total_B, l1_B, square_B)], 1)


def combined_sums(parts_PB5: torch.Tensor) -> torch.Tensor:
    """Return the sums of wholes from those of P parts, [B, 5]."""
    high_B, low_B = parts_PB5[..., 0].amax(0), parts_PB5[..., 1].amin(0)
    return torch.cat([high_B[:, None], low_B[:, None], parts_PB5[..., 2:].sum(0)], 1)


def scaled_sums(sums_B5: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """Return the sums of gradients times a factor each."""
    high_B, low_B, sum_B, abs_B, square_B = sums_B5.unbind(1)
    ends_B2 = torch.stack([high_B, low_B], 1) * factor_B.unsqueeze(1)
    rest = [sum_B * factor_B, abs_B * factor_B.abs(), square_B * factor_B.square()]
    return torch.stack([ends_B2.amax(1), ends_B2.amin(1), *rest], 1)


def embedding_summaries(
    tokens_P: torch.Tensor,
    rows_P: torch.Tensor,
    delta_PD: torch.Tensor,
    n_instances: int,
    n_rows: int,
    sketch: TensorSketch,
    padding_idx: int | None = None,
) -> GradientSummaries:
    """Summarise the gradient of an embedding table over its V·D entries, for each instance.

    `rows_P` is the instance of each position, `n_instances` where it belongs to none; `delta_PD`
    the gradient of the instance's own loss at the embedding's output. Autograd leaves the row of
    `padding_idx` without a gradient. Positions are sorted by (instance, token); the backprops of a
    token that repeats within an instance add up, the rows of unused tokens count as zeros. Nothing
    waits for the device: there is room for as many sums as positions.
    """
    delta_PD = at_least_float32(delta_PD)
    if padding_idx is not None:
        delta_PD = delta_PD.masked_fill((tokens_P == padding_idx).unsqueeze(1), 0)
    sums_B5 = _embedding_sums(tokens_P, rows_P, delta_PD, n_instances, n_rows)

    def sum_rows(values_PX: torch.Tensor) -> torch.Tensor:
        sums_JX = values_PX.new_zeros(n_instances + 1, *values_PX.shape[1:])
        return sums_JX.index_add_(0, rows_P, values_PX)[:-1]

    left_PK = sketch.single_rows(tokens_P).to(delta_PD.dtype)
    sketch_BK = sketch.convolve(left_PK, sketch.columns(delta_PD), sum_rows)
    return GradientSummaries.from_sums(sums_B5, n_rows * delta_PD.shape[1], sketch_BK)


def _embedding_sums(
    tokens_P: torch.Tensor,
    rows_P: torch.Tensor,
    delta_PD: torch.Tensor,
    n_instances: int,
    n_rows: int,
) -> torch.Tensor:
    keys_P, order_P = (rows_P * n_rows + tokens_P).sort()
    is_first_P = torch.ones_like(keys_P, dtype=torch.bool)
    is_first_P[1:] = keys_P[1:] != keys_P[:-1]
    segment_P = is_first_P.cumsum(0) - 1
    gradient_PD = torch.zeros_like(delta_PD)
    gradient_PD.index_add_(0, torch.empty_like(order_P).scatter_(0, order_P, segment_P), delta_PD)
    # Room that is not needed belongs to a row of its own, which is thrown away.
    row_P = torch.full_like(rows_P, n_instances).scatter_(0, segment_P, keys_P // n_rows)

    def by_row(values_P: torch.Tensor, reduce: str) -> torch.Tensor:
        start_J = values_P.new_zeros(n_instances + 1)
        return start_J.scatter_reduce_(0, row_P, values_P, reduce, include_self=False)[:-1]

    low_P, high_P = gradient_PD.aminmax(dim=1)
    n_used_J = rows_P.new_zeros(n_instances + 1)
    all_used_B = n_used_J.index_add_(0, keys_P // n_rows, is_first_P.long())[:-1] >= n_rows
    high_B, low_B = by_row(high_P, "amax"), by_row(low_P, "amin")
    high_B = torch.where(all_used_B, high_B, high_B.clamp(min=0))
    low_B = torch.where(all_used_B, low_B, low_B.clamp(max=0))
    norm_P = torch.linalg.vector_norm(gradient_PD, dim=1)
    l1_P = torch.linalg.vector_norm(gradient_PD, ord=1, dim=1)
    columns = (gradient_PD.sum(1), l1_P, widest(norm_P).square())
    sums_P3 = torch.stack([widest(values_P) for values_P in columns], 1)
    sums_B3 = sums_P3.new_zeros(n_instances + 1, 3).index_add_(0, row_P, sums_P3)[:-1]
    return torch.cat([widest(torch.stack([high_B, low_B], 1)), sums_B3], 1)


def dense_summary(gradient_VD: torch.Tensor, sketch: TensorSketch) -> GradientSummary:
    """Summarise a gradient that is at hand, in float64: the slow reference of what is recorded."""
    rows_at_once = max(1, REFERENCE_ENTRIES // gradient_VD.shape[1])
    parts = [entry_sums(widest(block).unsqueeze(0)) for block in gradient_VD.split(rows_at_once)]
    sums_15 = combined_sums(torch.stack(parts))
    sketch_1K = sketch.dense(gradient_VD).unsqueeze(0)
    return GradientSummaries.from_sums(sums_15, gradient_VD.numel(), sketch_1K).cpu()[0]
