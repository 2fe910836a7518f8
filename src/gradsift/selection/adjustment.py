"""Take off a number what goes with covariates such as length: each row beside rows like it.

Shapes: N instances of the pool, G different values of a covariate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import maximum_filter1d, median_filter, minimum_filter1d

# Rows of a local fit; in small pools a third of them, but not fewer than the second number.
_WINDOW, _SMALLEST_WINDOW = 101, 25
# Of a window, what the rows that tie in a covariate may take.
_LARGEST_GROUP = 0.75
# Robust standard deviations from the level of the neighbours at which a row is cut off.
_FAR = 3
# Outermost places whose level is read off a line.
_END = 10
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

    Each row's value is reduced by what rows of about the same rank in each covariate have: a local
    line through 101 rows (LOWESS, Cleveland 1979), whatever the form of the dependence, to values
    cut off at 3 robust standard deviations from the median of their neighbours. (Its own robust
    repeats judge by residuals, of which ties have none.) Rows that tie in a covariate share their
    rank and enter the fit with their common mean, so that nothing depends on the order of the rows.
    With several covariates each is fitted to what the others leave, twice (backfitting). Fewer than
    9 rows stay as they are.
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
    # Whatever the order of the rows: sums of floats depend on it, too.
    x_N = x_N[np.lexsort((x_N, group_N))]
    median_G = _medians(x_N, counts_G)
    if len(counts_G) == 1:
        return np.full(n, median_G[0])
    window = min(n, _WINDOW, max(n // 3, _SMALLEST_WINDOW))
    # A window never holds one group of ties alone: else the few rows beside it had no neighbours.
    places_G = np.minimum(counts_G, max(int(_LARGEST_GROUP * window), 1))
    last_G = np.cumsum(places_G) - 1
    rank_G = last_G - (places_G - 1) / 2
    middle_G = rank_G.astype(int)
    level_G = _levels(*(np.repeat(one_G, places_G) for one_G in (rank_G, median_G)), window)[
        middle_G
    ]
    # A wild row counts as far as its neighbours are spread: it must not bend the line.
    off_N = x_N - np.repeat(level_G, counts_G)
    most = _FAR * 1.4826 * np.median(np.abs(off_N))
    starts_G = np.cumsum(counts_G) - counts_G
    off_G = np.add.reduceat(np.clip(off_N, -most, most), starts_G) / counts_G
    y_P = np.repeat(level_G + off_G, places_G)
    window = min(len(y_P), window)
    fit_P = _local_lines(np.repeat(rank_G, places_G), y_P, window)
    # Where ranks leave a gap a line may run away: no further than what it was fitted to.
    low_P, high_P = (of(y_P, 2 * window) for of in (minimum_filter1d, maximum_filter1d))
    return np.clip(fit_P, low_P, high_P)[middle_G][group_N]


def _levels(rank_P: np.ndarray, y_P: np.ndarray, window: int) -> np.ndarray:
    """Level of y about each place, whatever a single row has: exact for what only rises or falls.

    The median of as many places before as after; at the outermost, which have none on one side, a
    Theil-Sen line through the nearest, exact for lines only.
    """
    n = len(y_P)
    half, end = min(window, n) // 2, min(_END, (n - 1) // 2)
    level_P = median_filter(y_P, 2 * half + 1, mode="nearest")
    for at in range(end, min(half, n - end)):
        size = 2 * min(at, n - 1 - at) + 1
        level_P[at], level_P[n - 1 - at] = np.median(y_P[:size]), np.median(y_P[-size:])
    ends = (slice(2 * end + 1), slice(end)), (slice(n - 2 * end - 1, n), slice(n - end, n))
    for places, outermost in ends:
        # Rows that all tie are their own level.
        if np.ptp(rank_P[places]) > 0:
            slope, level = _theil_sen(rank_P[places], y_P[places])
            level_P[outermost] = level + slope * rank_P[outermost]
    return level_P


def _theil_sen(x_P: np.ndarray, y_P: np.ndarray) -> tuple[float, float]:
    """Return slope and level at 0, as `scipy.stats.theilslopes`: that module loads for 0.5 s."""
    first, second = np.triu_indices(len(x_P), 1)
    apart = x_P[second] != x_P[first]
    rise, run = y_P[second] - y_P[first], x_P[second] - x_P[first]
    slope = float(np.median(rise[apart] / run[apart]))
    return slope, float(np.median(y_P) - slope * np.median(x_P))


def _local_lines(rank_N: np.ndarray, y_N: np.ndarray, window: int) -> np.ndarray:
    """Fit y by rank, which ascends: a local line through so many rows at each."""
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
                it=0,
                delta=_BETWEEN if n > _ALL_PLACES_UP_TO else 0.0,
                is_sorted=True,
                return_sorted=False,
            )
        fit_N[start:stop] = fit_R[start - low : stop - low]
    return fit_N


def _medians(sorted_N: np.ndarray, counts_G: np.ndarray) -> np.ndarray:
    starts_G = np.cumsum(counts_G) - counts_G
    low_G, high_G = starts_G + (counts_G - 1) // 2, starts_G + counts_G // 2
    return (sorted_N[low_G] + sorted_N[high_G]) / 2
