"""TensorSketch of a weight gradient: a few numbers whose inner products are those of the gradients.

A count sketch adds up the entries of a vector, with random signs, in K random buckets. The gradient
of a linear layer is a sum of outer products `δ_t x_tᵀ`, and the count sketch of an outer product,
with the bucket `(bucket(v) + bucket(d)) mod K` and the product of the signs, is the circular
convolution of the two vectors' count sketches. So the gradient is never formed (Pham and Pagh,
"Fast and scalable polynomial kernels via explicit feature maps", KDD 2013).

Shapes: V rows and D columns of the weight, K numbers of a sketch, Q runs of K rows, N tokens,
R rows of a block, B instances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradsift.gradients.precision import widest

CHECK_ROWS = 4096
MOST_SKETCH_NUMBERS = 2048


@dataclass(frozen=True)
class SketchSpec:
    """Size (a power of two up to 2,048) and seed of the gradient sketches of each layer.

    1,024 numbers rank the cosines of real gradients at 0.81, 256 at 0.58 (docs/measurements.md).
    """

    size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a size that cannot be.

        Raises:
            ValueError: If it is no power of two, or too large.
        """
        if not 1 <= self.size <= MOST_SKETCH_NUMBERS or self.size & (self.size - 1):
            raise ValueError(
                f"sketch_size is {self.size}, expected a power of two up to {MOST_SKETCH_NUMBERS}, "
                "such as 256 or 1024."
            )


@dataclass(frozen=True)
class TensorSketch:
    """The random buckets and signs for one V×D weight.

    Rows of the weight fall into buckets run by run: each run of K rows is turned by a random shift,
    so two rows share a bucket with probability 1/K or, within a run, never, and a run can be read
    in one go. Columns fall into buckets independently.

    Attributes:
        size: K.
        shift_Q: Of each run, int32: row v has the bucket `(v + shift[v // K]) mod K`.
        sign_J: Of each row, ±1 float32, filled up with zeros to whole runs, J = Q·K.
        column_DK: float32: of each column a sign at its bucket, else 0.
        slot_J: Row that belongs to each bucket, run by run: bucket k of run q at q·K + k.
    """

    size: int
    n_rows: int
    shift_Q: torch.Tensor
    sign_J: torch.Tensor
    column_DK: torch.Tensor
    slot_J: torch.Tensor

    @classmethod
    def seeded(
        cls, n_rows: int, width: int, *, size: int, seed: int, device: torch.device
    ) -> TensorSketch:
        """Draw buckets and signs on the CPU, so that every device gets the same ones.

        Args:
            n_rows: V.
            width: D.
            size: K, a power of two.
            seed: Of a generator of its own.
            device: Where they are kept.

        Returns:
            The sketch.
        """
        generator = torch.Generator().manual_seed(seed)
        n_runs = -(-n_rows // size)
        shift_Q = torch.randint(size, (n_runs,), generator=generator)
        sign_J = torch.randint(2, (n_runs * size,), generator=generator).float() * 2 - 1
        sign_J[n_rows:] = 0
        bucket_D = torch.randint(size, (width,), generator=generator)
        sign_D = torch.randint(2, (width,), generator=generator).float() * 2 - 1
        column_DK = torch.zeros(width, size)
        column_DK[torch.arange(width), bucket_D] = sign_D
        bucket_J = torch.arange(n_runs * size)
        slot_J = bucket_J // size * size + (bucket_J - shift_Q[bucket_J // size]) % size
        tensors = (shift_Q.to(torch.int32), sign_J, column_DK, slot_J)
        return cls(size, n_rows, *(tensor.to(device) for tensor in tensors))

    def rows(self, delta_NR: torch.Tensor, start: int) -> torch.Tensor:
        """Count-sketch a block of columns of backprops that begins at a whole run.

        Args:
            delta_NR: Backprops at the weight's rows from `start` on.
            start: A multiple of K.

        Returns:
            [N, K], of the dtype of the backprops.
        """
        assert start % self.size == 0, f"a block at {start} is not at a run of {self.size}"
        n_runs = -(-delta_NR.shape[1] // self.size)
        block = slice(start, start + n_runs * self.size)
        # Where the last run is not whole its slots point beyond the block; their signs are 0.
        slot_J = (self.slot_J[block] - start).clamp(max=delta_NR.shape[1] - 1)
        sign_J = self.sign_J[self.slot_J[block]].to(delta_NR.dtype)
        # Faster than index_select, which copies column by column.
        turned_NJ = delta_NR.gather(1, slot_J.expand(len(delta_NR), -1)).mul_(sign_J)
        return turned_NJ.view(len(delta_NR), n_runs, self.size).sum(1)

    def tokens(self, tokens_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bucket (int64) and sign (float32) of single rows of the weight."""
        bucket_N = (tokens_N + self.shift_Q[tokens_N // self.size]) % self.size
        return bucket_N, self.sign_J[tokens_N]

    def columns(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the count sketch of vectors of width D, [N, K]."""
        return x_ND @ self.column_DK.to(x_ND.dtype)

    def convolve(
        self,
        left_NK: torch.Tensor,
        right_NK: torch.Tensor,
        sum_rows: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Sum the convolutions of pairs of count sketches over the tokens of each row.

        Args:
            left_NK: Of the backprops.
            right_NK: Of the inputs.
            sum_rows: Sums [N, ...] to [B, ...].

        Returns:
            [B, K], the sketches of Σ δxᵀ.
        """
        if len(left_NK) == 0:  # Not every FFT takes nothing.
            return sum_rows(left_NK)
        spectrum_NF = torch.fft.rfft(left_NK) * torch.fft.rfft(right_NK)
        sums_BF2 = sum_rows(torch.view_as_real(spectrum_NF))
        return torch.fft.irfft(torch.view_as_complex(sums_BF2), n=self.size)

    def dense(self, gradient_VD: torch.Tensor) -> torch.Tensor:
        """Sketch a gradient that is at hand, in float64: the slow reference.

        Args:
            gradient_VD: The whole gradient.

        Returns:
            [K] float64.
        """
        tokens_V = torch.arange(self.n_rows, device=gradient_VD.device)
        bucket_V, sign_V = self.tokens(tokens_V)
        left_KD = widest(gradient_VD.new_zeros(self.size, gradient_VD.shape[1]))
        for at in range(0, self.n_rows, CHECK_ROWS):
            rows = slice(at, at + CHECK_ROWS)
            signed_RD = widest(gradient_VD[rows]) * sign_V[rows, None]
            left_KD.index_add_(0, bucket_V[rows], signed_RD)
        bucket_D = self.column_DK.abs().argmax(1)
        bucket_K1 = torch.arange(self.size, device=bucket_D.device).unsqueeze(1)
        buckets_KD = (bucket_K1 + bucket_D) % self.size
        signed_KD = left_KD * self.column_DK.sum(1)
        sketch_K = left_KD.new_zeros(self.size)
        return sketch_K.index_add_(0, buckets_KD.flatten(), signed_KD.flatten())
