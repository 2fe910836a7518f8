"""Lazy greedy: maximise the objective under a budget of rows or of tokens, or up to the elbow.

Shapes: N instances, S selected, E edges of the neighbour graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

import numpy as np

from gradsift.selection.constraints import Constraints
from gradsift.selection.objective import Objective, nearness

# Rows whose gains are computed together: bounds the memory of a copy of their edges.
_ROWS_AT_A_TIME = 50_000
# A row whose gain was computed more than this many selections ago is computed together with the
# rows next in line, which are as old: less work for each.
_RECENT = 32
_BATCH_ROWS = 32


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


def lazy_greedy(objective: Objective, constraints: Constraints) -> tuple[np.ndarray, Gains]:
    """Select by marginal gain, exactly as greedy does, without computing every gain every time.

    A budget of rows is filled to exactly that many rows, even when gains turn negative: so many
    were asked for. A budget of tokens is a ceiling: the next row is the one with the largest gain
    per token among those that still fit, until none fits or none that fits has a gain of at least
    0 (cost-scaled greedy); if the best single row that fits beside what must be kept beats the
    result, the selection starts from that row instead and is filled up in the same way, which is
    what bounds cost-scaled greedy from below (Leskovec et al., 2007). On equal gains the smaller
    position wins, so callers order the instances by id.

    Returns:
        order_S, positions in the order of selection, and the gains of all instances.
    """
    search = _Search(objective, constraints)
    first_gain_N = search.gains().marginal_N
    fits_N = search.builder.fitting()
    search.fill()
    if search.builder.by_tokens and fits_N.any():
        best = int(np.argmax(np.where(fits_N, first_gain_N, -np.inf)))
        added = search.builder.order[len(constraints.keep) :]
        if first_gain_N[best] > search.gains().marginal_N[added].sum():
            search = _Search(objective, constraints)
            search.take(best)
            search.fill()
    search.refresh_rest()
    return search.builder.taken(), search.gains()


class _Search:
    """The state of one greedy run.

    Gains only fall, so a stale one is an upper bound: rows wait in a heap by it, and only the
    first is computed afresh. The penalty is kept exact: rows taken add to that of their near rows.
    """

    def __init__(self, objective: Objective, constraints: Constraints) -> None:
        n = len(objective.score_N)
        self.objective, self.neighbours = objective, objective.neighbours
        self.covered_N = objective.neighbours.floor_N.copy()
        self.gradient_N = objective.alpha * objective.score_N / objective.expected_rows
        self.diversity_scale = objective.beta / n
        self.penalty_scale = objective.gamma / objective.expected_rows
        self.diversity_N = np.zeros(n)
        self.penalty_N = np.zeros(n)
        self.fresh_at_N = np.zeros(n, dtype=np.int64)
        # One by one, so that a row that must be kept has its gain beside those before it.
        to_keep = constraints.builder().order
        self.builder = replace(constraints, keep=()).builder()
        for row in to_keep:
            self._refresh([row])
            self.take(row)
        self.refresh_rest()
        rows = np.flatnonzero(~self.builder.selected_N)
        rate_N = self.gains().marginal_N / self.builder.cost_N
        self.heap = list(zip((-rate_N[rows]).tolist(), rows.tolist(), strict=True))
        heapify(self.heap)

    def gains(self) -> Gains:
        return Gains(self.gradient_N, self.diversity_N, self.penalty_N)

    def fill(self) -> None:
        builder, heap, fresh_at_N = self.builder, self.heap, self.fresh_at_N
        while heap and builder.left >= 1:
            row = heap[0][1]
            if not builder.fits(row):
                # Nor will it later: budget and groups only shrink.
                heappop(heap)
            elif (age := len(builder.order) - fresh_at_N[row]) > 0:
                rows = self._pop_stale() if age > _RECENT else [heappop(heap)[1]]
                self._refresh(rows)
                for row in rows:
                    heappush(heap, (-self._marginal(row) / float(builder.cost_N[row]), row))
            elif builder.by_tokens and self._marginal(row) < 0:
                return
            else:
                heappop(heap)
                self.take(row)

    def take(self, row: int) -> None:
        self.builder.take(row)
        rows, cosines = self.neighbours.of(row)
        self.covered_N[rows] = np.maximum(self.covered_N[rows], cosines)
        if self.penalty_scale > 0:
            near = cosines > self.objective.similarity_threshold
            # The gains of a selected row stay what they were when it was selected.
            near &= ~self.builder.selected_N[rows]
            if near.any():
                added = nearness(cosines[near], self.objective.similarity_threshold)
                self.penalty_N[rows[near]] += self.penalty_scale * added

    def refresh_rest(self) -> None:
        rest = np.flatnonzero(~self.builder.selected_N)
        for start in range(0, len(rest), _ROWS_AT_A_TIME):
            self._refresh(rest[start : start + _ROWS_AT_A_TIME])

    def _pop_stale(self) -> list[int]:
        newest = len(self.builder.order) - _RECENT
        rows: list[int] = []
        while self.heap and len(rows) < _BATCH_ROWS and self.fresh_at_N[self.heap[0][1]] < newest:
            rows.append(heappop(self.heap)[1])
        return rows

    def _refresh(self, rows: Sequence[int] | np.ndarray) -> None:
        neighbours = self.neighbours
        if len(rows) == 1:
            near, cosines = neighbours.of(rows[0])
            added = cosines - self.covered_N.take(near)
            sums = np.maximum(added, 0, out=added).sum(dtype=np.float64)
        else:
            rows = np.asarray(rows)
            counts = neighbours.offsets[rows + 1] - neighbours.offsets[rows]
            starts = np.cumsum(counts) - counts
            edges = np.arange(counts.sum()) + np.repeat(neighbours.offsets[rows] - starts, counts)
            added = neighbours.cosines_E[edges] - self.covered_N[neighbours.rows_E[edges]]
            sums = np.add.reduceat(np.maximum(added, 0, out=added).astype(np.float64), starts)
        self.diversity_N[rows] = self.diversity_scale * sums
        self.fresh_at_N[rows] = len(self.builder.order)

    def _marginal(self, row: int) -> float:
        return float(self.gradient_N[row] + self.diversity_N[row] - self.penalty_N[row])


def elbow(gain_S: np.ndarray) -> int:
    """Find where the curve of summed gains bends: a number of rows.

    Rule: rows are counted up to the first whose gain is negative; the sum of the gains over these,
    both axes scaled to 1, is compared with the straight line from (0, 0) to (1, 1), along which
    every row would be worth the same; the elbow is where the curve lies farthest above it, that is,
    where the gain of one more row falls below the mean gain (Kneedle, Satopää et al., 2011, without
    smoothing: greedy's gains fall, so that the curve is concave). If no point lies above the line,
    all rows are worth the same and all are counted. At least 1.
    """
    negative = np.flatnonzero(gain_S < 0)
    n = int(negative[0]) if len(negative) else len(gain_S)
    if n <= 1:
        return 1
    summed = np.concatenate([[0.0], np.cumsum(gain_S[:n])])
    if summed[-1] <= 0:
        return 1
    above = summed / summed[-1] - np.arange(n + 1) / n
    best = int(np.argmax(above))
    return best if above[best] > 1e-9 else n
