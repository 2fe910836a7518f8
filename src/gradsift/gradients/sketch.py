"""TensorSketch of a weight gradient: a few numbers whose inner products are those of the gradients.

A count sketch adds up the entries of a vector, with random signs, in K random buckets. The gradient
of a linear layer is a sum of outer products `δ_t x_tᵀ`, and the count sketch of an outer product,
with the bucket `(bucket(v) + bucket(d)) mod K` and the product of the signs, is the circular
convolution of the two vectors' count sketches. So the gradient is never formed (Pham and Pagh,
"Fast and scalable polynomial kernels via explicit feature maps", KDD 2013).

Shapes: V rows and D columns of the weight, K numbers of a sketch, N tokens, R rows of a block, B
instances. A *run* is K rows of the weight, from a multiple of K on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.backends import MOST_SKETCH_NUMBERS, widest
from gradsift.terms import SKETCH_SIZE

CHECK_ROWS = 4096


@dataclass(frozen=True)
class SketchSpec:
    """Size (a power of two up to 2,048) and seed of the gradient sketches of each layer.

    How well they rank pairs of rows is in docs/measurements.md.
    """

    size: int = SKETCH_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MOST_SKETCH_NUMBERS or self.size & (self.size - 1):
            raise GradsiftError(
                f"`sketch_size` is {self.size}, expected a power of two up to "
                f"{MOST_SKETCH_NUMBERS}, such as 256 or 1024."
            )


@dataclass(frozen=True)
class TensorSketch:
    """The buckets and random signs for one V×D weight.

    Row v of the weight has the bucket `v mod K`: rows are then added up in whole runs, as they lie
    in memory. Columns have random buckets, so two entries of different columns share one with
    probability 1/K. Signs are random for both, which is what makes inner products unbiased.

    Attributes:
        size: K.
        sign_V: Of each row, ±1 float32.
        column_DK: float32: of each column a sign at its bucket, else 0.
    """

    size: int
    sign_V: torch.Tensor
    column_DK: torch.Tensor

    @classmethod
    def seeded(
        cls, n_rows: int, width: int, *, size: int, seed: int, device: torch.device
    ) -> TensorSketch:
        """Draw buckets and signs on the CPU, so that every device gets the same ones."""
        generator = torch.Generator().manual_seed(seed)
        sign_V = torch.randint(2, (n_rows,), generator=generator).float() * 2 - 1
        bucket_D = torch.randint(size, (width,), generator=generator)
        sign_D = torch.randint(2, (width,), generator=generator).float() * 2 - 1
        column_DK = torch.zeros(width, size)
        column_DK[torch.arange(width), bucket_D] = sign_D
        return cls(size, sign_V.to(device), column_DK.to(device))

    def rows(self, delta_NR: torch.Tensor, start: int) -> torch.Tensor:
        """Count-sketch backprops at the weight's rows from `start`, a multiple of K, on: [N, K]."""
        assert start % self.size == 0, f"a block at {start} is not at a run of {self.size}"
        n_columns = delta_NR.shape[1]
        signed_NR = delta_NR * self.sign_V[start : start + n_columns].to(delta_NR.dtype)
        n_missing = -n_columns % self.size  # Only the last block of all ends within a run.
        if n_missing:
            signed_NR = torch.nn.functional.pad(signed_NR, (0, n_missing))
        return signed_NR.unflatten(1, (-1, self.size)).sum(1)

    def single_rows(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """Return the count sketches of one row of the weight each, [N, K] float32."""
        left_NK = self.sign_V.new_zeros(len(tokens_N), self.size)
        at_N1 = (tokens_N % self.size).unsqueeze(1)
        return left_NK.scatter_(1, at_N1, self.sign_V[tokens_N].unsqueeze(1))

    def columns(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the count sketch of vectors of width D, [N, K]."""
        return x_ND @ self.column_DK.to(x_ND.dtype)

    def convolve(
        self,
        left_NK: torch.Tensor,
        right_NK: torch.Tensor,
        sum_rows: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Sum the convolutions of count sketches over the tokens of each row.

        Of backprops (left) and inputs (right); `sum_rows` sums [N, ...] to [B, ...]. Returns
        [B, K], the sketches of Σ δxᵀ.
        """
        if len(left_NK) == 0:  # Not every FFT takes nothing.
            return sum_rows(left_NK)
        spectrum_NF = torch.fft.rfft(left_NK) * torch.fft.rfft(right_NK)
        sums_BF2 = sum_rows(torch.view_as_real(spectrum_NF))
        return torch.fft.irfft(torch.view_as_complex(sums_BF2), n=self.size)

    def dense(self, gradient_VD: torch.Tensor) -> torch.Tensor:
        """Sketch a gradient that is at hand, [K] float64: the slow reference."""
        bucket_V = torch.arange(len(self.sign_V), device=gradient_VD.device) % self.size
        left_KD = widest(gradient_VD.new_zeros(self.size, gradient_VD.shape[1]))
        for at in range(0, len(self.sign_V), CHECK_ROWS):
            rows = slice(at, at + CHECK_ROWS)
            signed_RD = widest(gradient_VD[rows]) * self.sign_V[rows, None]
            left_KD.index_add_(0, bucket_V[rows], signed_RD)
        bucket_D = self.column_DK.abs().argmax(1)
        bucket_K1 = torch.arange(self.size, device=bucket_D.device).unsqueeze(1)
        buckets_KD = (bucket_K1 + bucket_D) % self.size
        signed_KD = left_KD * self.column_DK.sum(1)
        sketch_K = left_KD.new_zeros(self.size)
        return sketch_K.index_add_(0, buckets_KD.flatten(), signed_KD.flatten())
