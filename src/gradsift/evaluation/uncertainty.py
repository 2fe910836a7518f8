"""Differences between arms with intervals that know of both lotteries: the items and the seeds.

The variance over items comes from a paired bootstrap (the same resampled items for both arms), that
over seeds from the spread between an arm's trainings: resampling three seeds would understate it by
a third. The two are added, and the interval is Student's, with the degrees of freedom of Welch and
Satterthwaite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradsift.evaluation.metrics import Replicated

LEVEL = 0.95
SIGNIFICANT = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Part:
    """One source of variance.

    Attributes:
        variance: Of the estimate.
        df: Degrees of freedom with which it is known.
    """

    variance: float
    df: float


@dataclass(frozen=True)
class Estimate:
    """A level or a difference, with its interval.

    Attributes:
        value: The estimate.
        low: End of the 95 % interval; infinite where there is nothing to judge the spread by.
        high: Its other end.
        p: Two-sided, against a value of zero.
        n_items: Test items.
        n_seeds: Trainings of either arm, (a, b); of a level (a, 0).
        items: Variance by items.
        seeds: Variance by seeds; None if no arm here was trained twice: then it is not in the
            interval.
    """

    value: float
    low: float
    high: float
    p: float
    n_items: int
    n_seeds: tuple[int, int]
    items: Part
    seeds: Part | None


def estimate_difference(
    a: Sequence[Replicated],
    b: Sequence[Replicated],
    *,
    n_items: int,
    smallest_set: int | None = None,
    seed_variance: float | None = None,
    trained: tuple[bool, bool] = (True, True),
) -> Estimate:
    """Estimate how much larger a metric is in arm a than in arm b.

    Where all items differ by the same amount, resampling them shows no spread. The chance that so
    many items all favour one arm (sign test) takes its place.

    Args:
        a: One for each seed.
        b: One for each seed; empty for the level of a alone.
        n_items: Test items, over all sets.
        smallest_set: Items of the smallest set that the metric is a mean over; None for n_items.
        seed_variance: Between the trainings of an arm, for an arm that was trained once; from the
            arms that were trained more often. None if there are none.
        trained: Whether each arm is trained at all (base is not: it has no luck of seeds).

    Returns:
        The estimate.
    """
    value = _mean_value(a) - (_mean_value(b) if b else 0.0)
    replicates_B = _mean_values(a) - (_mean_values(b) if b else 0.0)
    n = n_items if smallest_set is None else smallest_set
    items = Part(_item_variance(value, replicates_B, n, paired=bool(b)), max(n_items - 1, 1))
    of_seeds = [
        _seed_part(arm, seed_variance)
        for arm, is_trained in zip((a, b), trained, strict=True)
        if arm and is_trained
    ]
    known = [part for part in of_seeds if part is not None]
    seeds = _sum(known) if known else None
    total = _sum([items, *known])
    half = _quantile(0.5 + LEVEL / 2, total.df) * math.sqrt(total.variance)
    return Estimate(
        value, value - half, value + half, _p(value, total), n_items, (len(a), len(b)), items, seeds
    )


def pooled_seed_variance(arms: Sequence[Sequence[Replicated]]) -> float | None:
    """Return the variance between trainings of the same arm, over the arms trained more than once.

    Args:
        arms: Each with one entry for each seed.

    Returns:
        The variance, or None if no arm was trained more than once.
    """
    several = [[run.value for run in arm] for arm in arms if len(arm) > 1]
    if not several:
        return None
    squares = sum(float(np.var(values, ddof=1)) * (len(values) - 1) for values in several)
    return squares / sum(len(values) - 1 for values in several)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scand. J. Statist. 1979).

    Args:
        p_values: Of one family.

    Returns:
        Adjusted, in order.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[at])
        adjusted[at] = min(1.0, highest)
    return adjusted.tolist()


def needed(estimate: Estimate, adjusted_p: float | None = None, *, most: float = 20.0) -> str:
    """Say how much more would be needed to tell a difference of this size from none.

    With the usual power of 80 % at what the adjustment for several arms and metrics leaves of the
    5 % level, the variance by items falling with their number and that by seeds with theirs.

    Args:
        estimate: That cannot be told from zero.
        adjusted_p: Its p-value, adjusted; None if it is not.
        most: Times as many rows or seeds, beyond which it is not worth saying how many.

    Returns:
        A phrase.
    """
    items = estimate.items.variance
    if math.isinf(items):
        return "more than one item of each set needed"
    level = SIGNIFICANT
    if adjusted_p is not None and 0 < estimate.p < adjusted_p:
        level *= estimate.p / adjusted_p
    df = _sum([part for part in (estimate.items, estimate.seeds) if part is not None]).df
    quantiles = _quantile(1 - level / 2, df) + _quantile(POWER, df)
    wanted = (abs(estimate.value) / quantiles) ** 2
    seeds = 0.0 if estimate.seeds is None else estimate.seeds.variance
    phrases = []
    if wanted > seeds and items / (wanted - seeds) <= most:
        n = math.ceil(estimate.n_items * items / (wanted - seeds))
        phrases.append(f"{n - estimate.n_items} more test rows")
    if seeds > 0 and wanted > items and seeds / (wanted - items) <= most:
        n = math.ceil(max(estimate.n_seeds) * seeds / (wanted - items))
        phrases.append(f"{n - max(estimate.n_seeds)} more seeds")
    if phrases:
        return "about " + " or ".join(phrases) + " needed"
    times = (items + seeds) / wanted if wanted > 0 else math.inf
    if times <= most:
        return f"about {times:.0f} times as many test rows and seeds needed"
    return f"more than {most:.0f} times as many test rows and seeds needed"


def _mean_value(arm: Sequence[Replicated]) -> float:
    return float(np.mean([run.value for run in arm]))


def _mean_values(arm: Sequence[Replicated]) -> np.ndarray:
    return np.mean([run.values_B for run in arm], axis=0)


def _seed_part(arm: Sequence[Replicated], if_single: float | None) -> Part | None:
    n = len(arm)
    if n > 1:
        # What trainings of one arm answer differently, item by item, is in the variance over items
        # as well, so intervals are rather too wide; taking it off made them too narrow.
        return Part(float(np.var([run.value for run in arm], ddof=1)) / n, n - 1)
    # Borrowed from other arms, so hardly better known than there.
    return None if if_single is None else Part(if_single, 2)


def _sum(parts: Sequence[Part]) -> Part:
    variance = sum(part.variance for part in parts)
    if math.isinf(variance):
        return Part(variance, 1)
    spread = sum(part.variance**2 / part.df for part in parts)
    return Part(variance, variance**2 / spread if spread > 0 else math.inf)


def _item_variance(value: float, replicates_B: np.ndarray, n: int, *, paired: bool) -> float:
    if n < 2:
        return math.inf
    # Resampling n items spreads like n - 1 of them.
    variance = float(np.var(replicates_B, ddof=1)) * n / (n - 1)
    if not paired or variance > 1e-18 * value**2 or value == 0:
        return variance
    return (value / _quantile(1 - 0.5**n, n - 1)) ** 2


def _quantile(share: float, df: float) -> float:
    # With infinite degrees of freedom scipy gives the normal distribution's.
    return float(stats.t.ppf(share, df))


def _p(value: float, total: Part) -> float:
    if total.variance == 0:
        return 1.0 if value == 0 else 0.0
    z = abs(value) / math.sqrt(total.variance)
    return float(2 * stats.t.sf(z, total.df))
