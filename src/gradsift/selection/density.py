"""How typical each row's gradient is: a Gaussian kernel density estimate of the signal.

Shapes: N instances of the pool, K columns of the signal, R directions in which it varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

UNIT = "in nats, where the signal has variance 1 in every direction over this pool"
# Up to this many rows, every pair of rows is evaluated.
EXACT_ROWS = 5_000
# A grid has this many cells for each bandwidth, and at most so many in all.
_CELLS_PER_BANDWIDTH = 8
_MOST_CELLS = 2**24
# Without a grid: rows that stand for the pool, within a number of kernel values.
_CENTRES = 4_000
_KERNEL_VALUES = 2 * 10**8
# Rows at which an estimate is compared with the exact one, within a number of kernel values.
_CHECKED_ROWS = 256
_FEWEST_CHECKED = 32
_CHECKED_VALUES = 5 * 10**6
_KERNEL_REACH = 6.0
_BLOCK_ENTRIES = 2**21
# Directions whose variance is below this part of the largest are rounding, not spread.
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Density:
    """The density of the pool's signal at each instance.

    It is that of the whitened signal: for each unit of volume where every direction has variance 1
    over this pool. So densities compare within one pool and signal only.

    Attributes:
        log_N: Natural logarithm, finite; 0 everywhere if the signal is constant.
        method: `exact` (all pairs), `binned` (a grid; up to two directions) or `subsampled`
            (a sample of the rows stands for the pool).
        error: Largest difference of the log-density from the exact one among the rows checked; 0
            where it is exact.
        n_checked: Rows that were checked: half of them those where the estimate is least sure, the
            others drawn with a fixed seed.
    """

    log_N: np.ndarray
    method: Literal["exact", "binned", "subsampled"]
    error: float
    n_checked: int


def estimate_density(signal_NK: np.ndarray, *, exact_rows: int = EXACT_ROWS) -> Density:
    """Estimate the density of the pool's signal at each instance.

    The kernel's covariance is the sample covariance times Scott's factor N^(-1/(R+4)) squared, as
    in `scipy.stats.gaussian_kde`. An instance's own kernel is included: ranks are the same without
    it, and the density of the loneliest instance is then a finite floor instead of 0. Directions
    without spread (a constant column, or N ≤ K) are left out; if none is left, all instances are
    equally typical. Up to `exact_rows`, all pairs of rows are evaluated. Above, the signal is
    whitened, counted on a grid with an eighth of a bandwidth between its points (each row shared
    among the nearest ones, linearly) and smoothed; a signal with three or more directions, or too
    wide for a grid, is compared with a sample of the rows instead, which stands for the others
    beside the instance's own kernel. Rows are taken in the order of their signals, so that theirs
    in the pool does not show.
    """
    signal_NK = np.asarray(signal_NK, dtype=np.float64)
    order_N = np.lexsort(signal_NK.T) if signal_NK.shape[1] else np.arange(len(signal_NK))
    density = _estimate(signal_NK[order_N], exact_rows)
    log_N = np.empty_like(density.log_N)
    log_N[order_N] = density.log_N
    return replace(density, log_N=log_N)


def _estimate(signal_NK: np.ndarray, exact_rows: int) -> Density:
    n = len(signal_NK)
    white_NR = whiten(signal_NK)
    if white_NR.shape[1] == 0:
        return Density(np.zeros(n), "exact", 0.0, 0)
    bandwidth = _scott(*white_NR.shape)
    if n <= exact_rows:
        return Density(_kernel_mean(white_NR, white_NR, bandwidth), "exact", 0.0, 0)
    binned_N = _binned(white_NR)
    if binned_N is None:
        log_N, unsure_N = _subsampled(white_NR)
    else:
        log_N, unsure_N = binned_N, -binned_N
    checked = _rows_to_check(unsure_N)
    error_C = np.abs(log_N[checked] - _kernel_mean(white_NR[checked], white_NR, bandwidth))
    method = "subsampled" if binned_N is None else "binned"
    return Density(log_N, method, float(error_C.max()), len(checked))


def _rows_to_check(unsure_N: np.ndarray) -> np.ndarray:
    """Choose rows whose estimate is checked: those least sure, and as many others at random.

    Where an estimate errs most is where few rows are; of rows drawn at random hardly any is there.
    """
    n = len(unsure_N)
    n_checked = min(n, _CHECKED_ROWS, max(_FEWEST_CHECKED, _CHECKED_VALUES // n))
    order_N = np.argsort(-unsure_N, kind="stable")
    n_least = n_checked // 2
    others = np.random.default_rng(0).choice(n - n_least, size=n_checked - n_least, replace=False)
    return np.concatenate([order_N[:n_least], order_N[n_least:][others]])


def whiten(signal_NK: np.ndarray) -> np.ndarray:
    """Make the columns of a signal uncorrelated with variance 1.

    Directions without spread are left out, so that R may be 0.
    """
    n, k = signal_NK.shape
    if n < 2 or k == 0:
        return np.empty((n, 0))
    covariance_KK = np.atleast_2d(np.cov(signal_NK, rowvar=False))
    variance_K, directions_KK = np.linalg.eigh(covariance_KK)
    kept_K = variance_K > _RANK_TOLERANCE * max(variance_K[-1], 0.0)
    white_NR = (signal_NK - signal_NK.mean(axis=0)) @ directions_KK[:, kept_K]
    return white_NR / np.sqrt(variance_K[kept_K])


def _scott(n: int, n_directions: int) -> float:
    return n ** (-1 / (n_directions + 4))


def _kernel_mean(at_QR: np.ndarray, centres_CR: np.ndarray, bandwidth: float) -> np.ndarray:
    """Return the logarithm of the mean of the kernels at Q places."""
    q, r = at_QR.shape
    log_norm = np.log(len(centres_CR)) + r / 2 * np.log(2 * np.pi * bandwidth**2)
    log_Q = np.empty(q)
    for rows, log_BC in _log_kernels(at_QR, centres_CR, bandwidth):
        top_B = log_BC.max(axis=1)
        log_Q[rows] = top_B + np.log(np.exp(log_BC - top_B[:, None]).sum(axis=1)) - log_norm
    return log_Q


def _log_kernels(
    at_QR: np.ndarray, centres_CR: np.ndarray, bandwidth: float
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of places, and the logarithms of kernels of height 1 there: [B, C]."""
    size = max(1, _BLOCK_ENTRIES // len(centres_CR))
    for start in range(0, len(at_QR), size):
        rows = slice(start, start + size)
        squared_BC = np.zeros((len(at_QR[rows]), len(centres_CR)))
        # One direction at a time: differences first, so that no digits are lost far out.
        for at_B, centre_C in zip(at_QR[rows].T, centres_CR.T, strict=True):
            squared_BC += np.subtract.outer(at_B, centre_C) ** 2
        squared_BC *= -0.5 / bandwidth**2
        yield rows, squared_BC


def _binned(white_NR: np.ndarray) -> np.ndarray | None:
    from scipy.ndimage import gaussian_filter, map_coordinates

    n, r = white_NR.shape
    bandwidth = _scott(n, r)
    step = bandwidth / _CELLS_PER_BANDWIDTH
    margin = int(_KERNEL_REACH * _CELLS_PER_BANDWIDTH) + 1
    place_NR = (white_NR - white_NR.min(axis=0)) / step + margin
    shape_R = np.ceil(place_NR.max(axis=0)).astype(np.int64) + margin + 1
    if r > 2 or shape_R.prod(dtype=float) > _MOST_CELLS:
        return None
    grid = gaussian_filter(
        _shared_among_corners(place_NR, shape_R),
        _CELLS_PER_BANDWIDTH,
        mode="constant",
        truncate=_KERNEL_REACH,
    )
    # The filter sums to 1 over cells: one row has density 1/step^R; its own kernel is the floor.
    density_N = map_coordinates(grid, place_NR.T, order=1, mode="constant") / (n * step**r)
    own_kernel = (2 * np.pi * bandwidth**2) ** (-r / 2) / n
    return np.log(np.maximum(density_N, own_kernel))


def _shared_among_corners(place_NR: np.ndarray, shape_R: np.ndarray) -> np.ndarray:
    r = place_NR.shape[1]
    low_NR = np.floor(place_NR).astype(np.int64)
    part_NR = place_NR - low_NR
    grid = np.zeros(int(shape_R.prod()))
    for corner in np.ndindex(*(2,) * r):
        weight_N = np.where(np.array(corner), part_NR, 1 - part_NR).prod(axis=1)
        cell_N = np.ravel_multi_index(tuple((low_NR + corner).T), tuple(shape_R))
        grid += np.bincount(cell_N, weights=weight_N, minlength=len(grid))
    return grid.reshape(tuple(shape_R))


def _subsampled(white_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate log_N by a sample of the rows; and say how unsure each is: a standard error.

    The mean over all rows of the kernels at a row: its own, which is known, and N − 1 others, whose
    mean is that of the sampled ones (without itself). The error's square is a sum of squares of
    kernels; these are at most 1, so that the sum of the kernels bounds it, also where all that was
    sampled is far away.
    """
    n, r = white_NR.shape
    bandwidth = _scott(n, r)
    n_centres = min(n - 1, _CENTRES, max(500, _KERNEL_VALUES // n))
    centres = np.random.default_rng(1).choice(n, size=n_centres, replace=False)
    sums_N = np.empty(n)
    for rows, log_BC in _log_kernels(white_NR, white_NR[centres], bandwidth):
        sums_N[rows] = np.exp(log_BC).sum(axis=1)
    others_N = np.full(n, n_centres)
    sums_N[centres] -= 1
    others_N[centres] -= 1
    sums_N, scale_N = np.maximum(sums_N, 0), (n - 1) / others_N
    total_N = 1 + scale_N * sums_N
    log_norm = np.log(n) + r / 2 * np.log(2 * np.pi * bandwidth**2)
    return np.log(total_N) - log_norm, scale_N * np.sqrt(sums_N) / total_N
