"""Gradient statistics of a pool → one gradient score for each instance.

Shapes: N instances of the pool, K columns of the signal.
Source: arXiv 2511.08620 (GrADS), the self-guided criteria. It leaves open how the statistics are
combined, the bandwidth, and which gradients score high; what follows is our reading, with its
options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.adjustment import detrended
from gradsift.selection.candidates import Need
from gradsift.selection.density import whiten
from gradsift.terms import LAYERS

# 1 / Φ⁻¹(3/4): the median absolute deviation of a normal sample times this is its σ.
MAD_TO_SIGMA = 1.482602218505602
# The mean is signed and may be 0 (always so for an LM head), so it enters without a logarithm.
_SIGNED = ("mean",)
# Interquartile ranges beyond the quartile at which the tail begins (Tukey, 1977).
_FENCE = 1.5


@dataclass(frozen=True)
class ScoreInput:
    """What a score is made of.

    `magnitude_N` is in robust standard deviations; `covariates` are what is taken off by
    `detrended`, `lengths` those of them that are lengths; `n_response` counts response tokens. The
    rest is there if it is needed.
    """

    magnitude_N: np.ndarray
    log_density_N: np.ndarray
    covariates: Sequence[np.ndarray] = ()
    reference_losses: Mapping[str, np.ndarray] | None = None
    cluster_N: np.ndarray | None = None
    lengths: Sequence[np.ndarray] = ()
    n_response: np.ndarray | int = 1


@dataclass(frozen=True)
class ScoredRow:
    """What the words on one row's gradient are made of; percentiles in 0 … 100.

    `parts` are the scores that make up the score, by name, where it is of several, or ranked within
    clusters.
    """

    score: float
    density_pct: float
    magnitude_pct: float
    detrended_by_length: bool
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def for_its_length(self) -> str:
        """To follow on "gradient", where the length was taken off."""
        return " for its length" if self.detrended_by_length else ""


@dataclass(frozen=True)
class Score:
    """A gradient score.

    Attributes:
        function: To one finite value in [0, 1] for each instance, ties sharing their mean rank.
        summary: One line for people.
        kept_because: Words on the gradient of a row that is kept.
        rejected_because: Why the gradient of a row was not enough, beside the last row kept.
        needs: Beyond the statistics.
        typical_only: Whether everything outside the typical region gets 0.
    """

    function: Callable[[ScoreInput], np.ndarray]
    summary: str
    kept_because: Callable[[ScoredRow], str]
    rejected_because: Callable[[ScoredRow, ScoredRow], str]
    needs: tuple[Need, ...] = ()
    typical_only: bool = False


def low_norm(of_pool: ScoreInput) -> np.ndarray:
    """Rank of the magnitude, small first.

    A small gradient, for its length, means that what the model knows already agrees with the
    answer; answers to another question and garbled text have large ones.
    """
    return percentile_rank(-of_pool.magnitude_N)


def high_norm(of_pool: ScoreInput) -> np.ndarray:
    """Rank of the magnitude.

    A small gradient means that the model hardly changes on this instance; a large one that there
    is something to learn, or something wrong.
    """
    return percentile_rank(of_pool.magnitude_N)


def density(of_pool: ScoreInput) -> np.ndarray:
    """Rank of the density.

    Gradients in the dense region pull where much of the pool pulls; isolated ones are often noise
    (wrong or garbled answers).
    """
    return percentile_rank(of_pool.log_density_N)


def high_norm_in_density(of_pool: ScoreInput) -> np.ndarray:
    """Rank of the magnitude among the typical instances, starting above 0.

    The low-density tail (see `typical_region`), where large gradients are likely noise, gets 0.
    """
    typical_N = typical_region(of_pool.log_density_N)
    score_N = np.zeros(len(typical_N))
    score_N[typical_N] = ranks(of_pool.magnitude_N[typical_N]) / typical_N.sum()
    return score_N


def prompt_gain(of_pool: ScoreInput) -> np.ndarray:
    """Rank of n·(L(response | other prompts) − L(response | prompt)), in nats, large first.

    Not of the gradient. By how much the whole response of n tokens is likelier after its own prompt
    than after those of two other rows (the mean of the two log-likelihood ratios): little where the
    answer belongs to another question. Beside the loss of the response alone, which other
    tools take, any prompt explains some of it: its language, its subject, that an answer follows.
    Rows that cannot be compared, such as rows without a prompt, come last. Only lengths are taken
    off: the losses are those of the untrained model, which knows no step.
    """
    losses = of_pool.reference_losses
    assert losses is not None
    others_N = (losses["mismatched"] + losses["mismatched_again"]) / 2
    gain_N = of_pool.n_response * (others_N - losses["response"])
    known_N = np.isfinite(gain_N)
    if not known_N.any():
        raise GradsiftError(
            "score prompt-gain compares each row's prompt with those of two other rows, and no row "
            "of this pool has one that can be: rows of text have none, and prompts that most rows "
            "share say nothing about their answers. Take another score, such as low-norm."
        )
    value_N = np.full(len(gain_N), -np.inf)
    lengths = [length_N[known_N] for length_N in of_pool.lengths]
    value_N[known_N] = detrended(gain_N[known_N], lengths)
    return percentile_rank(value_N)


def _size(row: ScoredRow) -> str:
    word = "large" if round(row.magnitude_pct) >= 50 else "small"
    return f"{word} gradient{row.for_its_length} (magnitude percentile {row.magnitude_pct:.0f})"


def _not_enough(word: str, row: ScoredRow, last: ScoredRow) -> str:
    return (
        f"gradient not {word} enough{row.for_its_length} (magnitude percentile "
        f"{row.magnitude_pct:.0f}, last kept row {last.magnitude_pct:.0f})"
    )


def _outside(row: ScoredRow) -> str:
    return f"gradient outside the typical region (density percentile {row.density_pct:.0f})"


def _typical(row: ScoredRow) -> str:
    word = "typical" if round(row.density_pct) >= 50 else "less typical"
    return f"{word} gradient (density percentile {row.density_pct:.0f})"


def _not_typical(row: ScoredRow, last: ScoredRow) -> str:
    word = "less typical than most" if round(row.density_pct) < 50 else "not typical enough"
    return (
        f"gradient {word} (density percentile {row.density_pct:.0f}, "
        f"last kept row {last.density_pct:.0f})"
    )


SCORES: dict[str, Score] = {
    "density": Score(
        density, "gradients like many others of the pool first", _typical, _not_typical
    ),
    "high-norm": Score(
        high_norm,
        "large gradients first",
        _size,
        lambda row, last: _not_enough("large", row, last),
    ),
    "high-norm-in-density": Score(
        high_norm_in_density,
        "large gradients first, of the typical ones only",
        lambda row: _size(row) if row.score > 0 else _outside(row),
        lambda row, last: _not_enough("large", row, last) if row.score > 0 else _outside(row),
        typical_only=True,
    ),
    "low-norm": Score(
        low_norm,
        "small gradients first: what agrees with what the model knows",
        _size,
        lambda row, last: _not_enough("small", row, last),
    ),
    "prompt-gain": Score(
        prompt_gain,
        "answers that the prompt helps to predict first",
        lambda row: f"prompt helps more than in {100 * row.score:.0f} % of the rows",
        lambda row, last: (
            f"prompt does not help enough (more than in {100 * row.score:.0f} % of the rows, "
            f"last kept row {100 * last.score:.0f} %)"
        ),
        needs=(Need.REFERENCE_LOSSES,),
    ),
}


def gradient_signal(
    values: Mapping[str, Mapping[str, np.ndarray]],
    *,
    layers: Sequence[str] = LAYERS,
    statistics: Sequence[str] = SelectionConfig().signal_statistics,
    covariates: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Combine the statistics of the layers into one signal per instance, and say how large it is.

    Norms are spread over orders of magnitude, so it is their logarithm that is standardised; the
    signed mean enters as it is. With one statistic per layer (the default: the norm) the columns
    stay as they are. With several, which nearly repeat each other (norm and std rank alike), the
    columns are whitened: uncorrelated, variance 1, and directions without spread left out.

    Returns:
        signal_NK in float64, where K may be 0 when several statistics are whitened and none
        varies; and magnitude_N, the mean standardised statistic of the layers, without the signed
        `mean`, which is no size, where there are others.
    """
    for layer in layers:
        if layer not in values:
            there = ", ".join(values)
            raise GradsiftError(
                f"layer {layer!r} is unknown, expected one of {there}: this run recorded no other. "
                f"Give `layers` {there}, beside a `preset`, too."
            )
    columns = {
        (layer, name): robust_standardise(
            detrended(_for_scale(values[layer][name], name), covariates)
        )
        for layer in layers
        for name in statistics
    }
    sizes = [name for name in statistics if name not in _SIGNED] or statistics
    # The order of the columns decides how their mean is rounded.
    magnitude_NK = np.stack([columns[layer, name] for name in sizes for layer in layers], axis=1)
    signal_NK = np.stack(list(columns.values()), axis=1)
    if len(statistics) > 1:
        signal_NK = whiten(signal_NK)
    return signal_NK, magnitude_NK.mean(axis=1)


def robust_standardise(x_N: np.ndarray) -> np.ndarray:
    """Centre on the median and divide by 1.4826·MAD, which a few wild rows cannot move.

    Where more than half of the values are the same, the MAD is 0 and the population standard
    deviation (around the mean) takes its place; where all are the same, the result is 0.
    """
    x_N = np.asarray(x_N, dtype=np.float64)
    deviation_N = x_N - np.median(x_N)
    scale = MAD_TO_SIGMA * np.median(np.abs(deviation_N))
    if scale == 0 and np.ptp(x_N) > 0:
        # Sorted, so that the order of the rows does not show.
        scale = np.sort(x_N).std()
    return deviation_N / scale if scale > 0 else np.zeros_like(x_N)


def typical_region(log_density_N: np.ndarray) -> np.ndarray:
    """Tell the typical instances (True) from the low-density tail, by the density's own spread.

    Rule: −log density beyond its upper quartile by more than 1.5 times its interquartile range is
    the tail (Tukey's fence). Nothing is set by hand, and there need not be a tail: of a sample from
    one normal or uniform distribution in two dimensions 4 to 5 % lie beyond.
    """
    rarity_N = -np.asarray(log_density_N)
    lower, upper = np.quantile(rarity_N, [0.25, 0.75])
    return rarity_N <= upper + _FENCE * (upper - lower)


def ranks(x_N: np.ndarray) -> np.ndarray:
    """Rank values without NaN, 1 for the smallest, N for the largest, ties sharing their mean rank.

    As `scipy.stats.rankdata`, whose module takes longer to load than a selection.
    """
    _, inverse_N, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]


def percentile_rank(x_N: np.ndarray) -> np.ndarray:
    """Scale ranks to [0, 1]: 0 for the smallest, 1 for the largest value; 0.5 if N is 1."""
    n = len(x_N)
    return (ranks(x_N) - 1) / (n - 1) if n > 1 else np.full(n, 0.5)


def percentiles_from_median(x_N: np.ndarray) -> np.ndarray:
    """Return how many percentiles of the pool, 0 to 50, lie between each value and the median.

    Twice a rank is a whole number, so that rows equally far on either side tie exactly.
    """
    n = len(x_N)
    return 50 * np.abs(2 * ranks(x_N) - (n + 1)) / max(n - 1, 1)


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Spearman's rank correlation; None for fewer than 3 instances, or if one side is constant."""
    if len(a_N) < 3 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return None
    return float(np.corrcoef(ranks(a_N), ranks(b_N))[0, 1])


def _for_scale(x_N: np.ndarray, name: str) -> np.ndarray:
    x_N = np.asarray(x_N, dtype=np.float64)
    if name in _SIGNED:
        return x_N
    # A value of exactly 0 counts as the smallest other |x|.
    size_N = np.abs(x_N)
    positive = size_N[size_N > 0]
    return np.log(np.maximum(size_N, positive.min())) if len(positive) else np.zeros_like(x_N)
