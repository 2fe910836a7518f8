"""What each term of the objective can gain on a pool under a budget, over a random subset.

Shapes: N instances, E edges of the neighbour graph, S selected.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace

import numpy as np

from gradsift.selection.constraints import Constraints
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Objective, Terms, nearness

TERMS = tuple(field.name for field in fields(Terms))
# Random subsets drawn where there is no closed form: few in large pools, where they differ little.
_DRAWS, _DRAWS_OF_LARGE, _LARGE = 32, 8, 5_000
# Below this part of the term itself, a difference is rounding.
_ROUNDING = 1e-9
# What breaks ties between rows that cost the same near-duplicates: too small to outweigh any.
_TIE = 1e-12
# Pairs of near-duplicates: two positions, and how near they are.
_Near = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PossibleGains:
    """What each term is for a random subset (expected), and for the best one by it alone.

    The best one is what greedy finds. Both hold for a pool, a budget and its other conditions.
    """

    random: Terms
    alone: Terms

    @property
    def scale(self) -> Terms:
        """What each term can gain over a random subset; 0 where that is nothing but rounding."""
        return Terms(*map(_gain, TERMS, astuple(self.random), astuple(self.alone)))

    def attained(self, terms: Terms) -> dict[str, float | None]:
        """Say which share of each possible gain a subset attains.

        0 like a random subset, 1 as much as that term alone could, or more: under a budget of
        tokens another subset may beat greedy, or leave tokens unspent. Below 0 is worse than
        random. None where nothing can be gained.
        """
        shares: dict[str, float | None] = {}
        for name in TERMS:
            possible = getattr(self.scale, name)
            gain = getattr(terms, name) - getattr(self.random, name)
            gain = -gain if name == "similarity" else gain
            shares[name] = min(1.0, gain / possible) if possible > 0 else None
        return shares


def possible_gains(objective: Objective, constraints: Constraints) -> PossibleGains:
    """Compute what each term can gain: greedy on it alone, and the mean of random subsets.

    The coefficients and the scale of `objective` play no part. Nothing depends on the order of the
    rows, except among rows that are alike in everything.
    """
    near = _near_pairs(objective)
    only = replace(objective, alpha=0.0, beta=0.0, gamma=0.0, scale=Terms())
    # Scores just add up: greedy takes rows by their rate.
    score_N, by_tokens = objective.score_N, constraints.budget.kind == "tokens"
    rate_N = score_N / constraints.costs_N if by_tokens else score_N
    by_rate = np.argsort(-rate_N, kind="stable").tolist()
    gradient = score_N[constraints.builder().take_in_order(by_rate)].sum()
    order_S, gains = lazy_greedy(replace(only, beta=1.0), constraints)
    floor = objective.neighbours.floor_N.mean(dtype=np.float64)
    diversity = floor + gains.diversity_N[order_S].sum()
    # The random subset spends its tokens: one that saves them would be none to compare with.
    order_S, gains = lazy_greedy(apart_objective(only), constraints, spend=True)
    similarity = gains.penalty_N[order_S].sum()
    alone = Terms(float(gradient), float(diversity), float(similarity))
    return PossibleGains(random_terms(objective, constraints, near), alone)


def apart_objective(objective: Objective) -> Objective:
    """Return the objective of similarity alone.

    Of rows that cost the same, those with fewer near-duplicates in the pool come first.
    """
    tie_N = _few_near_duplicates_first(objective, _near_pairs(objective))
    return replace(objective, score_N=tie_N, alpha=_TIE, beta=0.0, gamma=1.0, scale=Terms())


def with_a_choice(constraints: Constraints, *, half: bool = False) -> Constraints:
    """Return conditions under which there is something to gain: the same, or half of the budget.

    Half of it with `half`, and where the budget is enough for all rows that may be taken.
    """
    budget, may_N = constraints.budget, constraints.may_be_taken()
    costs_N = constraints.costs_N if budget.kind == "tokens" else np.ones(len(may_N))
    whole = int(costs_N[may_N].sum())
    if not may_N.any() or (budget.amount < whole and not half):
        return constraints
    kept = int(costs_N[list(constraints.keep)].sum())
    amount = max((min(budget.amount, whole) + kept) // 2, int(costs_N[may_N].min()))
    return replace(constraints, budget=replace(budget, amount=amount))


def random_terms(objective: Objective, constraints: Constraints, near: _Near) -> Terms:
    """Compute the expected terms of a random subset that meets the conditions.

    Exact for a number of rows and no further condition; else the mean of some draws, in which rows
    come in a random order and each that still fits is taken.
    """
    plain = constraints.budget.kind == "rows" and constraints.group_N is None
    if plain and not constraints.keep and len(constraints.excluded) == 0:
        return _expected_terms(objective, constraints.budget.amount, near)
    n = len(objective.score_N)
    # By what the rows are, not by where they stand.
    rows_N = np.lexsort((constraints.costs_N, objective.score_N))
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS if n <= _LARGE else _DRAWS_OF_LARGE):
        order_N = rows_N[generator.permutation(n)]
        rows_S = constraints.builder().take_in_order(order_N.tolist())
        drawn.append(astuple(objective.terms(rows_S)))
    return Terms(*np.mean(drawn, axis=0).tolist())


def _expected_terms(objective: Objective, n_rows: int, near: _Near) -> Terms:
    n = len(objective.score_N)
    both = n_rows * (n_rows - 1) / (n * (n - 1)) if n > 1 else 0.0
    return Terms(
        gradient=float(n_rows * np.sort(objective.score_N).mean()),
        diversity=coverage_profile(objective.neighbours).expected(n, n_rows),
        similarity=float(np.sort(near[2]).sum() * both),
    )


@dataclass(frozen=True)
class CoverageProfile:
    """How well a pool is represented by near and by far rows: what expected coverage needs of it.

    Profiles of parts of a pool add up to its own.

    Attributes:
        nearest_J: Sum of the cosines of the rows with their j-th nearest neighbour.
        beyond_J: Sum of the floors of the rows with so many neighbours.
    """

    nearest_J: np.ndarray
    beyond_J: np.ndarray

    def __add__(self, other: CoverageProfile) -> CoverageProfile:
        return CoverageProfile(
            _longer_sum(self.nearest_J, other.nearest_J), _longer_sum(self.beyond_J, other.beyond_J)
        )

    def expected(self, n: int, n_rows: int) -> float:
        """Compute the mean of FL(S)/FL(pool) over all subsets of so many of n rows.

        An instance is represented by its j-th nearest neighbour if that is selected and none before
        it is: the probabilities are hypergeometric.
        """
        taken_J = np.arange(len(self.nearest_J))
        # The probability that none of the first j neighbours is selected.
        none_J = np.cumprod(np.append(1.0, np.maximum(n - n_rows - taken_J, 0) / (n - taken_J)))
        nearest = self.nearest_J @ (none_J[:-1] - none_J[1:])
        return float((nearest + self.beyond_J @ none_J) / n)


def coverage_profile(neighbours: Neighbours) -> CoverageProfile:
    """Return the profile of a graph, or of the rows of a part of it."""
    counts_N, owners_E = np.diff(neighbours.offsets), neighbours.owners()
    # Less the number of the row, in float64, they sort all at once; each row's nearest first.
    keyed_E = owners_E - neighbours.cosines_E.astype(np.float64)
    keyed_E.sort()
    cosines_E = np.maximum(owners_E - keyed_E, neighbours.floor_N[owners_E])
    place_E = np.arange(len(owners_E)) - neighbours.offsets[owners_E]
    # Sums over rows first: of multiples of 2⁻²⁰, so exact in any order.
    nearest_J = np.bincount(place_E, weights=cosines_E)
    return CoverageProfile(nearest_J, np.bincount(counts_N, weights=neighbours.floor_N))


def _longer_sum(one_J: np.ndarray, other_J: np.ndarray) -> np.ndarray:
    sum_J = np.zeros(max(len(one_J), len(other_J)))
    sum_J[: len(one_J)] += one_J
    sum_J[: len(other_J)] += other_J
    return sum_J


def _near_pairs(objective: Objective) -> _Near:
    first_E, second_E, cosines_E = objective.neighbours.pairs_above(objective.similarity_threshold)
    return first_E, second_E, nearness(cosines_E, objective.similarity_threshold)


def _few_near_duplicates_first(objective: Objective, near: _Near) -> np.ndarray:
    """Rank rows from 1 down to 0: those with few near-duplicates in the pool first."""
    *pairs, near_E = near
    n = len(objective.score_N)
    degree_N = sum(np.bincount(rows_E, weights=near_E, minlength=n) for rows_E in pairs)
    # Rounded, so that the order of the sum does not show.
    order_N = np.lexsort((-objective.score_N, degree_N.round(9)))
    rank_N = np.empty(n)
    rank_N[order_N] = np.linspace(1, 0, n)
    return rank_N


def _gain(name: str, random: float, alone: float) -> float:
    gain = random - alone if name == "similarity" else alone - random
    return gain if gain > _ROUNDING * max(abs(alone), abs(random)) else 0.0
