"""Lazy greedy: maximise the objective under a budget of rows or of tokens.

Shapes: N instances, S selected, R rows evaluated together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Limit
from gradsift.selection.objective import Objective, blocks

# Rows whose gain is computed afresh together. More wastes work, fewer wastes calls.
_BATCH_ROWS = 16


@dataclass(frozen=True)
class Gains:
    """What each instance adds to the objective: when it was selected, else at the end.

    marginal_N = gradient_N + diversity_N − penalty_N; the coefficients are included.
    """

    gradient_N: np.ndarray
    diversity_N: np.ndarray
    penalty_N: np.ndarray

    @property
    def marginal_N(self) -> np.ndarray:
        """The marginal gain of each instance."""
        return self.gradient_N + self.diversity_N - self.penalty_N


@dataclass(frozen=True)
class Choice:
    """Positions in the order of their selection, and the gains where the strategy has any."""

    order_S: np.ndarray
    gains: Gains | None


def lazy_greedy(objective: Objective, costs_N: np.ndarray, limit: Limit) -> Choice:
    """Select by marginal gain, exactly as greedy does, without computing every gain every time.

    A budget of rows is filled to exactly that many rows, even when gains turn negative: so many
    were asked for. A budget of tokens is a ceiling: the next row is the one with the largest gain
    per token among those that still fit, until none fits or none that fits has a gain of at least
    0; if the best single row that fits the whole budget beats the result, the selection starts
    from that row instead and is filled up in the same way. On equal gains the smaller position
    wins, so callers order the instances by id.

    Args:
        objective: What to maximise.
        costs_N: Tokens of each instance, above 0; they matter for a budget of tokens only.
        limit: The budget.

    Returns:
        The order of selection and the gains of all instances.

    Raises:
        ValueError: If no instance fits a budget of tokens.
    """
    refuse_if_nothing_fits(costs_N, limit)
    search = _Search(objective, costs_N, limit)
    first_gain_N = search.gains().marginal_N
    search.fill()
    if limit.kind == "tokens":
        first_gain_N = np.where(costs_N <= limit.amount, first_gain_N, -np.inf)
        best = int(np.argmax(first_gain_N))
        selected_gain = search.gains().marginal_N[search.order].sum()
        if first_gain_N[best] > selected_gain:
            search = _Search(objective, costs_N, limit)
            search.take(best)
            search.fill()
    search.refresh(np.flatnonzero(~search.selected_N))
    return Choice(np.array(search.order, dtype=np.intp), search.gains())


def refuse_if_nothing_fits(costs_N: np.ndarray, limit: Limit) -> None:
    """Refuse a budget of tokens that is below the shortest instance.

    Args:
        costs_N: Tokens of each instance.
        limit: The budget.

    Raises:
        ValueError: If it is.
    """
    if limit.kind == "tokens" and costs_N.min() > limit.amount:
        raise ValueError(
            f"budget of {limit.amount} tokens: the shortest instance has {costs_N.min()}. "
            f"Give at least {costs_N.min()}tok."
        )


class _Search:
    """The state of one greedy run.

    The gradient term never changes and the penalty is kept exact by adding one row per selection,
    so only the diversity gain is lazy: a stale one is an upper bound.
    """

    def __init__(self, objective: Objective, costs_N: np.ndarray, limit: Limit) -> None:
        n = len(objective.score_N)
        self.objective = objective
        self.cost_N = np.ones(n) if limit.kind == "rows" else costs_N.astype(np.float64)
        self.limit = limit
        self.left = float(limit.amount)
        self.order: list[int] = []
        self.selected_N = np.zeros(n, dtype=bool)
        self.covered_N = np.zeros(n)
        self.gradient_N = objective.alpha * objective.score_N / objective.expected_rows
        self.diversity_N = np.zeros(n)
        self.penalty_N = np.zeros(n)
        self.fresh_at_N = np.full(n, -1)
        self.refresh(np.arange(n))

    def gains(self) -> Gains:
        return Gains(self.gradient_N, self.diversity_N, self.penalty_N)

    def fill(self) -> None:
        while True:
            allowed_N = ~self.selected_N & (self.cost_N <= self.left)
            if not allowed_N.any():
                return
            best = self._best(allowed_N)
            gain = self.gradient_N[best] + self.diversity_N[best] - self.penalty_N[best]
            if self.limit.kind == "tokens" and gain < 0:
                return
            self.take(best)

    def take(self, row: int) -> None:
        self.order.append(row)
        self.selected_N[row] = True
        self.left -= self.cost_N[row]
        objective, rows_R = self.objective, np.array([row])
        np.maximum(self.covered_N, objective.similarity.cosines(rows_R)[0], out=self.covered_N)
        if objective.gamma > 0:
            near_N = objective.similarity.near(rows_R)[0]
            # The gains of a selected row stay what they were when it was selected.
            near_N[self.selected_N] = 0
            self.penalty_N += objective.gamma / objective.expected_rows * near_N

    def refresh(self, rows: np.ndarray) -> None:
        scale = self.objective.beta / len(self.covered_N)
        for block in blocks(len(rows)) if scale > 0 else ():
            rows_R = rows[block]
            added_RN = self.objective.similarity.cosines(rows_R) - self.covered_N
            self.diversity_N[rows_R] = scale * np.maximum(added_RN, 0, out=added_RN).sum(axis=1)
        self.fresh_at_N[rows] = len(self.order)

    def _best(self, allowed_N: np.ndarray) -> int:
        while True:
            bound_N = (self.gradient_N + self.diversity_N - self.penalty_N) / self.cost_N
            bound_N[~allowed_N] = -np.inf
            best = int(np.argmax(bound_N))
            if self.fresh_at_N[best] == len(self.order):
                return best
            bound_N[self.fresh_at_N == len(self.order)] = -np.inf
            stale = np.argpartition(-bound_N, min(_BATCH_ROWS, len(bound_N)) - 1)[:_BATCH_ROWS]
            self.refresh(stale[bound_N[stale] > -np.inf])
