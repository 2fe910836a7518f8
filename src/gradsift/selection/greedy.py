"""Lazy greedy: maximise the objective under a budget of rows or of tokens, or up to the elbow.

Shapes: N instances, S selected, E edges of the neighbour graph, B blocks of instances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradsift.selection.constraints import Constraints
from gradsift.selection.objective import Objective, nearness

# Rows whose sums are computed together: bounds the memory of a copy of their edges.
_ROWS_AT_A_TIME = 50_000
# Sums are computed anew rather than corrected if more than this part of all edges is touched.
_MANY_EDGES = 0.25


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


def lazy_greedy(
    objective: Objective, constraints: Constraints, *, spend: bool = False
) -> tuple[np.ndarray, Gains]:
    """Select by marginal gain, exactly as greedy does, without looking at every gain every time.

    A budget of rows is filled to exactly that many rows, even when gains turn negative: so many
    were asked for. A budget of tokens is a ceiling: the next row is the one with the largest gain
    per token among those that still fit, until none fits or none that fits has a gain of at least
    0 (cost-scaled greedy); if the best single row that fits beside what must be kept beats the
    result, the selection starts from that row instead and is filled up in the same way, which is
    what bounds cost-scaled greedy from below (Leskovec et al., 2007). With `spend` it is filled
    like one of rows, whatever the gains. On equal gains the smaller position wins, so callers order
    the instances by id.

    Returns:
        order_S, positions in the order of selection, and the gains of all instances.
    """
    search = _Search(objective, constraints)
    first_gain_N = search.gains().marginal_N
    fits_N = search.builder.fitting()
    search.fill(spend)
    if search.builder.by_tokens and not spend and fits_N.any():
        best = int(np.argmax(np.where(fits_N, first_gain_N, -np.inf)))
        added = search.builder.order[len(constraints.keep) :]
        if first_gain_N[best] > search.gains().marginal_N[added].sum():
            search = _Search(objective, constraints)
            search.take(best)
            search.fill()
    return search.builder.taken(), search.gains()


class _Search:
    """The state of one greedy run.

    Gains are kept exact: what a row taken covers is subtracted from the sums of the rows that would
    have covered it, too, without rounding, since cosines are multiples of 2⁻²⁰. Gains only fall, so
    the largest of a block that was found earlier is an upper bound, and blocks are looked at again
    only while theirs is the highest.
    """

    def __init__(self, objective: Objective, constraints: Constraints) -> None:
        n, weights = len(objective.score_N), objective.weights
        self.objective, self.neighbours = objective, objective.neighbours
        self.covered_N = objective.neighbours.floor_N.copy()
        self.gradient_N = weights.gradient * objective.score_N
        self.diversity_scale, self.penalty_scale = weights.diversity / n, weights.similarity
        # Of each row: how much better it would represent its neighbours than what was taken.
        self.sums_N = np.zeros(n)
        self.sums_when_taken: list[float] = []
        self.penalty_N = np.zeros(n)
        # The gradient's gain of rows that may still be taken.
        self.open_N = self.gradient_N.copy()
        # One by one, so that a row that must be kept has its gain beside those before it.
        to_keep = constraints.builder().order
        self.builder = replace(constraints, keep=()).builder()
        if self.diversity_scale > 0:
            self._sum_all()
        for row in to_keep:
            self.take(row)
        self.block_rows = max(1, round(n**0.5))
        starts = np.arange(0, n, self.block_rows)
        self.highest_B = np.maximum.reduceat(self._rates(slice(None)), starts)

    def gains(self) -> Gains:
        sums_N = self.sums_N.copy()
        # Of a selected row they stay what they were when it was selected.
        sums_N[self.builder.order] = self.sums_when_taken
        return Gains(self.gradient_N, self.diversity_scale * sums_N, self.penalty_N.copy())

    def fill(self, spend: bool = False) -> None:
        builder = self.builder
        while builder.left >= 1 and (row := self._best()) is not None:
            if not builder.fits(row):
                # Nor will it later: budget and groups only shrink.
                self._close(row)
            elif builder.by_tokens and not spend and self._rates(slice(row, row + 1))[0] < 0:
                return
            else:
                self.take(row)

    def take(self, row: int) -> None:
        self.builder.take(row)
        self.sums_when_taken.append(self.sums_N[row])
        self._close(row)
        rows, cosines = self.neighbours.of(row)
        if self.diversity_scale > 0:
            closer = cosines > self.covered_N[rows]
            self._cover(rows[closer], cosines[closer])
        if self.penalty_scale > 0:
            near = cosines > self.objective.similarity_threshold
            near &= ~self.builder.selected_N[rows]
            if near.any():
                added = nearness(cosines[near], self.objective.similarity_threshold)
                self.penalty_N[rows[near]] += self.penalty_scale * added

    def _best(self) -> int | None:
        """Return the row with the highest rate, the first one on ties."""
        while True:
            block = int(self.highest_B.argmax())
            start = block * self.block_rows
            rate_R = self._rates(slice(start, start + self.block_rows))
            at = int(rate_R.argmax())
            if rate_R[at] == self.highest_B[block]:
                return start + at if rate_R[at] > -np.inf else None
            self.highest_B[block] = rate_R[at]

    def _close(self, row: int) -> None:
        self.open_N[row] = -np.inf

    def _rates(self, rows: slice) -> np.ndarray:
        """Compute the gains of rows for each unit of cost; −∞ for those that are not open."""
        gain_R = self.open_N[rows] + self.diversity_scale * self.sums_N[rows] - self.penalty_N[rows]
        return gain_R / self.builder.cost_N[rows] if self.builder.by_tokens else gain_R

    def _cover(self, rows: np.ndarray, cosines: np.ndarray) -> None:
        """Note that rows are represented better now: as well as these cosines say."""
        upper, lower, graph = cosines, self.covered_N[rows], self.neighbours
        self.covered_N[rows] = cosines
        if len(rows) == 1:  # As most often: the row taken, which nothing else is near to.
            edges = slice(graph.offsets[rows[0]], graph.offsets[rows[0] + 1])
        else:
            counts = graph.offsets[rows + 1] - graph.offsets[rows]
            if counts.sum() > _MANY_EDGES * len(graph.rows_E):
                self._sum_all()
                return
            starts = np.cumsum(counts) - counts
            edges = np.arange(counts.sum()) + np.repeat(graph.offsets[rows] - starts, counts)
            upper, lower = np.repeat(upper, counts), np.repeat(lower, counts)
        lost = np.minimum(graph.cosines_E[edges], upper)
        lost -= lower
        losing = lost > 0
        others = graph.rows_E[edges][losing]
        np.subtract.at(self.sums_N, others, lost[losing].astype(np.float64))

    def _sum_all(self) -> None:
        graph, n = self.neighbours, len(self.sums_N)
        for start in range(0, n, _ROWS_AT_A_TIME):
            offsets = graph.offsets[start : min(start + _ROWS_AT_A_TIME, n) + 1]
            edges = slice(offsets[0], offsets[-1])
            added = graph.cosines_E[edges] - self.covered_N[graph.rows_E[edges]]
            added = np.maximum(added, 0, out=added).astype(np.float64)
            self.sums_N[start : start + len(offsets) - 1] = np.add.reduceat(
                added, offsets[:-1] - offsets[0]
            )


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
