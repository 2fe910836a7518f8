"""Levels and differences of arms, with intervals over both items and trainings.

The variance by items comes from a bootstrap, so corpus metrics such as BLEU have it, too; how the
sources are put together, `uncertainty` says. The spread of trainings is pooled over arms that are
alike in it; which these are, the caller says. Trainings of two arms are not paired by their seeds:
under one seed, other rows have another order. What they share nevertheless (adapters at their
start) can only make intervals too wide.

Shapes: B resamplings of the items, K sets of items, S trainings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import optimize, special

from gradsift.evaluation.metrics import Replicated
from gradsift.evaluation.uncertainty import (
    Contribution,
    Spread,
    Uncertainty,
    VarianceComponent,
    sum_of,
)

SIGNIFICANT = 0.05
POWER = 0.8
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Measured:
    """A metric of one arm.

    Attributes:
        runs: One for each of its trainings.
        spread: Of its trainings; None if there is nothing to know it from. Arms that have the same
            one have it from the same trainings.
    """

    runs: Sequence[Replicated]
    spread: Spread | None


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
        uncertainty: What the interval is made of.
    """

    value: float
    low: float
    high: float
    p: float
    n_items: int
    n_seeds: tuple[int, int]
    uncertainty: Uncertainty


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_level(arm: Measured) -> Estimate:
    """Estimate a metric of an arm."""
    return _estimate(arm, None)


def estimate_difference(a: Measured, b: Measured) -> Estimate:
    """Estimate how much larger a metric is in arm a than in arm b.

    Where all items differ by the same amount, resampling them shows no spread. The chance that so
    many items all favour one arm (sign test) takes its place.
    """
    return _estimate(a, b)


def estimate_relative_change(base: Measured, arm: Measured, rival: Measured) -> Interval | None:
    """Estimate by how much more the arm changed from base than its rival did: 0 is as much.

    The ends are Fieller's: those ratios of the two changes that the figures do not contradict. None
    where the rival's change is not clear of zero, as then there is no end.
    """
    change, rivals = estimate_difference(base, arm), estimate_difference(base, rival)
    if rivals.p >= SIGNIFICANT:
        return None
    ratio = change.value / rivals.value

    def beyond(times: float) -> float:
        contrast = _contrast([(1 - times, base), (-1.0, arm), (times, rival)])
        value = change.value - times * rivals.value
        return abs(value) - contrast.half_width(partial(_two_sided, SIGNIFICANT))

    def end(direction: int) -> float:
        step = 1.0
        while beyond(ratio + direction * step) <= 0:
            step *= 2
        return optimize.brentq(beyond, ratio, ratio + direction * step)

    return Interval(ratio - 1, end(-1) - 1, end(1) - 1)


def pooled_spread(arms: Sequence[Sequence[Replicated]]) -> Spread | None:
    """Return how trainings differ, over all arms with more than one; None if there is none.

    Arms of the very same models count once.
    """
    different = {tuple(run.values_BK.tobytes() for run in arm): arm for arm in arms}
    several = [arm for arm in different.values() if len(arm) > 1]
    df = sum(len(arm) - 1 for arm in several)
    if not df:
        return None
    squares = sum(float(np.var([run.value for run in arm])) * len(arm) for arm in several)
    return Spread(squares / df, sum(map(_squared_noise, several)) / df, df)


def needed(estimate: Estimate, n_tests: int = 1, *, most: int = 20) -> str:
    """Say how much more would be needed to tell a difference of this size from none.

    With the usual power of 80 % at what the adjustment leaves of the 5 % level (`n_tests` is by
    what the p-value was multiplied). Beyond `most` times as many rows or seeds it is not worth
    saying how many.
    """
    uncertainty, n_items = estimate.uncertainty, estimate.n_items
    if math.isinf(uncertainty.items.variance):
        return "more than one item of each set needed"
    if any(arm.spread is None for arm in uncertainty.trainings):
        return "at least 2 trainings of each arm needed, better 3, to know how they differ"

    def is_enough(known: Uncertainty) -> bool:
        # Both of these quantiles, for each of the interval's components.
        level = SIGNIFICANT / n_tests
        half = known.half_width(lambda df: _two_sided(level, df) + _quantile(POWER, df))
        return half <= abs(estimate.value)

    phrases = []
    n = _smallest(
        lambda n: is_enough(uncertainty.with_items(n / n_items)), n_items + 1, most * n_items
    )
    if n is not None:
        phrases.append(f"{n - n_items} more test rows")
    n_seeds = max(estimate.n_seeds)
    if uncertainty.seeds:
        n = _smallest(
            lambda n: is_enough(uncertainty.with_trainings(n)), n_seeds + 1, most * n_seeds
        )
        if n is not None:
            phrases.append(f"{n} trainings of each arm")
    if phrases:
        return "about " + " or ".join(phrases) + " needed"
    times = _smallest(
        lambda n: is_enough(uncertainty.with_items(n).with_trainings(n * n_seeds)), 2, most
    )
    if times is not None:
        return f"about {times} times as many test rows and seeds needed"
    return f"more than {most} times as many test rows and seeds needed"


def _smallest(is_enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Find the smallest number from low to high that is enough, by bisection."""
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high


def _estimate(a: Measured, b: Measured | None) -> Estimate:
    arms = [(1.0, a)] if b is None else [(1.0, a), (-1.0, b)]
    value = sum(weight * _mean_value(arm.runs) for weight, arm in arms)
    uncertainty = _contrast(arms)
    if b is not None:
        uncertainty = _signs_at_least(value, uncertainty, min(a.runs[0].n_K))
    half = uncertainty.half_width(partial(_two_sided, SIGNIFICANT))
    return Estimate(
        value,
        value - half,
        value + half,
        _p(value, uncertainty),
        sum(a.runs[0].n_K),
        (len(a.runs), 0 if b is None else len(b.runs)),
        uncertainty,
    )


def _contrast(arms: Sequence[tuple[float, Measured]]) -> Uncertainty:
    """Return the uncertainty of a weighted sum of arms, on the same items."""
    values_BK = sum(
        weight * np.mean([run.values_BK for run in arm.runs], axis=0) for weight, arm in arms
    )
    n_K = arms[0][1].runs[0].n_K
    by_set = [
        VarianceComponent(variance / len(n_K) ** 2, max(n - 1, 1))
        for variance, n in zip(_item_variances(values_BK, n_K), n_K, strict=True)
    ]
    trainings = tuple(Contribution(weight, len(arm.runs), arm.spread) for weight, arm in arms)
    return Uncertainty(sum_of(by_set), trainings)


def _signs_at_least(value: float, uncertainty: Uncertainty, n: int) -> Uncertainty:
    variance = uncertainty.items.variance
    if value == 0 or variance > 1e-18 * value**2:
        return uncertainty
    df = n - 1
    shown = (value / _quantile(1 - 0.5**n, df)) ** 2
    # Of the trainings' noise it has nothing.
    trainings = tuple(
        replace(arm, spread=replace(arm.spread, noise=0.0)) if arm.is_random else arm
        for arm in uncertainty.trainings
    )
    return Uncertainty(VarianceComponent(shown, df), trainings)


def _item_variances(values_BK: np.ndarray, n_K: Sequence[int]) -> list[float]:
    # Resampling n items spreads like n - 1 of them, and one item shows nothing.
    return [
        float(variance) * n / (n - 1) if n > 1 else math.inf
        for variance, n in zip(np.var(values_BK, axis=0, ddof=1), n_K, strict=True)
    ]


def _squared_noise(arm: Sequence[Replicated]) -> float:
    """Return the variance by items of each training about their mean, summed over trainings."""
    n_K = arm[0].n_K
    mean_BK = np.mean([run.values_BK for run in arm], axis=0)
    sums = [sum(_item_variances(run.values_BK - mean_BK, n_K)) for run in arm]
    # Of single items nothing is known, nor is there an interval.
    return sum(sums) / len(n_K) ** 2 if math.isfinite(sum(sums)) else 0.0


def _mean_value(arm: Sequence[Replicated]) -> float:
    return float(np.mean([run.value for run in arm]))


def _quantile(share: float, df: float) -> float:
    return float(special.stdtrit(df, share))


def _two_sided(level: float, df: float) -> float:
    return -_quantile(level / 2, df)


def _p(value: float, uncertainty: Uncertainty) -> float:
    # The level at which the interval ends at zero, not below SMALLEST_P.
    def beyond(level: float) -> float:
        return abs(value) - uncertainty.half_width(partial(_two_sided, level))

    if value == 0 or math.isinf(uncertainty.items.variance):
        return 1.0
    if beyond(SMALLEST_P) >= 0:
        return SMALLEST_P
    return float(optimize.brentq(beyond, SMALLEST_P, 1.0))
