"""Per-sample gradient statistics from activations and backprops, without forming the gradient.

Shapes: T tokens of one instance, D width, V rows of the weight (vocabulary), R rows in one block,
U distinct tokens of the instance, K rank of the sketch on one side. A weight gradient is
`G_VD = delta_TV.T @ x_TD` for a linear layer; for an embedding its row v is the sum of `delta_TD`
over the positions that hold token v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Projection:
    """Two seeded Gaussian matrices whose Kronecker product projects a V×D gradient to K·K numbers.

    `sketch(G) = left.T @ G @ right`; the entries have variance 1/K, so that the inner product of
    two sketches is an unbiased estimate of the inner product of the two gradients.
    """

    left_VK: torch.Tensor
    right_DK: torch.Tensor

    @classmethod
    def seeded(
        cls, n_rows: int, width: int, *, rank: int, seed: int, device: torch.device
    ) -> Projection:
        """Draw the two matrices on the CPU, so that every device gets the same ones.

        Args:
            n_rows: V, rows of the weight.
            width: D, columns of the weight.
            rank: K; the sketch has K·K entries.
            seed: Seed of a generator of its own.
            device: Where the matrices are kept.

        Returns:
            The projection in float32.
        """
        generator = torch.Generator().manual_seed(seed)
        left = torch.randn(n_rows, rank, generator=generator) / rank**0.5
        right = torch.randn(width, rank, generator=generator) / rank**0.5
        return cls(left.to(device), right.to(device))


@dataclass(frozen=True)
class GradientSummary:
    """What is kept of one gradient: its statistics over all V·D entries, and its sketch.

    `values_S` (float64) holds terms.STATISTICS in their order; `sketch_K2` is float32.
    """

    values_S: torch.Tensor
    sketch_K2: torch.Tensor


def linear_summary(
    x_TD: torch.Tensor,
    delta_blocks_TR: Iterable[torch.Tensor],
    n_rows: int,
    projection: Projection,
    use_block: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> GradientSummary:
    """Summarise the weight gradient of a linear layer, a block of its rows at a time.

    Args:
        x_TD: Input of the layer at the tokens of one instance.
        delta_blocks_TR: Gradient of the loss with respect to the layer's output, in consecutive
            blocks of output features; each is needed once and never kept.
        n_rows: V, the number of output features that the blocks must add up to.
        projection: For the sketch.
        use_block: Called for each block with its first row, its backprops delta_TR and its
            gradient_RD: whoever needs the same product (training does) need not repeat it.

    Returns:
        Statistics over the V·D entries, accumulated in at least float32 within a block and in
        float64 across blocks.
    """
    x_TD = _at_least_float32(x_TD)
    partial_sums = []
    left_sum_TK = x_TD.new_zeros(x_TD.shape[0], projection.left_VK.shape[1])
    start = 0
    for delta_TR in delta_blocks_TR:
        delta_TR = delta_TR.to(x_TD.dtype)
        stop = start + delta_TR.shape[1]
        gradient_RD = delta_TR.T @ x_TD
        partial_sums.append(_block_sums(gradient_RD))
        if use_block is not None:
            use_block(start, delta_TR, gradient_RD)
        left_sum_TK.addmm_(delta_TR, projection.left_VK[start:stop].to(x_TD.dtype))
        start = stop
    assert start == n_rows, f"blocks cover {start} of {n_rows} rows"
    sketch_KK = left_sum_TK.T @ (x_TD @ projection.right_DK.to(x_TD.dtype))
    values_S = _statistics(torch.stack(partial_sums), n_rows * x_TD.shape[1])
    return GradientSummary(values_S, sketch_KK.flatten().float())


def embedding_summary(
    tokens_T: torch.Tensor,
    delta_TD: torch.Tensor,
    n_rows: int,
    projection: Projection,
    padding_idx: int | None = None,
) -> GradientSummary:
    """Summarise the gradient of an embedding table; only the rows of used tokens differ from 0.

    Args:
        tokens_T: Token of each position of one instance; its rows are summed where tokens repeat.
        delta_TD: Gradient of the loss with respect to the embedding's output.
        n_rows: V, rows of the table; the rows of unused tokens count as zeros.
        projection: For the sketch.
        padding_idx: The token whose row autograd leaves without a gradient, if the table has one.

    Returns:
        Statistics over the V·D entries, in at least float32.
    """
    delta_TD = _at_least_float32(delta_TD)
    if padding_idx is not None:
        delta_TD = delta_TD * (tokens_T != padding_idx).unsqueeze(1).to(delta_TD.dtype)
    used_U, position_T = tokens_T.unique(return_inverse=True)
    gradient_UD = delta_TD.new_zeros(len(used_U), delta_TD.shape[1])
    gradient_UD.index_add_(0, position_T, delta_TD)
    sums = _block_sums(gradient_UD)
    if len(used_U) < n_rows:
        sums = torch.cat([sums[:1].clamp(min=0), sums[1:2].clamp(max=0), sums[2:]])
    left_UK = projection.left_VK[used_U].to(delta_TD.dtype)
    sketch_KK = left_UK.T @ (gradient_UD @ projection.right_DK.to(delta_TD.dtype))
    values_S = _statistics(sums.unsqueeze(0), n_rows * delta_TD.shape[1])
    return GradientSummary(values_S, sketch_KK.flatten().float())


def dense_summary(gradient_VD: torch.Tensor, projection: Projection) -> GradientSummary:
    """Summarise a gradient that is at hand, in float64: the slow reference of the two above.

    Args:
        gradient_VD: The whole gradient, as autograd gives it.
        projection: For the sketch.

    Returns:
        The same summary as the blockwise functions give.
    """
    g = gradient_VD.double()
    values = [g.max(), g.min(), g.mean(), g.abs().mean(), g.std(correction=0), g.norm()]
    sketch_KK = projection.left_VK.double().T @ g @ projection.right_DK.double()
    return GradientSummary(torch.stack(values), sketch_KK.flatten().float())


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _block_sums(gradient_RD: torch.Tensor) -> torch.Tensor:
    low, high = gradient_RD.aminmax()
    # Row by row: over a whole block, float32 accumulation inside vector_norm is off by up to 5e-4.
    l2_norm_R = torch.linalg.vector_norm(gradient_RD, dim=1).double()
    abs_sum = gradient_RD.abs().sum().double()
    sums = [gradient_RD.sum().double(), abs_sum, l2_norm_R.norm()]
    return torch.stack([high.double(), low.double(), *sums])


def _statistics(sums_N5: torch.Tensor, n_entries: int) -> torch.Tensor:
    mean = sums_N5[:, 2].sum() / n_entries
    square_sum = sums_N5[:, 4].square().sum()
    variance = (square_sum / n_entries - mean.square()).clamp(min=0)
    return torch.stack(
        [
            sums_N5[:, 0].max(),
            sums_N5[:, 1].min(),
            mean,
            sums_N5[:, 3].sum() / n_entries,
            variance.sqrt(),
            square_sum.sqrt(),
        ]
    )
