"""One line of plain English for each decision, derived from the numbers that made it.

The rules, so that every reason is true:

* Kept: two clauses, gradient and content; the one with the larger term at the time of selection
  stands first. A term whose coefficients are 0 played no part and is not named. "Typical" and
  "large" stand for a percentile of at least 50, "near-duplicate" for a cosine above the near
  threshold; the nearest row is that of the finished selection.
* Not kept under a budget of rows: the place went to rows with larger gains, the last of them with
  the smallest. The difference to the last kept row's gain is the sum of the differences of the
  three terms; the largest of these is the reason.
* Not kept under a budget of tokens: the first that holds of: its gain is negative; it is
  longer than what is left while its gain per token reaches that of the last kept row; its gain
  reaches that of the last kept row, but not per token; else as for rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Limit
from gradsift.selection.candidates import Settings
from gradsift.selection.greedy import Choice, Gains


@dataclass(frozen=True)
class Evidence:
    """The numbers that reasons are made of; arrays over the pool, percentiles in 0 … 100.

    `nearest_N` is the position of the most similar selected row other than itself, −1 where there
    is none; `cosine_N` its cosine.
    """

    ids: list[str]
    score_N: np.ndarray
    density_pct_N: np.ndarray
    magnitude_pct_N: np.ndarray
    nearest_N: np.ndarray
    cosine_N: np.ndarray
    costs_N: np.ndarray


def write_reasons(
    choice: Choice, evidence: Evidence, settings: Settings, limit: Limit
) -> list[str]:
    """Write the reason for every instance.

    Args:
        choice: What was selected, with the gains where the strategy has any.
        evidence: The numbers.
        settings: The parameters of the selection.
        limit: The budget on this pool.

    Returns:
        One line for each instance.
    """
    n = len(evidence.ids)
    if choice.gains is None:
        return _drawn(choice, n, settings.seed)
    writer = _Writer(choice, choice.gains, evidence, settings, limit)
    rank_N = {int(row): rank for rank, row in enumerate(choice.order_S, start=1)}
    return [
        writer.kept(row, rank_N[row]) if row in rank_N else writer.rejected(row) for row in range(n)
    ]


def _drawn(choice: Choice, n: int, seed: int) -> list[str]:
    drawn = set(choice.order_S.tolist())
    return [
        f"drawn at random (seed {seed})" if row in drawn else f"not drawn (seed {seed})"
        for row in range(n)
    ]


class _Writer:
    def __init__(
        self, choice: Choice, gains: Gains, evidence: Evidence, settings: Settings, limit: Limit
    ) -> None:
        self.gains, self.evidence, self.settings, self.limit = gains, evidence, settings, limit
        self.marginal_N = gains.marginal_N
        self.n_kept = len(choice.order_S)
        self.last = int(choice.order_S[-1])
        self.left = limit.amount - int(evidence.costs_N[choice.order_S].sum())

    def kept(self, row: int, rank: int) -> str:
        head = f"kept (rank {rank} of {self.n_kept})"
        if self.marginal_N[row] < 0:
            # Only the penalty is negative, so it outweighs the rest, and there is a near row.
            return f"{head} to fill the budget: gain {self.marginal_N[row]:.3g}, {self._near(row)}"
        clauses = []
        if self.settings.alpha > 0:
            clauses.append((self.gains.gradient_N[row], self._gradient(row)))
        if self.settings.beta > 0 or self.settings.gamma > 0:
            clauses.append((self.gains.diversity_N[row], self._content(row)))
        clauses.sort(key=lambda clause: -clause[0])
        return f"{head}: " + ", ".join(text for _, text in clauses)

    def rejected(self, row: int) -> str:
        gain, cut = self.marginal_N[row], self.marginal_N[self.last]
        if self.limit.kind == "rows":
            return f"not kept: {self._shortfall(row)}; {_below('gain', gain, cut)}"
        cost = int(self.evidence.costs_N[row])
        rate, cut_rate = gain / cost, cut / self.evidence.costs_N[self.last]
        if gain < 0:
            return f"not kept: adding it would lower the objective by {-gain:.3g}, " + self._near(
                row
            )
        if cost > self.left and rate >= cut_rate:
            return f"not kept: its {cost} tokens do not fit the {self.left} that are left"
        below = _below("gain per token", rate, cut_rate)
        if gain >= cut:
            return f"not kept: {cost} tokens are many for what it adds; {below}"
        return f"not kept: {self._shortfall(row)}; {below}"

    def _shortfall(self, row: int) -> str:
        gains, last = self.gains, self.last
        if self.marginal_N[row] == self.marginal_N[last]:
            return f"budget spent, kept row {self.evidence.ids[last]} is worth as much"
        gradient = gains.gradient_N[last] - gains.gradient_N[row]
        content = gains.diversity_N[last] - gains.diversity_N[row]
        penalty = gains.penalty_N[row] - gains.penalty_N[last]
        if penalty >= max(gradient, content):
            return self._near(row)
        if content >= gradient:
            return (
                f"its content is covered by kept rows (would add "
                f"{gains.diversity_N[row]:.3g}, the last kept row {gains.diversity_N[last]:.3g})"
            )
        return self._gradient_below(row)

    def _near(self, row: int) -> str:
        nearest = self.evidence.ids[self.evidence.nearest_N[row]]
        return f"too close to kept row {nearest} (similarity {self.evidence.cosine_N[row]:.2f})"

    def _content(self, row: int) -> str:
        evidence = self.evidence
        if evidence.nearest_N[row] < 0:
            return "the only row kept"
        cosine = evidence.cosine_N[row]
        if cosine <= self.settings.near_threshold:
            return f"no near-duplicate kept (nearest kept row at {cosine:.2f})"
        nearest = evidence.ids[evidence.nearest_N[row]]
        return f"content like that of kept row {nearest} ({cosine:.2f})"

    def _gradient(self, row: int) -> str:
        density = self.evidence.density_pct_N[row]
        size = self.evidence.magnitude_pct_N[row]
        if self.settings.side == "representative":
            word = "typical" if round(density) >= 50 else "less typical"
            return f"{word} gradient (density percentile {density:.0f})"
        if self.settings.side == "balanced" and self.evidence.score_N[row] == 0:
            return f"gradient outside the typical region (density percentile {density:.0f})"
        word = "large" if round(size) >= 50 else "small"
        return f"{word} gradient (magnitude percentile {size:.0f})"

    def _gradient_below(self, row: int) -> str:
        evidence, last = self.evidence, self.last
        density, size = evidence.density_pct_N, evidence.magnitude_pct_N
        if self.settings.side == "representative":
            word = "less typical than most" if round(density[row]) < 50 else "not typical enough"
            return (
                f"gradient {word} (density percentile {density[row]:.0f}, "
                f"last kept row {density[last]:.0f})"
            )
        if self.settings.side == "balanced" and evidence.score_N[row] == 0:
            return f"gradient outside the typical region (density percentile {density[row]:.0f})"
        return (
            f"gradient not large enough (magnitude percentile {size[row]:.0f}, "
            f"last kept row {size[last]:.0f})"
        )


def _below(what: str, value: float, cut: float) -> str:
    for digits in range(3, 9):
        left, right = f"{value:.{digits}g}", f"{cut:.{digits}g}"
        if left != right:
            return f"{what} {left} < cut {right}"
    return f"{what} {left}, as the last kept row"
