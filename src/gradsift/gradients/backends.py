"""Backends: which kernels compute the LM head's sums on a device, and in blocks of which size.

All give the same numbers, up to rounding.

* triton: kernels that never write a row's gradient; on CUDA and ROCm devices.
* batched: PyTorch alone; the gradients of several rows are formed, a block of the vocabulary at a
  time, within a bound of bytes. For any device.
* blockwise: the same with one row and 2,048 rows of the vocabulary at a time, which is what the
  caches of a CPU like best.

Shapes: N tokens, R of them or of the vocabulary in a block, V vocabulary, D width, B instances.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch

from gradsift.wording import first_line

logger = logging.getLogger(__name__)

MIB = 2**20
MOST_SKETCH_NUMBERS = 2048


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return float64 as it is, anything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def widest(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, or in float32 on devices that have no float64."""
    return tensor.double() if has_float64(tensor.device) else tensor.float()


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64: Apple's and some of Intel's do not."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


@dataclass(frozen=True)
class Backend:
    """Kernels for the LM head, and the bounds of memory that they keep.

    Attributes:
        logits_bytes: Logits of so many bytes are held at once; a single row that has more goes by
            blocks of the vocabulary, and its logits are computed twice.
        gradient_bytes: Gradients of so many bytes are formed at once; None forms none.
        rows_at_once: Most rows of the micro-batch in one chunk; None takes what fits.
        block_rows: Vocabulary rows in one block; None takes what fits.
        align: Blocks begin at multiples of it, and so at whole runs of a sketch.
    """

    name: Literal["triton", "batched", "blockwise"]
    logits_bytes: int
    gradient_bytes: int | None = None
    rows_at_once: int | None = None
    block_rows: int | None = None
    align: int = MOST_SKETCH_NUMBERS

    def kernels(self) -> ModuleType:
        """Return the module of its kernels: `kernels_torch` or `kernels_triton`."""
        name = "kernels_triton" if self.name == "triton" else "kernels_torch"
        return importlib.import_module(f"gradsift.gradients.{name}")

    def chunks(
        self, lengths: tuple[int, ...], n_columns: int, width: int, itemsize: int
    ) -> list[Chunk]:
        """Divide a micro-batch into chunks of whole rows, in order.

        `lengths` are the tokens of each row, `n_columns` is V, `width` D, and `itemsize` the bytes
        of a logit and of an entry of a gradient.
        """
        chunks, row, token = [], 0, 0
        while row < len(lengths):
            stop, n_tokens = row + 1, lengths[row]
            while stop < len(lengths) and self._fits(
                stop + 1 - row, n_tokens + lengths[stop], n_columns * itemsize,
                min(n_columns, self.align) * width * itemsize,
            ):  # fmt: skip
                n_tokens += lengths[stop]
                stop += 1
            most = self._most_columns(stop - row, n_tokens, width, itemsize)
            chunks.append(
                Chunk(
                    rows=slice(row, stop),
                    tokens=slice(token, token + n_tokens),
                    lengths=lengths[row:stop],
                    block=n_columns if most >= n_columns else self._aligned(most),
                    keeps_logits=n_tokens * n_columns * itemsize <= self.logits_bytes,
                )
            )
            row, token = stop, token + n_tokens
        return chunks

    def _aligned(self, n_columns: int) -> int:
        return max(self.align, n_columns // self.align * self.align)

    def _fits(self, n_rows: int, n_tokens: int, token_bytes: int, least_bytes: int) -> bool:
        if self.rows_at_once is not None and n_rows > self.rows_at_once:
            return False
        if self.gradient_bytes is not None and n_rows * least_bytes > self.gradient_bytes:
            return False
        return n_tokens * token_bytes <= self.logits_bytes

    def _most_columns(self, n_rows: int, n_tokens: int, width: int, itemsize: int) -> int:
        if self.block_rows is not None:
            return self.block_rows
        if self.gradient_bytes is not None:
            return self.gradient_bytes // (n_rows * width * itemsize)
        return self.logits_bytes // max(1, n_tokens * itemsize)


@dataclass(frozen=True)
class Chunk:
    """Whole rows of a micro-batch that are computed together.

    Attributes:
        rows: Of the micro-batch.
        tokens: Of its flattened tokens.
        lengths: Tokens of each of the rows.
        block: Vocabulary rows in one block.
        keeps_logits: Whether the logits are held from the first sweep over the vocabulary to the
            second.
    """

    rows: slice
    tokens: slice
    lengths: tuple[int, ...]
    block: int
    keeps_logits: bool

    def blocks(self, n_columns: int) -> list[slice]:
        """Return the blocks of the vocabulary."""
        starts = range(0, n_columns, self.block)
        return [slice(at, min(at + self.block, n_columns)) for at in starts]

    def padded(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Return the chunk's values row by row, [R, longest, X], zeros after the end of a row."""
        n_rows, longest = len(self.lengths), max(self.lengths)
        if min(self.lengths) == longest:
            return values_NX.unflatten(0, (n_rows, longest))
        index_RL = torch.arange(longest).repeat(n_rows, 1)
        is_empty_RL = index_RL >= torch.tensor(self.lengths)[:, None]
        starts_R = torch.tensor((0, *self.lengths[:-1])).cumsum(0)
        index_RL = (index_RL + starts_R[:, None]).masked_fill(is_empty_RL, 0)
        device = values_NX.device
        padded_RLX = values_NX[index_RL.to(device, non_blocking=True)]
        # Not times zero: a token that is not finite would spread.
        return padded_RLX.masked_fill_(is_empty_RL.to(device, non_blocking=True)[..., None], 0)


TRITON = Backend("triton", logits_bytes=512 * MIB)
BATCHED = Backend("batched", logits_bytes=256 * MIB, gradient_bytes=256 * MIB)
BLOCKWISE = Backend("blockwise", logits_bytes=256 * MIB, rows_at_once=1, block_rows=2048)


def backends_for(device: torch.device, dtype: torch.dtype) -> tuple[Backend, ...]:
    """Return what works with a head's weight on a device, the fastest first; at least one."""
    if device.type == "cpu":
        return (BLOCKWISE,)
    # The kernels sum up in float32.
    if device.type == "cuda" and dtype != torch.float64 and _triton_works(device):
        return (TRITON, BATCHED)
    return (BATCHED,)


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Return whether Triton is there, and its kernels compile and run on this device."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        TRITON.kernels().require_right_sums(device)
    # Whatever a compiler, a driver or a missing C compiler raises.
    except Exception as error:
        logger.warning(
            "Triton's kernels do not run here (%s: %s): PyTorch records alone, which is slower",
            type(error).__name__,
            first_line(error),
        )
        return False
    return True
