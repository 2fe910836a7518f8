"""Kernels in Triton: softmax errors, and norms and other sums over gradients without forming them.

The errors take the logits' place; a row's V×D gradient is only ever there tile by tile. Both
take bfloat16 operands where training has them, else float32, and sum up in float32.
Under TRITON_INTERPRET=1 they run on a CPU, for tests.

Shapes: N tokens, V vocabulary rows of a block, D width, R instances, K numbers of a sketch.
"""

from __future__ import annotations

import functools
import os

import torch
import triton
import triton.language as tl

from gradsift.gradients.backends import Chunk, widest
from gradsift.gradients.kernels_torch import Errors
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import combined_sums
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter multiplies the bits of bfloat16 operands (triton#11584), so it gets float32.
CAST_OPERANDS = tl.constexpr(INTERPRETED)
ERROR_TILE = 4096


# Integers that change from chunk to chunk must not ask for another compilation.
@triton.jit(do_not_specialize=["start"])
def _errors_kernel(
    z_ptr, targets_ptr, log_normaliser_ptr, square_ptr, sign_ptr, sketch_ptr,
    n_columns, stride, start, scale, softcap,
    HAS_SOFTCAP: tl.constexpr, HAS_NORMALISER: tl.constexpr, HAS_SKETCH: tl.constexpr,
    K: tl.constexpr, RUNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    z_ptr += token * stride
    target = tl.load(targets_ptr + token) - start
    has_loss = target + start >= 0
    if HAS_NORMALISER:
        log_normaliser = tl.load(log_normaliser_ptr + token)
    else:
        high = tl.full([TILE], -1.0e38, tl.float32)
        total = tl.zeros([TILE], tl.float32)
        for at in range(0, n_columns, TILE):
            column = at + tl.arange(0, TILE)
            z = tl.load(z_ptr + column, mask=column < n_columns, other=float("-inf"))
            logit = z.to(tl.float32) * scale
            if HAS_SOFTCAP:
                logit = softcap * (2 / (1 + tl.exp(-2 * logit / softcap)) - 1)
                logit = tl.where(column < n_columns, logit, float("-inf"))
            higher = tl.maximum(high, logit)
            total = total * tl.exp(high - higher) + tl.exp(logit - higher)
            high = higher
        highest = tl.max(high, axis=0)
        log_normaliser = highest + tl.log(tl.sum(total * tl.exp(high - highest), axis=0))
        tl.store(log_normaliser_ptr + token, log_normaliser)
    # Nothing is read below that was written above by another thread: each run's entries are
    # replaced by the thread that read them.
    bucket = tl.arange(0, K)
    sketch = tl.zeros([K], tl.float32)
    square = tl.zeros([RUNS, K], tl.float32)
    for first in range(0, tl.cdiv(n_columns, K), RUNS):
        run = first + tl.arange(0, RUNS)
        column = run[:, None] * K + bucket[None, :]
        inside = column < n_columns
        z = tl.load(z_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
        logit = z * scale
        slope = scale
        if HAS_SOFTCAP:
            tanh = 2 / (1 + tl.exp(-2 * logit / softcap)) - 1
            logit = softcap * tanh
            slope = scale * (1 - tanh * tanh)
        error = tl.exp(logit - log_normaliser) - tl.where(column == target, 1.0, 0.0)
        error = tl.where(inside & has_loss, error, 0.0)
        square += error * error
        delta = error * slope
        if HAS_SKETCH:
            sign = tl.load(sign_ptr + start + column, mask=inside, other=0.0)
            sketch += tl.sum(tl.where(inside, delta * sign, 0.0), axis=0)
        tl.store(z_ptr + column, delta.to(z_ptr.dtype.element_ty), mask=inside)
    tl.store(square_ptr + token, tl.sum(tl.sum(square, axis=1), axis=0))
    if HAS_SKETCH:
        tl.store(sketch_ptr + token * K + bucket, sketch)


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of backprops and of what they are multiplied with.

    float16 has no room for small probabilities.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def errors(
    z_nr: torch.Tensor,
    targets_n: torch.Tensor,
    start: int,
    transform: HeadTransform,
    normaliser_n: torch.Tensor | None,
    sketch: TensorSketch | None,
) -> Errors:
    """Turn the head's outputs into backprops of each token's own loss, in their place.

    `(softmax(t(z)) − one-hot) · t'(z)` in the operands' dtype, and what is read off them in
    float32; see `kernels_torch.errors`.
    """
    z_nr = z_nr.to(operand_dtype(z_nr.dtype)).contiguous()
    n_tokens, n_columns = z_nr.shape
    size = 1024 if sketch is None else sketch.size
    floats = {"dtype": torch.float32, "device": z_nr.device}
    has_normaliser = normaliser_n is not None
    normaliser_n = normaliser_n if has_normaliser else torch.empty(n_tokens, **floats)
    square_n = torch.empty(n_tokens, **floats)
    left_nK = None if sketch is None else torch.empty(n_tokens, size, **floats)
    if n_tokens:
        _errors_kernel[n_tokens,](
            z_nr, targets_n, normaliser_n, square_n,
            square_n if sketch is None else sketch.sign_V,
            square_n if sketch is None else left_nK,
            n_columns, z_nr.stride(0), start,
            float(transform.scale), float(transform.softcap or 1.0),
            HAS_SOFTCAP=transform.softcap is not None, HAS_NORMALISER=has_normaliser,
            HAS_SKETCH=sketch is not None,
            K=size, RUNS=max(1, ERROR_TILE // size), TILE=ERROR_TILE, num_warps=8,
        )  # fmt: skip
    return Errors(z_nr, normaliser_n, square_n, left_nK)


@triton.jit(do_not_specialize=["first"])
def _row_sums_kernel(
    delta_ptr, x_ptr, offsets_ptr, out_ptr,
    first, n_columns, width, delta_stride, x_stride,
    TILE_V: tl.constexpr, TILE_D: tl.constexpr, TILE_T: tl.constexpr,
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1)
    begin = tl.load(offsets_ptr + row) - first
    end = tl.load(offsets_ptr + row + 1) - first
    # Tiles that share their part of the backprops, the larger operand, follow each other.
    n_tiles_d = tl.cdiv(width, TILE_D)
    v = tile // n_tiles_d * TILE_V + tl.arange(0, TILE_V)
    d = tile % n_tiles_d * TILE_D + tl.arange(0, TILE_D)
    gradient = tl.zeros([TILE_V, TILE_D], tl.float32)
    for at in range(begin, end, TILE_T):
        t = at + tl.arange(0, TILE_T)
        t_rows = t[:, None].to(tl.int64)
        delta = tl.load(
            delta_ptr + t_rows * delta_stride + v[None, :],
            mask=(t[:, None] < end) & (v[None, :] < n_columns),
            other=0.0,
        )
        x = tl.load(
            x_ptr + t_rows * x_stride + d[None, :],
            mask=(t[:, None] < end) & (d[None, :] < width),
            other=0.0,
        )
        if CAST_OPERANDS:
            delta, x = delta.to(tl.float32), x.to(tl.float32)
        gradient = tl.dot(tl.trans(delta), x, gradient, input_precision="ieee")
    inside = (v[:, None] < n_columns) & (d[None, :] < width)
    out_ptr += (row.to(tl.int64) * tl.num_programs(0) + tile) * 5
    high = tl.where(inside, gradient, float("-inf"))
    low = tl.where(inside, gradient, float("inf"))
    tl.store(out_ptr, tl.max(tl.max(high, axis=1), axis=0))
    tl.store(out_ptr + 1, tl.min(tl.min(low, axis=1), axis=0))
    tl.store(out_ptr + 2, tl.sum(tl.sum(gradient, axis=1), axis=0))
    tl.store(out_ptr + 3, tl.sum(tl.sum(tl.abs(gradient), axis=1), axis=0))
    tl.store(out_ptr + 4, tl.sum(tl.sum(gradient * gradient, axis=1), axis=0))


def row_gradients(
    delta_nr: torch.Tensor,
    x_nD: torch.Tensor,
    tokens: ResponseTokens,
    chunk: Chunk,
    *,
    sums: bool,
    total: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Sum over the entries of each row's own gradient `δᵀx`, without writing it.

    See `kernels_torch.row_gradients`.
    """
    total_rD = delta_nr.T @ x_nD if total else None
    if not sums:
        return None, total_rD
    offsets_R1 = tokens.offsets_I1[chunk.rows.start : chunk.rows.stop + 1]
    return row_sums(delta_nr, x_nD, offsets_R1, chunk.tokens.start, len(chunk.lengths)), total_rD


def row_sums(
    delta_nr: torch.Tensor,
    x_nD: torch.Tensor,
    offsets_R1: torch.Tensor,
    first: int,
    n_rows: int,
) -> torch.Tensor:
    """Return the sums of rows that begin at the int32 offsets less `first`, [R, 5] float64."""
    if delta_nr.dtype != x_nD.dtype:  # The interpreter would not mind.
        raise TypeError(f"operands of two dtypes: {delta_nr.dtype} and {x_nD.dtype}")
    config = _best_config(x_nD.shape[1], x_nD.dtype, x_nD.device)
    out_RP5 = _launch(config.all_kwargs(), delta_nr, x_nD, offsets_R1, first, n_rows)
    return combined_sums(widest(out_RP5.transpose(0, 1)))


def _launch(
    config: dict[str, int],
    delta_NV: torch.Tensor,
    x_ND: torch.Tensor,
    offsets_R1: torch.Tensor,
    first: int,
    n_rows: int,
) -> torch.Tensor:
    n_columns, width = delta_NV.shape[1], x_ND.shape[1]
    n_tiles = triton.cdiv(n_columns, config["TILE_V"]) * triton.cdiv(width, config["TILE_D"])
    out_RP5 = torch.empty(n_rows, n_tiles, 5, device=x_ND.device)
    _row_sums_kernel[n_tiles, n_rows](
        delta_NV, x_ND, offsets_R1, out_RP5,
        first, n_columns, width, delta_NV.stride(0), x_ND.stride(0), **config,
    )  # fmt: skip
    return out_RP5


def _config(v: int, d: int, t: int, warps: int, stages: int) -> triton.Config:
    tile = {"TILE_V": v, "TILE_D": d, "TILE_T": t}
    return triton.Config(tile, num_warps=warps, num_stages=stages)


CONFIGS = (
    _config(128, 128, 64, 8, 3),
    _config(128, 128, 32, 4, 4),
    _config(128, 64, 64, 4, 3),
    _config(64, 64, 32, 4, 3),
)
TIMED_TOKENS, TIMED_ROWS, TIMED_COLUMNS = 256, 4, 16384


@functools.cache
def _best_config(width: int, dtype: torch.dtype, device: torch.device) -> triton.Config:
    """Return the fastest configuration for a width and dtype, timed once and kept on disk, too."""
    if INTERPRETED:
        return CONFIGS[0]
    tuned = triton.autotune(list(CONFIGS), key=["width"], cache_results=True)(_row_sums_kernel)
    n_tokens = TIMED_TOKENS * TIMED_ROWS
    delta_NV = torch.zeros(n_tokens, TIMED_COLUMNS, dtype=dtype, device=device)
    x_ND = torch.zeros(n_tokens, width, dtype=dtype, device=device)
    offsets = torch.arange(0, n_tokens + 1, TIMED_TOKENS, dtype=torch.int32, device=device)
    n_tiles = triton.cdiv(TIMED_COLUMNS, 64) * triton.cdiv(width, 64)
    out = torch.empty(TIMED_ROWS, n_tiles, 5, device=device)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        n_tiles_v = triton.cdiv(TIMED_COLUMNS, tile["TILE_V"])
        return n_tiles_v * triton.cdiv(width, tile["TILE_D"]), TIMED_ROWS

    tuned[grid](
        delta_NV, x_ND, offsets, out, 0, TIMED_COLUMNS, width, TIMED_COLUMNS, width
    )  # fmt: skip
    return tuned.best_config


def require_right_sums(device: torch.device) -> None:
    """Compile and run both kernels on a small input that can be summed up in the head."""
    ones_TD = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    offsets_2 = torch.tensor([0, 16], device=device, dtype=torch.int32)
    sums_5 = _launch(CONFIGS[-1].all_kwargs(), ones_TD, ones_TD, offsets_2, 0, 1)[0, 0]
    result = errors(
        ones_TD, torch.zeros(16, device=device, dtype=torch.long), 0, HeadTransform(), None, None
    )
    computed = [*sums_5.tolist(), float(result.square_n[0]), float(result.delta_nr[0, 1])]
    expected = [16, 16, 16**3, 16**3, 16**4, (15 / 16) ** 2 + 15 / 16**2, 1 / 16]
    if any(abs(c - e) > 1e-3 * e for c, e in zip(computed, expected, strict=True)):
        raise ArithmeticError(f"sums are {computed}, expected {expected}")
