"""Kernels in PyTorch: softmax errors, and norms and other sums over gradients, block by block.

A row's V×D gradient is formed a block of the vocabulary at a time. In float32 or float64, for any
device. `kernels_triton.py` offers the same functions.

Shapes: n tokens and R rows of a chunk, r vocabulary rows of a block, D width, K numbers of a
sketch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradsift.gradients.backends import Chunk
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import entry_sums
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import IGNORED_LABEL


@dataclass(frozen=True)
class Errors:
    """What a block of the head's outputs becomes.

    Attributes:
        delta_nr: Gradient of each token's own loss with respect to the outputs; 0 without a loss.
        normaliser_n: Logarithm of the softmax' denominator.
        square_n: Sum of the squares of softmax minus one-hot over the block.
        left_nK: Count sketches of `delta_nr`, or None.
    """

    delta_nr: torch.Tensor
    normaliser_n: torch.Tensor
    square_n: torch.Tensor
    left_nK: torch.Tensor | None


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of backprops and of what they are multiplied with.

    In a lower precision PyTorch would round the results, too.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def errors(
    z_nr: torch.Tensor,
    targets_n: torch.Tensor,
    start: int,
    transform: HeadTransform,
    normaliser_n: torch.Tensor | None,
    sketch: TensorSketch | None,
) -> Errors:
    """Turn the head's outputs, which may be overwritten, into backprops of each token's own loss.

    The block begins at the vocabulary's row `start`, a multiple of the sketch's size;
    `normaliser_n` is that of the whole softmax, or None if the block is the whole.
    """
    logits_nr = transform.forward(z_nr.to(operand_dtype(z_nr.dtype)))
    if normaliser_n is None:
        normaliser_n = logits_nr.logsumexp(1)
    # Without a loss the probabilities are exp(−∞).
    shift_n1 = normaliser_n.masked_fill(targets_n == IGNORED_LABEL, torch.inf).unsqueeze(1)
    delta_nr = (logits_nr - shift_n1).exp_()
    inside_n, column_n = target_columns(targets_n, start, z_nr.shape[1])
    at_n1 = column_n.unsqueeze(1)
    delta_nr.scatter_(
        1, at_n1, delta_nr.gather(1, at_n1) - inside_n.unsqueeze(1).to(delta_nr.dtype)
    )
    square_n = torch.linalg.vector_norm(delta_nr, dim=1).square()
    slope = transform.derivative(logits_nr)
    if isinstance(slope, torch.Tensor) or slope != 1:
        delta_nr.mul_(slope)
    left_nK = None if sketch is None else sketch.rows(delta_nr, start)
    return Errors(delta_nr, normaliser_n, square_n, left_nK)


def row_gradients(
    delta_nr: torch.Tensor,
    x_nD: torch.Tensor,
    tokens: ResponseTokens,
    chunk: Chunk,
    *,
    sums: bool,
    total: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Form each row's own gradient `δᵀx` for a block of the vocabulary.

    Returns, if wanted, the sums over the entries of each [R, 5] as in statistics.py, and the
    `total` of all rows [r, D]. The same products are taken whether or not the sums are wanted, so
    that training with and without recording is the same to the bit.
    """
    if not sums and not total:
        return None, None
    delta_RLr, x_RLD = (chunk.padded(values_nX) for values_nX in (delta_nr, x_nD))
    gradient_RrD = delta_RLr.transpose(1, 2) @ x_RLD
    sums_R5 = entry_sums(gradient_RrD) if sums else None
    if not total:
        return sums_R5, None
    return sums_R5, gradient_RrD[0] if len(gradient_RrD) == 1 else gradient_RrD.sum(0)


def target_columns(
    targets_n: torch.Tensor, start: int, n_columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which targets lie in a block of the vocabulary, and their columns (0 elsewhere)."""
    column_n = targets_n - start
    inside_n = (column_n >= 0) & (column_n < n_columns) & (targets_n >= 0)
    return inside_n, column_n.clamp(0, n_columns - 1)
