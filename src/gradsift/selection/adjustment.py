"""Take off a number what goes with covariates such as length: each row beside rows like it.

Shapes: N instances of the pool, G different values of a covariate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Rows of a local fit; in small pools a third of them, but not fewer than the second number.
_WINDOW, _SMALLEST_WINDOW = 101, 25
# Fits after the first, in which rows far from the fit before count less.
_ROBUST_FITS = 2
_ROUNDS = 2
_FEWEST_ROWS = 9
# Ranks between places where the fit is computed; straight lines between them.
_BETWEEN = 50
_ALL_PLACES_UP_TO = 2_000
# Of the spread of a number: what is less is rounding.
_ROUNDING = 1e-9
# Rows fitted together.
_PIECE = 4_000


def detrended(x_N: np.ndarray, covariates: Sequence[np.ndarray]) -> np.ndarray:
    """Take the influence of covariates off: drift, length.

    Each row's value is reduced by what rows of about the same rank in each covariate have: a robust
    local line through 101 rows (LOWESS, Cleveland 1979), whatever the form of the dependence. Rows
    that tie in a covariate share their mean rank, and enter the fit with their common median, so
    that nothing depends on the order of the rows. With several covariates each is fitted to what
    the others leave, twice (backfitting). Fewer than 9 rows stay as they are.
    """
    x_N = np.asarray(x_N, dtype=np.float64)
    if len(x_N) < _FEWEST_ROWS or not covariates:
        return x_N
    # Centred, so that of what is the same everywhere nothing is left.
    spread, x_N = np.ptp(x_N), x_N - np.median(x_N)
    fits = [np.zeros(len(x_N)) for _ in covariates]
    for at in list(range(len(fits))) * _ROUNDS:
        others = (fit_N for other, fit_N in enumerate(fits) if other != at)
        fits[at] = _trend(x_N - sum(others), np.asarray(covariates[at]))
    left_N = x_N - sum(fits)
    # What rounding leaves of a number that the covariates explain whole must not be scaled up.
    return np.where(np.abs(left_N) > _ROUNDING * spread, left_N, 0.0)


def _trend(x_N: np.ndarray, covariate_N: np.ndarray) -> np.ndarray:
    """Fit what a row has by its covariate: the same for all rows that tie in it."""
    n = len(x_N)
    _, group_N, counts_G = np.unique(covariate_N, return_inverse=True, return_counts=True)
    median_G = _medians(x_N, group_N, counts_G)
    if len(counts_G) == 1:
        return np.full(n, median_G[0])
    last_G = np.cumsum(counts_G) - 1
    rank_G = last_G - (counts_G - 1) / 2
    window = min(n, _WINDOW, max(n // 3, _SMALLEST_WINDOW))
    fit_N = _local_lines(np.repeat(rank_G, counts_G), np.repeat(median_G, counts_G), window)
    return fit_N[last_G][group_N]


def _local_lines(rank_N: np.ndarray, y_N: np.ndarray, window: int) -> np.ndarray:
    """Fit y by rank, which ascends: a robust local line through so many rows at each."""
    # Heavy, and only needed here.
    from statsmodels.nonparametric.smoothers_lowess import lowess

    n, fit_N = len(rank_N), np.empty(len(rank_N))
    # Its time grows with the square of the rows, and a fit looks at its neighbourhood only.
    for start in range(0, n, _PIECE):
        stop = min(start + _PIECE, n)
        low, high = max(0, start - 2 * window), min(n, stop + 2 * window)
        # Within more ties than the window holds, distances are 0/0: the fit is what they share.
        with np.errstate(invalid="ignore"):
            fit_R = lowess(
                y_N[low:high],
                rank_N[low:high],
                frac=window / (high - low),
                it=_ROBUST_FITS,
                delta=_BETWEEN if n > _ALL_PLACES_UP_TO else 0.0,
                is_sorted=True,
                return_sorted=False,
            )
        fit_N[start:stop] = fit_R[start - low : stop - low]
    return fit_N


def _medians(x_N: np.ndarray, group_N: np.ndarray, counts_G: np.ndarray) -> np.ndarray:
    sorted_N = x_N[np.lexsort((x_N, group_N))]
    starts_G = np.cumsum(counts_G) - counts_G
    low_G, high_G = starts_G + (counts_G - 1) // 2, starts_G + counts_G // 2
    return (sorted_N[low_G] + sorted_N[high_G]) / 2
