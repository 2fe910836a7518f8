"""Differences between arms with intervals that count both sources of variance: items and seeds.

The variance over items comes from a paired bootstrap (the same resampled items for both arms), that
over seeds from the spread between an arm's trainings: resampling three seeds would understate it by
a third. Each has its own Student quantile, and the two half-widths are added in squares. A single
quantile for the sum (Welch, Satterthwaite) is too small where few trainings happen to agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from gradsift.evaluation.metrics import Replicated

SIGNIFICANT = 0.05
POWER = 0.8
# Trainings of each arm from which on their own spread is used, not that of all arms together.
OWN_SPREAD = 3
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class VarianceComponent:
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
    items: VarianceComponent
    seeds: VarianceComponent | None


def estimate_difference(
    a: Sequence[Replicated],
    b: Sequence[Replicated],
    *,
    n_items: int,
    smallest_set: int | None = None,
    seed_spread: VarianceComponent | None = None,
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
        seed_spread: From `pooled_seed_spread`; used where either arm has fewer than OWN_SPREAD.
        trained: Whether each arm is trained at all (base is not: it has no seed variance).
    """
    value = _mean_value(a) - (_mean_value(b) if b else 0.0)
    replicates_B = _mean_values(a) - (_mean_values(b) if b else 0.0)
    n = n_items if smallest_set is None else smallest_set
    items = VarianceComponent(
        _item_variance(value, replicates_B, n, paired=bool(b)), max(n_items - 1, 1)
    )
    seeds = _seed_component(
        [arm for arm, is_trained in zip((a, b), trained, strict=True) if arm and is_trained],
        seed_spread,
    )
    half, n_seeds = _half_width(SIGNIFICANT, items, seeds), (len(a), len(b))
    p = _p(value, items, seeds)
    return Estimate(value, value - half, value + half, p, n_items, n_seeds, items, seeds)


def pooled_seed_spread(arms: Sequence[Sequence[Replicated]]) -> VarianceComponent | None:
    """Return the variance of one training, over all arms (an entry a seed) with more than one."""
    several = [[run.value for run in arm] for arm in arms if len(arm) > 1]
    if not several:
        return None
    squares = sum(float(np.var(values, ddof=1)) * (len(values) - 1) for values in several)
    df = sum(len(values) - 1 for values in several)
    return VarianceComponent(squares / df, df)


def needed(estimate: Estimate, n_tests: int = 1, *, most: float = 20.0) -> str:
    """Say how much more would be needed to tell a difference of this size from none.

    With the usual power of 80 % at what the adjustment leaves of the 5 % level (`n_tests` is by
    what the p-value was multiplied), the variance by items falling with their number and that by
    seeds with theirs. Beyond `most` times as many rows or seeds it is not worth saying how many.
    """
    if math.isinf(estimate.items.variance):
        return "more than one item of each set needed"
    square = estimate.value**2
    items, seeds = (
        _needed_square(component, SIGNIFICANT / n_tests)
        for component in (estimate.items, estimate.seeds)
    )
    phrases = []
    if square > seeds and items / (square - seeds) <= most:
        n = math.ceil(estimate.n_items * items / (square - seeds))
        phrases.append(f"{n - estimate.n_items} more test rows")
    if seeds > 0 and square > items and seeds / (square - items) <= most:
        of_one = seeds / sum(1 / n for n in estimate.n_seeds if n)
        n = math.ceil(2 * of_one / (square - items))
        phrases.append(f"{n} trainings of each arm")
    if phrases:
        return "about " + " or ".join(phrases) + " needed"
    times = (items + seeds) / square if square > 0 else math.inf
    if times <= most:
        return f"about {times:.0f} times as many test rows and seeds needed"
    return f"more than {most:.0f} times as many test rows and seeds needed"


def _mean_value(arm: Sequence[Replicated]) -> float:
    return float(np.mean([run.value for run in arm]))


def _mean_values(arm: Sequence[Replicated]) -> np.ndarray:
    return np.mean([run.values_B for run in arm], axis=0)


def _needed_square(component: VarianceComponent | None, level: float) -> float:
    if component is None:
        return 0.0
    quantiles = _quantile(1 - level / 2, component.df) + _quantile(POWER, component.df)
    return quantiles**2 * component.variance


def _seed_component(
    arms: Sequence[Sequence[Replicated]], spread: VarianceComponent | None
) -> VarianceComponent | None:
    if not arms:
        return None
    if all(len(arm) >= OWN_SPREAD for arm in arms):
        # What trainings of one arm answer differently, item by item, is in the variance over items
        # as well, so intervals are rather too wide; taking it off made them too narrow.
        return _sum(
            [
                VarianceComponent(
                    float(np.var([run.value for run in arm], ddof=1)) / len(arm), len(arm) - 1
                )
                for arm in arms
            ]
        )
    if spread is None:
        return None
    # One estimate for all arms, which is known no better for being used twice.
    return VarianceComponent(spread.variance * sum(1 / len(arm) for arm in arms), spread.df)


def _sum(components: Sequence[VarianceComponent]) -> VarianceComponent:
    # Welch and Satterthwaite.
    variance = sum(component.variance for component in components)
    spread = sum(component.variance**2 / component.df for component in components)
    return VarianceComponent(variance, variance**2 / spread if spread > 0 else math.inf)


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


def _half_width(level: float, items: VarianceComponent, seeds: VarianceComponent | None) -> float:
    components = [
        component
        for component in (items, seeds)
        if component is not None and component.variance > 0
    ]
    squares = (
        _quantile(1 - level / 2, component.df) ** 2 * component.variance for component in components
    )
    return math.sqrt(sum(squares))


def _p(value: float, items: VarianceComponent, seeds: VarianceComponent | None) -> float:
    # The level at which the interval ends at zero, not below SMALLEST_P.
    def beyond(level: float) -> float:
        return abs(value) - _half_width(level, items, seeds)

    if value == 0 or math.isinf(items.variance):
        return 1.0
    if beyond(SMALLEST_P) >= 0:
        return SMALLEST_P
    return float(optimize.brentq(beyond, SMALLEST_P, 1.0))
