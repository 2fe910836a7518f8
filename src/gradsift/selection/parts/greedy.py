"""Greedy in two rounds: parts order their rows, and from the best of all the whole is chosen.

The parts must hold alike rows: a row's gain then depends on its own part nearly alone. From random
parts the first round would take each other's near-duplicates, and leave out what is rare.

With γ > 0 no guarantee holds for the objective, nor does one for greedy on the whole pool; with
γ = 0 two rounds come with a bound of their own for random parts (Mirrokni & Zadimoghaddam, 2015).

Shapes: N rows of the pool in the order of parts, R rows of one part, E edges, S selected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradsift.selection.constraints import Constraints
from gradsift.selection.greedy import Gains, lazy_greedy
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Objective, Terms, nearness
from gradsift.selection.possible_gains import (
    CoverageProfile,
    PossibleGains,
    apart_objective,
    coverage_profile,
)

# How many times the budget the union has that is chosen from.
MORE = 1.25
# And so many rows more, which small budgets need.
AT_LEAST = 32


def of_part(constraints: Constraints, rows: slice, more: float = 1.0) -> Constraints:
    """Return the conditions for a part: its share of the budget and of each quota, times `more`.

    With infinitely many times its share, it has the whole budget.

    Rows that must be kept are taken beyond the share. Never more than the part has.
    """
    n = len(constraints.costs_N)
    if rows.stop == rows.start:
        return replace(
            constraints, costs_N=constraints.costs_N[rows], keep=(), group_N=None, excluded=()
        )
    may_N = constraints.may_be_chosen()
    keep = tuple(row - rows.start for row in constraints.keep if rows.start <= row < rows.stop)
    costs_R, may_R = constraints.costs_N[rows], may_N[rows]
    by_tokens = constraints.budget.kind == "tokens"
    units_N = constraints.costs_N if by_tokens else np.ones(n, dtype=np.int64)
    kept_R = units_N[rows][list(keep)].sum()
    share = units_N[rows].sum() / units_N.sum()
    room = int(units_N[rows][may_R].sum())
    wanted = constraints.budget.amount if more == np.inf else share * constraints.budget.amount
    if 1 < more < np.inf:
        a_row = units_N[rows].sum() / (rows.stop - rows.start)
        wanted = more * wanted + AT_LEAST * a_row
    amount = int(kept_R) + min(room, int(np.ceil(wanted)))
    if by_tokens and may_R.any():
        amount = max(amount, int(kept_R) + int(costs_R[may_R].max()))
    group_R = caps = None
    if constraints.group_N is not None:
        group_R, caps = constraints.group_N[rows], {}
        sizes_G = np.bincount(constraints.group_N)
        own_G = np.bincount(group_R, minlength=len(sizes_G))
        kept_G = np.bincount(group_R[list(keep)], minlength=len(sizes_G))
        for group, cap in (constraints.caps_G or {}).items():
            of_it = more * own_G[group] / max(1, sizes_G[group]) if more < np.inf else 1.0
            caps[group] = min(cap, int(kept_G[group] + np.ceil(of_it * cap)))
    excluded = np.flatnonzero(~(may_R | np.isin(np.arange(len(may_R)), keep)))
    budget = replace(constraints.budget, amount=max(1, amount))
    part = Constraints(costs_R, budget, keep, group_R, caps, excluded)
    if not by_tokens:
        budget = replace(budget, amount=min(budget.amount, part.capacity()))
    return replace(part, budget=budget)


def is_open(constraints: Constraints) -> bool:
    """Say whether anything of a part can be taken at all."""
    return constraints.budget.amount > 0 and constraints.capacity() > 0


@dataclass(frozen=True)
class PartGains:
    """What one part says of what each term can gain: parts of a pool add up.

    Attributes:
        diversity_S: Gains of the part's rows by diversity alone, of the whole pool's coverage,
            falling.
        costs_S: Of these rows, in units of the budget.
        similarity: Near-duplicate pairs within the part's share, chosen to have few.
        near: Near-duplicate pairs that begin in this part, in the whole pool.
        profile: Of coverage.
    """

    diversity_S: np.ndarray
    costs_S: np.ndarray
    similarity: float
    near: float
    profile: CoverageProfile


def part_gains(
    score_R: np.ndarray,
    graph: Neighbours,
    inner: Neighbours,
    start: int,
    n: int,
    constraints: Constraints,
    threshold: float,
) -> PartGains:
    """Compute what a part says of the possible gains; `graph` is its own, `inner` within it."""
    near = float(np.sort(_near_pairs_from(graph, start, threshold)).sum())
    profile = coverage_profile(graph)
    rows = slice(start, start + len(score_R))
    only = Objective(score_R, inner, 0.0, 0.0, 0.0, threshold)
    diversity_S, costs_S, similarity = np.empty(0), np.empty(0), 0.0
    wide = of_part(constraints, rows, MORE)
    if is_open(wide):
        by_tokens = constraints.budget.kind == "tokens"
        order_S, gains = lazy_greedy(replace(only, beta=1.0), wide)
        diversity_S = gains.diversity_N[order_S] * len(score_R) / n
        costs_S = wide.costs_N[order_S] if by_tokens else np.ones(len(order_S))
        narrow = of_part(constraints, rows)
        order_S, gains = lazy_greedy(apart_objective(only), narrow, spend=True)
        similarity = float(gains.penalty_N[order_S].sum())
    return PartGains(diversity_S, costs_S, similarity, near, profile)


def joined_gains(
    parts: list[PartGains], score_N: np.ndarray, floor: float, constraints: Constraints
) -> PossibleGains:
    """Compute what each term can gain on a whole pool, from what its parts say.

    By diversity alone the best rows of all parts are taken: gains in one part hardly depend on
    what is taken in another.
    """
    n, budget = len(score_N), constraints.budget
    by_tokens = budget.kind == "tokens"
    rate_N = score_N / constraints.costs_N if by_tokens else score_N
    by_rate = np.argsort(-rate_N, kind="stable").tolist()
    gradient = score_N[constraints.builder().take_in_order(by_rate)].sum()
    gains_S = np.concatenate([part.diversity_S for part in parts])
    costs_S = np.concatenate([part.costs_S for part in parts])
    order_S = np.argsort(-gains_S / costs_S, kind="stable")
    affordable = np.cumsum(costs_S[order_S]) <= budget.amount
    diversity = floor + gains_S[order_S][affordable].sum()
    alone = Terms(float(gradient), float(diversity), sum(part.similarity for part in parts))
    n_rows = budget.amount
    if by_tokens:
        n_rows = min(constraints.capacity(), round(budget.expected_rows))
    profile = parts[0].profile
    for part in parts[1:]:
        profile = profile + part.profile
    both = n_rows * (n_rows - 1) / (n * (n - 1)) if n > 1 else 0.0
    drawn = Terms(
        float(n_rows * np.sort(score_N).mean()),
        profile.expected(n, n_rows),
        sum(part.near for part in parts) * both,
    )
    return PossibleGains(drawn, alone)


@dataclass(frozen=True)
class Ordered:
    """Rows of a part in the order in which greedy takes them, as far as the budget could reach.

    Attributes:
        rows_S: Positions in the pool.
        rates_S: Gain of each for a unit of the budget, falling; those to be kept come first.
        costs_S: Units of the budget.
    """

    rows_S: np.ndarray
    rates_S: np.ndarray
    costs_S: np.ndarray


def first_round(
    objective: Objective, graph: Neighbours, rows: slice, constraints: Constraints
) -> Ordered:
    """Order the rows of a part by greedy, as if it had the whole budget.

    Parts differ in what their rows are worth: their shares come out of comparing the gains. What
    a row represents elsewhere counts, as if no row of another part did.

    Args:
        objective: Of the whole pool, but for its graph, which is not looked at.
        graph: Of the part's rows and of those near to them elsewhere, see `with_border`.
        rows: Positions of the part's rows.
        constraints: Of the whole pool.
    """
    conditions = of_part(constraints, rows, np.inf)
    if not is_open(conditions):
        nothing = np.empty(0)
        return Ordered(nothing.astype(np.int64), nothing, nothing)
    n_own, n_border = rows.stop - rows.start, len(graph) - (rows.stop - rows.start)
    part = replace(
        objective,
        score_N=np.append(objective.score_N[rows], np.zeros(n_border)),
        neighbours=graph,
        # Of the coverage of these rows, not of the pool's.
        beta=objective.beta * len(graph) / len(objective.score_N),
    )
    group_R = conditions.group_N
    conditions = replace(
        conditions,
        costs_N=np.append(conditions.costs_N, np.ones(n_border, conditions.costs_N.dtype)),
        group_N=None if group_R is None else np.append(group_R, np.zeros(n_border, group_R.dtype)),
        excluded=np.append(conditions.excluded, np.arange(n_own, len(graph))).astype(np.int64),
    )
    order_S, gains = lazy_greedy(part, conditions, spend=True)
    by_tokens = constraints.budget.kind == "tokens"
    costs_S = conditions.costs_N[order_S] if by_tokens else np.ones(len(order_S))
    return Ordered(order_S + rows.start, gains.marginal_N[order_S] / costs_S, costs_S)


def union_of(parts: list[Ordered], constraints: Constraints) -> np.ndarray:
    """Say of each row whether it is chosen from in the second round: union_N.

    The best of all parts by their gains, for a budget that is larger by a quarter, at most as much
    more of a group than its quota, and all that is to be kept.
    """
    rows_S = np.concatenate([part.rows_S for part in parts])
    costs_S = np.concatenate([part.costs_S for part in parts])
    best_S = np.argsort(-np.concatenate([part.rates_S for part in parts]), kind="stable")
    rows_S, costs_S = rows_S[best_S], costs_S[best_S]
    taken_S = np.ones(len(rows_S), dtype=bool)
    if constraints.group_N is not None:
        group_S = constraints.group_N[rows_S]
        for group, cap in (constraints.caps_G or {}).items():
            of_it = np.flatnonzero(group_S == group)
            taken_S[of_it[int(MORE * cap) + AT_LEAST :]] = False
    a_row = costs_S.mean() if len(costs_S) else 0.0
    room = MORE * constraints.budget.amount + AT_LEAST * a_row
    taken_S &= np.cumsum(np.where(taken_S, costs_S, 0)) <= room
    union_N = np.zeros(len(constraints.costs_N), dtype=bool)
    union_N[rows_S[taken_S]] = True
    union_N[list(constraints.keep)] = True
    return union_N


def edges_with(graph: Neighbours, start: int, union_N: np.ndarray) -> Neighbours:
    """Leave out the edges of a part's graph that neither begin nor end in the union.

    A row stays a neighbour of itself, as in any graph.
    """
    owner_E = graph.owners()
    kept_E = union_N[start : start + len(graph)][owner_E] | union_N[graph.rows_E]
    kept_E |= graph.rows_E == owner_E + start
    counts_R = np.bincount(owner_E[kept_E], minlength=len(graph))
    offsets = np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64)
    return Neighbours(offsets, graph.rows_E[kept_E], graph.cosines_E[kept_E], graph.floor_N)


def second_round(
    objective: Objective, union_N: np.ndarray, constraints: Constraints
) -> tuple[np.ndarray, Gains]:
    """Choose among the union of what the parts took, exactly as `lazy_greedy` does.

    Args:
        objective: Of the whole pool; its graph need only have the edges of `edges_with`.
        union_N: Whether a row was taken in the first round.
        constraints: Of the whole pool.

    Returns:
        As `lazy_greedy`; gains of rows outside the union mean nothing.
    """
    outside = ~(union_N & constraints.may_be_taken())
    outside[list(constraints.keep)] = False
    return lazy_greedy(objective, replace(constraints, excluded=np.flatnonzero(outside)))


def _near_pairs_from(graph: Neighbours, start: int, threshold: float) -> np.ndarray:
    owner_E = graph.owners() + np.int64(start)
    kept_E = (graph.cosines_E > threshold) & (graph.rows_E > owner_E)
    return nearness(graph.cosines_E[kept_E], threshold)
