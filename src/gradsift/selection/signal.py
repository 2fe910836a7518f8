"""Gradient statistics of a pool → one gradient score for each instance.

Shapes: N instances of the pool, K columns of the signal.
Source: arXiv 2511.08620 (GrADS), the self-guided criteria. It leaves open how the statistics are
combined, the bandwidth, and which side is kept; what follows is our reading, with its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.stats import gaussian_kde, rankdata, spearmanr

Side = Literal["representative", "informative", "balanced"]
SIDES = ("representative", "informative", "balanced")

# 1 / Φ⁻¹(3/4): the median absolute deviation of a normal sample times this is its σ.
MAD_TO_SIGMA = 1.482602218505602
# The mean is signed and may be 0 (always so for an LM head), so it enters without a logarithm.
_SIGNED = ("mean",)
# Directions whose variance is below this part of the largest are rounding, not spread.
_RANK_TOLERANCE = 1e-10


def robust_standardise(x_N: np.ndarray) -> np.ndarray:
    """Centre on the median and divide by 1.4826·MAD, which a few wild rows cannot move.

    Args:
        x_N: Finite values.

    Returns:
        Values in robust standard deviations, float64. Where more than half of the values are the
        same, the MAD is 0 and the population standard deviation (around the mean) takes its
        place; where all are the same, the result is 0.
    """
    x_N = np.asarray(x_N, dtype=np.float64)
    deviation_N = x_N - np.median(x_N)
    scale = MAD_TO_SIGMA * np.median(np.abs(deviation_N))
    if scale == 0 and np.ptp(x_N) > 0:
        scale = x_N.std()
    return deviation_N / scale if scale > 0 else np.zeros_like(x_N)


def combined_signal(
    values: Mapping[str, Mapping[str, np.ndarray]],
    *,
    layers: Sequence[str] = ("embedding", "lm_head"),
    statistics: Sequence[str] = ("l2_norm",),
) -> np.ndarray:
    """Combine the statistics of the layers into one signal per instance.

    Norms are spread over orders of magnitude, so it is their logarithm that is standardised. With
    one statistic per layer (the default: the norm) the columns stay as they are. With several,
    which nearly repeat each other (norm and std rank alike), the columns are whitened:
    uncorrelated, variance 1, and directions without spread left out.

    Args:
        values: Layer → statistic → float array [N].
        layers: Layers that take part.
        statistics: Statistics that take part. `mean` is signed and enters as it is, all others as
            log |x|; a value of exactly 0 counts as the smallest other |x| of its column.

    Returns:
        signal_NK in float64; K may be 0 when several statistics are whitened and none varies.

    Raises:
        ValueError: If no layer or statistic is named, or one is unknown.
    """
    _refuse_unknown(values, layers, statistics)
    columns = [
        robust_standardise(_for_scale(values[layer][name], name))
        for layer in layers
        for name in statistics
    ]
    signal_NK = np.stack(columns, axis=1)
    return signal_NK if len(statistics) == 1 else _whiten(signal_NK)


def magnitude(
    values: Mapping[str, Mapping[str, np.ndarray]], layers: Sequence[str] = ("embedding", "lm_head")
) -> np.ndarray:
    """Say how large the gradient of each instance is: mean standardised log-norm of the layers.

    Args:
        values: Layer → statistic → float array [N].
        layers: Layers that take part.

    Returns:
        magnitude_N, in robust standard deviations from the pool's median.

    Raises:
        ValueError: If no layer is named, or one is unknown.
    """
    return combined_signal(values, layers=layers, statistics=("l2_norm",)).mean(axis=1)


def log_density(signal_NK: np.ndarray) -> np.ndarray:
    """Estimate the density of the pool's signal at each instance by a Gaussian KDE.

    The kernel's covariance is the sample covariance times Scott's factor N^(-1/(K+4)) squared
    (`scipy.stats.gaussian_kde`). An instance's own kernel is included: ranks are the same without
    it, and the density of the loneliest instance is then a finite floor instead of 0. Directions
    in which the signal has no spread (a constant column, or N ≤ K) are left out; if none is left,
    all instances are equally typical. Exact: N² kernel values, none of them stored.

    Args:
        signal_NK: Finite values.

    Returns:
        Natural logarithm of the density, float64, finite; 0 everywhere if the signal is constant.
    """
    n = len(signal_NK)
    _, directions_KR = _spread(signal_NK)
    if directions_KR.shape[1] == 0:
        return np.zeros(n)
    projected_RN = ((signal_NK - signal_NK.mean(axis=0)) @ directions_KR).T
    return np.log(gaussian_kde(projected_RN, bw_method="scott")(projected_RN))


def percentile_rank(x_N: np.ndarray) -> np.ndarray:
    """Rank values and scale the ranks to [0, 1].

    Args:
        x_N: Values.

    Returns:
        0 for the smallest and 1 for the largest, ties sharing their mean rank; 0.5 if N is 1.
    """
    n = len(x_N)
    return (rankdata(x_N) - 1) / (n - 1) if n > 1 else np.full(n, 0.5)


def typical_region(log_density_N: np.ndarray) -> np.ndarray:
    """Tell the typical instances from the low-density tail, cut where the density bends.

    Rule: sort the log-density upwards and draw the chord from its lowest to its highest point.
    Where there is a tail, the curve rises steeply through it and bends over into the bulk; the
    tail ends at the point that lies farthest above the chord. It is sought in the lower half,
    since a majority is typical by definition; where no point lies above the chord, there is no
    tail. So no threshold is set by hand. The elbow always finds an edge: of a sample from one
    normal distribution, where nothing is wrong, it calls about a fifth the tail.

    Args:
        log_density_N: As from `log_density`.

    Returns:
        True for typical instances; equal densities are on the same side.
    """
    n = len(log_density_N)
    ascending_N = np.sort(log_density_N)
    height = ascending_N[-1] - ascending_N[0]
    if n < 3 or height <= 0:
        return np.ones(n, dtype=bool)
    above_chord_N = (ascending_N - ascending_N[0]) / height - np.arange(n) / (n - 1)
    elbow = int(np.argmax(above_chord_N[: n // 2 + 1]))
    return log_density_N >= ascending_N[elbow]


def gradient_score(magnitude_N: np.ndarray, log_density_N: np.ndarray, side: Side) -> np.ndarray:
    """Turn magnitude and density into the gradient score g of each instance.

    * `representative`: rank of the density. Gradients in the dense region pull where much of the
      pool pulls; isolated ones are often noise (wrong or garbled answers).
    * `informative`: rank of the magnitude. A small gradient means that the model hardly changes
      on this instance; a large one that there is something to learn, or something wrong.
    * `balanced`: rank of the magnitude among the typical instances; the low-density tail (see
      `typical_region`), where large gradients are likely noise, gets 0.

    Args:
        magnitude_N: As from `magnitude`.
        log_density_N: As from `log_density`.
        side: Which of the three.

    Returns:
        One finite value in [0, 1] for each instance. Ties share their mean rank. Typical instances
        of `balanced` start above 0.

    Raises:
        ValueError: If the side is unknown.
    """
    if side == "representative":
        return percentile_rank(log_density_N)
    if side == "informative":
        return percentile_rank(magnitude_N)
    if side == "balanced":
        typical_N = typical_region(log_density_N)
        score_N = np.zeros(len(magnitude_N))
        score_N[typical_N] = rankdata(magnitude_N[typical_N]) / typical_N.sum()
        return score_N
    raise ValueError(f"side is {side!r}, expected one of {', '.join(SIDES)}.")


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Spearman's rank correlation, for instance of the score with the response length.

    Args:
        a_N: Values.
        b_N: Values.

    Returns:
        The correlation in [-1, 1]; None if it is not defined: fewer than 3 instances, or one side
        is constant.
    """
    if len(a_N) < 3 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return None
    return float(spearmanr(a_N, b_N).statistic)


def _refuse_unknown(
    values: Mapping[str, Mapping[str, np.ndarray]],
    layers: Sequence[str],
    statistics: Sequence[str],
) -> None:
    if not layers or not statistics:
        raise ValueError("the signal needs at least one layer and one statistic.")
    for layer in layers:
        if layer not in values:
            raise ValueError(f"layer {layer!r} is unknown, expected one of {', '.join(values)}.")
        for name in statistics:
            if name not in values[layer]:
                known = ", ".join(values[layer])
                raise ValueError(f"statistic {name!r} is unknown, expected one of {known}.")


def _for_scale(x_N: np.ndarray, name: str) -> np.ndarray:
    x_N = np.asarray(x_N, dtype=np.float64)
    if name in _SIGNED:
        return x_N
    size_N = np.abs(x_N)
    positive = size_N[size_N > 0]
    return np.log(np.maximum(size_N, positive.min())) if len(positive) else np.zeros_like(x_N)


def _whiten(signal_NK: np.ndarray) -> np.ndarray:
    variance_R, directions_KR = _spread(signal_NK)
    return (signal_NK - signal_NK.mean(axis=0)) @ directions_KR / np.sqrt(variance_R)


def _spread(signal_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, k = signal_NK.shape
    if n < 2 or k == 0:
        return np.empty(0), np.empty((k, 0))
    covariance_KK = np.atleast_2d(np.cov(signal_NK, rowvar=False))
    variance_K, directions_KK = np.linalg.eigh(covariance_KK)
    kept_K = variance_K > _RANK_TOLERANCE * max(variance_K[-1], 0.0)
    return variance_K[kept_K], directions_KK[:, kept_K]
