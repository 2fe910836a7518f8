"""The metrics of a comparison, computed for any resampling of the items.

Shapes: N items, K statistics of an item (of a Replicated: K sets of items), B resamplings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LEARNING = "learning"
GENERAL = "general"

# Set of items → their statistics [N, K]; several where a metric is the mean over several (tasks).
ItemSets = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is.

    Attributes:
        name: Its key in files.
        label: Its name for people.
        kind: LEARNING (the domain) or GENERAL (what the model could do before).
        higher_is_better: The direction.
        digits: Decimals worth printing.
        of_sums: From summed statistics [B, K] and numbers of items [B] to values [B].
    """

    name: str
    label: str
    kind: str
    higher_is_better: bool
    digits: int
    of_sums: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Replicated:
    """A metric of one trained model, and what it would be on resampled items.

    Attributes:
        value: On the items as they are, the mean over their sets.
        values_BK: On each resampling of each set.
        n_K: Number of items of each set.
    """

    value: float
    values_BK: np.ndarray
    n_K: tuple[int, ...]


def _mean(sums_BK: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    return sums_BK[:, 0] / n_B


def _percent(sums_BK: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    return 100 * _mean(sums_BK, n_B)


def _bleu(sums_BK: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    from sacrebleu.metrics import BLEU

    return np.array(
        [
            BLEU.compute_bleu(row[2:6], row[6:], row[0], row[1], smooth_method="exp").score
            for row in sums_BK.round().astype(int).tolist()
        ]
    )


def _chrf(sums_BK: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    rows = sums_BK.round().astype(int).tolist()
    return np.array([chrf._compute_score_from_stats(row).score for row in rows])


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "held-out loss", LEARNING, False, 3, _mean),
        Metric("bleu", "BLEU", LEARNING, True, 2, _bleu),
        Metric("meteor", "METEOR", LEARNING, True, 2, _percent),
        Metric("rouge_l", "ROUGE-L", LEARNING, True, 2, _percent),
        Metric("chrf", "chrF", LEARNING, True, 2, _chrf),
        Metric("accuracy", "general accuracy", GENERAL, True, 2, _percent),
        Metric("text_loss", "general text loss", GENERAL, False, 3, _mean),
    )
}
# What the verdicts rest on; the others are shown.
DECIDING = {LEARNING: ("loss", "bleu", "meteor", "chrf"), GENERAL: ("accuracy", "text_loss")}


def replicate(metric: Metric, item_sets: ItemSets, weights: Mapping[str, np.ndarray]) -> Replicated:
    """Compute a metric, the mean over the sets, on the items and on each resampling of them.

    Items have statistics [N, K], and weights [B, N] say how often each is drawn, for each set.
    """
    values, replicates = [], []
    for name, items_NK in item_sets.items():
        ones_1N = np.ones((1, len(items_NK)))
        values.append(metric.of_sums(ones_1N @ items_NK, ones_1N.sum(1))[0])
        weights_BN = weights[name]
        replicates.append(metric.of_sums(weights_BN @ items_NK, weights_BN.sum(1)))
    n_K = tuple(len(items_NK) for items_NK in item_sets.values())
    return Replicated(float(np.mean(values)), np.stack(replicates, axis=1), n_K)


def resampling_weights(n_items: Mapping[str, int], n: int, seed: int) -> dict[str, np.ndarray]:
    """Draw how often each item comes up in each of n resamplings: [B, N] for each set.

    It is the same for all arms, so their differences are paired.
    """
    rng = np.random.default_rng(seed)
    return {
        name: rng.multinomial(count, np.full(count, 1 / count), size=n).astype(float)
        for name, count in sorted(n_items.items())
    }
