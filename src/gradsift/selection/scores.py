"""Gradient statistics of a pool → one gradient score for each instance.

Shapes: N instances of the pool, K columns of the signal.
Source: arXiv 2511.08620 (GrADS), the self-guided criteria. It leaves open how the statistics are
combined, the bandwidth, and which side is kept; what follows is our reading, with its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.selection.density import whiten

Score = Literal["density", "high-norm", "high-norm-in-density", "low-norm", "prompt-gain"]
SCORES = ("density", "high-norm", "high-norm-in-density", "low-norm", "prompt-gain")

# 1 / Φ⁻¹(3/4): the median absolute deviation of a normal sample times this is its σ.
MAD_TO_SIGMA = 1.482602218505602
# The mean is signed and may be 0 (always so for an LM head), so it enters without a logarithm.
_SIGNED = ("mean",)
# Interquartile ranges beyond the quartile at which the tail begins (Tukey, 1977).
_FENCE = 1.5
# The running median of `detrended`.
_WINDOW = 101
_ROUNDS = 2
_FEWEST_FOR_WINDOW = 9


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
    covariates: Sequence[np.ndarray] = (),
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
        covariates: Arrays [N], such as the response length or the step, whose influence is taken
            off each column, see `detrended`.

    Returns:
        signal_NK in float64; K may be 0 when several statistics are whitened and none varies.

    Raises:
        ValueError: If no layer or statistic is named, or one is unknown.
    """
    _refuse_unknown(values, layers, statistics)
    columns = [
        robust_standardise(detrended(_for_scale(values[layer][name], name), covariates))
        for layer in layers
        for name in statistics
    ]
    signal_NK = np.stack(columns, axis=1)
    return signal_NK if len(statistics) == 1 else whiten(signal_NK)


def detrended(x_N: np.ndarray, covariates: Sequence[np.ndarray]) -> np.ndarray:
    """Take the influence of covariates off, one after the other: drift, length.

    For each covariate the rows are ordered by it, and each row's value is reduced by the median of
    the values in a window of up to 101 rows around it (a running median; at the ends the window
    holds the outermost rows). A row is then compared with rows of about its own length, say,
    whatever the form of the dependence. Two rounds, since taking off one covariate can bring back
    a little of another.

    Args:
        x_N: Values.
        covariates: Arrays [N]; rows of equal value are ordered as they come.

    Returns:
        The values less the medians; as they were for fewer than 9 rows.
    """
    from scipy.ndimage import median_filter

    x_N = np.asarray(x_N, dtype=np.float64)
    window = min(_WINDOW, len(x_N) // 3 | 1)
    if len(x_N) < _FEWEST_FOR_WINDOW:
        return x_N
    for covariate_N in list(covariates) * _ROUNDS:
        order_N = np.argsort(covariate_N, kind="stable")
        medians_N = np.empty_like(x_N)
        medians_N[order_N] = median_filter(x_N[order_N], size=window, mode="nearest")
        x_N = x_N - medians_N
    return x_N


def magnitude(
    values: Mapping[str, Mapping[str, np.ndarray]],
    *,
    layers: Sequence[str] = ("embedding", "lm_head"),
    statistics: Sequence[str] = ("l2_norm",),
    covariates: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Say how large the gradient of each instance is: mean standardised statistic of the layers.

    Args:
        values: Layer → statistic → float array [N].
        layers: Layers that take part.
        statistics: Statistics that take part; the signed `mean`, which is no size, is left out
            where there are others.
        covariates: As for `combined_signal`.

    Returns:
        magnitude_N, in robust standard deviations from the pool's median.

    Raises:
        ValueError: If no layer or statistic is named, or one is unknown.
    """
    sizes = tuple(name for name in statistics if name not in _SIGNED) or tuple(statistics)
    by_statistic = [
        combined_signal(values, layers=layers, statistics=(name,), covariates=covariates)
        for name in sizes
    ]
    return np.hstack(by_statistic).mean(axis=1)


def ranks(x_N: np.ndarray) -> np.ndarray:
    """Rank values, ties sharing their mean rank.

    As `scipy.stats.rankdata`, whose module takes longer to load than a selection.

    Args:
        x_N: Values without NaN.

    Returns:
        1 for the smallest, N for the largest.
    """
    _, inverse_N, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]


def percentile_rank(x_N: np.ndarray) -> np.ndarray:
    """Rank values and scale the ranks to [0, 1].

    Args:
        x_N: Values.

    Returns:
        0 for the smallest and 1 for the largest, ties sharing their mean rank; 0.5 if N is 1.
    """
    n = len(x_N)
    return (ranks(x_N) - 1) / (n - 1) if n > 1 else np.full(n, 0.5)


def typical_region(log_density_N: np.ndarray) -> np.ndarray:
    """Tell the typical instances from the low-density tail, by the density's own spread.

    Rule: −log density beyond its upper quartile by more than 1.5 times its interquartile range is
    the tail (Tukey's fence). Nothing is set by hand, and there need not be a tail: of a sample from
    one normal or uniform distribution in two dimensions 4 to 5 % lie beyond.

    Args:
        log_density_N: As from `estimate_density`.

    Returns:
        True for typical instances; equal densities are on the same side.
    """
    rarity_N = -np.asarray(log_density_N)
    lower, upper = np.quantile(rarity_N, [0.25, 0.75])
    return rarity_N <= upper + _FENCE * (upper - lower)


def gradient_score(
    magnitude_N: np.ndarray,
    log_density_N: np.ndarray,
    side: Score,
    difficulty_N: np.ndarray | None = None,
) -> np.ndarray:
    """Turn magnitude and density into the gradient score g of each instance.

    * `representative`: rank of the density. Gradients in the dense region pull where much of the
      pool pulls; isolated ones are often noise (wrong or garbled answers).
    * `informative`: rank of the magnitude. A small gradient means that the model hardly changes
      on this instance; a large one that there is something to learn, or something wrong.
    * `balanced`: rank of the magnitude among the typical instances; the low-density tail (see
      `typical_region`), where large gradients are likely noise, gets 0.
    * `consistent`: rank of the magnitude, small first. A small gradient, for its length, means
      that what the model knows already agrees with the answer; answers to another question and
      garbled text have large ones.
    * `grounded`: not of the gradient: rank of the instruction-following difficulty, small first. A
      small one means that the prompt helps to predict the answer, as it does not where the answer
      belongs to another question.

    Args:
        magnitude_N: As from `magnitude`.
        log_density_N: As from `log_density`.
        side: Which of these.
        difficulty_N: For `grounded`: L(response | prompt) / L(response), or its logarithm; infinite
            where there is none, which counts as the worst.

    Returns:
        One finite value in [0, 1] for each instance. Ties share their mean rank. Typical instances
        of `balanced` start above 0.

    Raises:
        ValueError: If the side is unknown.
    """
    if side == "density":
        return percentile_rank(log_density_N)
    if side == "high-norm":
        return percentile_rank(magnitude_N)
    if side == "prompt-gain":
        assert difficulty_N is not None
        return percentile_rank(-difficulty_N)
    if side == "low-norm":
        return percentile_rank(-np.asarray(magnitude_N))
    if side == "high-norm-in-density":
        typical_N = typical_region(log_density_N)
        score_N = np.zeros(len(magnitude_N))
        score_N[typical_N] = ranks(magnitude_N[typical_N]) / typical_N.sum()
        return score_N
    raise GradsiftError(f"side is {side!r}, expected one of {', '.join(SCORES)}.")


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
    return float(np.corrcoef(ranks(a_N), ranks(b_N))[0, 1])


def _refuse_unknown(
    values: Mapping[str, Mapping[str, np.ndarray]],
    layers: Sequence[str],
    statistics: Sequence[str],
) -> None:
    if not layers or not statistics:
        raise GradsiftError("the signal needs at least one layer and one statistic.")
    for layer in layers:
        if layer not in values:
            raise GradsiftError(f"layer {layer!r} is unknown, expected one of {', '.join(values)}.")
        for name in statistics:
            if name not in values[layer]:
                known = ", ".join(values[layer])
                raise GradsiftError(f"statistic {name!r} is unknown, expected one of {known}.")


def _for_scale(x_N: np.ndarray, name: str) -> np.ndarray:
    x_N = np.asarray(x_N, dtype=np.float64)
    if name in _SIGNED:
        return x_N
    size_N = np.abs(x_N)
    positive = size_N[size_N > 0]
    return np.log(np.maximum(size_N, positive.min())) if len(positive) else np.zeros_like(x_N)
