"""What the variance of an estimate is made of, and how wide an interval it makes.

Every training answers every item, so the two are crossed random effects. The variance of a
difference between the means of two arms is

    max(by items - noise, 0) + by trainings.

`By items` is the variance of the paired difference when items are resampled. `By trainings` is, for
each arm, the spread between trainings divided by their number. What a training happens to answer
differently, item by item (`noise`), is in both, and so taken off once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

# Degrees of freedom of a spread from which on Satterthwaite's own formula is used.
WELL_KNOWN_DF = 4

# From degrees of freedom to Student's quantile at a level.
Quantile = Callable[[float], float]


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
class Spread:
    """How trainings differ that are alike but for chance.

    Attributes:
        variance: Of one training's value.
        noise: The part of it that comes from how it answers each of these items, which more items
            would make smaller.
        df: Degrees of freedom with which both are known.
    """

    variance: float
    noise: float
    df: float

    def with_items(self, times: float) -> Spread:
        """Return what it would be with so many times as many items."""
        noise = min(self.noise, self.variance)
        return Spread(self.variance - noise + noise / times, noise / times, self.df)


# What has no training has none.
NO_SPREAD = Spread(0.0, 0.0, math.inf)


@dataclass(frozen=True)
class Contribution:
    """What one arm's trainings contribute to an estimate.

    Attributes:
        weight: Of the arm in the estimate.
        n: Its trainings.
        spread: Between them; None if there is nothing to know it from.
    """

    weight: float
    n: int
    spread: Spread | None

    @property
    def is_random(self) -> bool:
        """Whether it has a spread, and it is known."""
        return self.spread is not None and self.spread != NO_SPREAD

    @property
    def noise(self) -> float:
        """Variance of the estimate that is in that by items, too."""
        return 0.0 if self.spread is None else self.weight**2 * self.spread.noise / self.n


@dataclass(frozen=True)
class Uncertainty:
    """What an estimate's interval is made of.

    Attributes:
        items: Variance by items, noise of the trainings included.
        trainings: Of each arm.
    """

    items: VarianceComponent
    trainings: tuple[Contribution, ...]

    @property
    def seeds(self) -> list[VarianceComponent]:
        """Variances by trainings; none where no spread is known, and there is none in the interval.

        One spread of two arms is one estimate, which is known no better for being used twice.
        """
        shares: dict[Spread, float] = {}
        for arm in self.trainings:
            if arm.is_random:
                shares[arm.spread] = shares.get(arm.spread, 0.0) + arm.weight**2 / arm.n
        return [VarianceComponent(s.variance * share, s.df) for s, share in shares.items()]

    @property
    def noise(self) -> float:
        """What is in the variance by items and in those by trainings."""
        return sum(arm.noise for arm in self.trainings)

    def half_width(self, quantile: Quantile) -> float:
        """Return the half-width of the interval, given Student's quantile for its level.

        It is never less than for items alone: these hold the noise of the trainings, which cannot
        differ by less.
        """
        by_items = quantile(self.items.df) * math.sqrt(self.items.variance)
        if math.isinf(by_items):
            return by_items
        items = VarianceComponent(max(self.items.variance - self.noise, 0.0), self.items.df)
        parts = [part for part in (items, *self.seeds) if part.variance > 0]
        variance = sum(part.variance for part in parts)
        return max(_critical(parts, quantile) * math.sqrt(variance), by_items)

    def with_items(self, times: float) -> Uncertainty:
        """Return what it would be with so many times as many items."""
        items = VarianceComponent(self.items.variance / times, self.items.df * times)
        return Uncertainty(items, tuple(map(partial(_with_items, times), self.trainings)))

    def with_trainings(self, n: int) -> Uncertainty:
        """Return what it would be with n trainings of each arm that is trained."""
        more: dict[Spread, int] = {}
        for arm in self.trainings:
            if arm.is_random:
                more[arm.spread] = more.get(arm.spread, 0) + max(n - arm.n, 0)
        trainings = tuple(
            replace(arm, n=n, spread=replace(arm.spread, df=arm.spread.df + more[arm.spread]))
            if arm.is_random
            else arm
            for arm in self.trainings
        )
        changed = replace(self, trainings=trainings)
        variance = max(self.items.variance - self.noise + changed.noise, 0.0)
        return replace(changed, items=replace(self.items, variance=variance))


def _with_items(times: float, arm: Contribution) -> Contribution:
    return arm if arm.spread is None else replace(arm, spread=arm.spread.with_items(times))


def sum_of(parts: Sequence[VarianceComponent]) -> VarianceComponent:
    """Add the variances of sets of items, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    if variance == 0 or math.isinf(variance):
        return VarianceComponent(variance, min(part.df for part in parts))
    return VarianceComponent(variance, 1 / sum((p.variance / variance) ** 2 / p.df for p in parts))


def _critical(parts: Sequence[VarianceComponent], quantile: Quantile) -> float:
    """Return the quantile for a sum of variances that are each known from so many trainings.

    Satterthwaite's degrees of freedom come from the estimated shares. Where a spread is known from
    two or three of them, it may look small by luck, and the sum well known: such intervals held the
    truth 92 % of the time at worst. There its share counts unsquared. Known from one, it held 87 %,
    and there the quantiles themselves are averaged by share (Cochran and Cox).
    """
    known = [part for part in parts if part.df > 1]
    total, known_total = (sum(part.variance for part in some) for some in (parts, known))
    if total == 0:
        return 0.0
    unknown = 1 - known_total / total
    critical = unknown * quantile(1) if unknown > 0 else 0.0
    if known_total > 0:
        shares = [(part.variance / known_total, part.df) for part in known]
        inverse = sum((share**2 if df >= WELL_KNOWN_DF else share) / df for share, df in shares)
        critical += (1 - unknown) * quantile(1 / inverse)
    return critical
