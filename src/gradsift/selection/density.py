"""How typical each row's gradient is: a Gaussian kernel density estimate of the signal.

Shapes: N instances of the pool, K columns of the signal, R directions in which it varies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

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

    Attributes:
        log_N: Natural logarithm, finite; 0 everywhere if the signal is constant.
        method: `exact` (all pairs), `binned` (a grid; up to two directions) or `subsampled`
            (a sample of the rows stands for the pool).
        error: Largest difference of the log-density from the exact one among the rows checked; 0
            where it is exact.
        n_checked: Rows that were checked, drawn with a fixed seed.
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
    wide for a grid, is compared with a sample of the rows instead.
    """
    n = len(signal_NK)
    white_NR = whiten(signal_NK)
    if white_NR.shape[1] == 0:
        return Density(np.zeros(n), "exact", 0.0, 0)
    bandwidth = _scott(*white_NR.shape)
    if n <= exact_rows:
        return Density(_kernel_mean(white_NR, white_NR, bandwidth), "exact", 0.0, 0)
    log_N = _binned(white_NR)
    method: Literal["binned", "subsampled"] = "binned"
    if log_N is None:
        log_N, method = _subsampled(white_NR), "subsampled"
    n_checked = min(n, _CHECKED_ROWS, max(_FEWEST_CHECKED, _CHECKED_VALUES // n))
    checked = np.random.default_rng(0).choice(n, size=n_checked, replace=False)
    error_C = np.abs(log_N[checked] - _kernel_mean(white_NR[checked], white_NR, bandwidth))
    return Density(log_N, method, float(error_C.max()), n_checked)


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
    size = max(1, _BLOCK_ENTRIES // len(centres_CR))
    for start in range(0, q, size):
        squared_BC = np.zeros((len(at_QR[start : start + size]), len(centres_CR)))
        # One direction at a time: differences first, so that no digits are lost far out.
        for at_B, centre_C in zip(at_QR[start : start + size].T, centres_CR.T, strict=True):
            squared_BC += np.subtract.outer(at_B, centre_C) ** 2
        squared_BC *= -0.5 / bandwidth**2
        top_B = squared_BC.max(axis=1)
        sums_B = np.exp(squared_BC - top_B[:, None]).sum(axis=1)
        log_Q[start : start + size] = top_B + np.log(sums_B) - log_norm
    return log_Q


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


def _subsampled(white_NR: np.ndarray) -> np.ndarray:
    n, r = white_NR.shape
    n_centres = min(n, _CENTRES, max(500, _KERNEL_VALUES // n))
    centres = np.random.default_rng(1).choice(n, size=n_centres, replace=False)
    return _kernel_mean(white_NR, white_NR[centres], _scott(n, r))
