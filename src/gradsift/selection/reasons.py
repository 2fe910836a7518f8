"""One line of plain English for each decision, derived from the numbers that made it.

How it is chosen, so that every reason is true:

* Rows on the user's lists, and rows of a source whose quota was spent although they were worth a
  place, say so first.
* Strategies that maximise the objective. Kept: two clauses, gradient and content; the one with the
  larger term at the time of selection stands first. A term whose coefficients are 0, or that can
  gain nothing, played no part and is not named. "Typical" and "large" stand for a percentile of at
  least 50, "near-duplicate" for a cosine above the similarity threshold; the nearest row is that of
  the finished selection.
  Not kept under a budget of rows: the place went to rows with larger gains, the last of them with
  the smallest. The difference to the last kept row's gain is the sum of the differences of the
  three terms; the largest of these is the reason. Not kept under a budget of tokens: the first that
  holds of: its gain is negative; it is longer than what is left while its gain per token reaches
  that of the last kept row; its gain reaches that of the last kept row, but not per token; else as
  for rows.
* Other strategies: the number they go by, beside that of the last kept row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.selection.constraints import Constraints
from gradsift.selection.greedy import Gains
from gradsift.selection.joined_scores import words_of
from gradsift.selection.scores import ScoredRow
from gradsift.selection.strategies.base import Choice

# Of rows on which a list of the user's or a quota decided, whatever they are worth.
_KEEP_LIST = "kept: on the list of rows to keep"
_DROP_LIST = "not kept: on the list of rows to drop"
_LIST_SPENDS = "not kept: the list of rows to keep spends the budget"
_QUOTA = "not kept: the quota of source "
NOT_BY_WORTH = (_KEEP_LIST, _DROP_LIST, _LIST_SPENDS, _QUOTA)


# What a score does not like of a gradient.
_AGAINST = {
    "density": "less typical",
    "high-norm": "small",
    "high-norm-in-density": "small",
    "low-norm": "large",
}


@dataclass(frozen=True)
class Evidence:
    """The numbers that reasons are made of; arrays over the pool, percentiles in 0 … 100.

    `nearest_N` is the position of the most similar selected row other than itself, −1 where there
    is none; `cosine_N` its cosine; `parts` the scores that the score was joined from.
    """

    ids: Sequence[str]
    score_N: np.ndarray
    density_pct_N: np.ndarray
    magnitude_pct_N: np.ndarray
    nearest_N: np.ndarray
    cosine_N: np.ndarray
    source: Sequence[str] | None
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a selection came to, as far as the reason of a single row asks.

    Attributes:
        rank_N: 1 for the first selected, 0 for those not selected.
        n_kept: Selected rows.
        last: Position of the last selected row; arrays hold it, wherever its own place is.
        left: Units of the budget that are left.
        full: Groups whose quota is spent, and the quotas.
        n_listed: Rows on the list of rows to keep.
    """

    rank_N: np.ndarray
    n_kept: int
    last: int
    left: int
    full: Mapping[int, int]
    n_listed: int


def outcome_of(choice: Choice, constraints: Constraints) -> Outcome:
    """Return what a choice came to."""
    order_S, costs_N = choice.order_S, constraints.costs_N
    rank_N = np.zeros(len(costs_N), dtype=np.int64)
    rank_N[order_S] = np.arange(1, len(order_S) + 1)
    left = constraints.budget.amount - int(costs_N[order_S].sum())
    full = _full_groups(choice, constraints)
    n_listed = len(constraints.keep)
    return Outcome(rank_N, len(order_S), int(order_S[-1]), left, full, n_listed)


def write_reasons(
    choice: Choice,
    evidence: Evidence,
    config: SelectionConfig,
    constraints: Constraints,
    outcome: Outcome | None = None,
) -> list[str]:
    """Write the reason for every instance; `outcome` where arrays hold a part of the pool alone."""
    outcome = outcome_of(choice, constraints) if outcome is None else outcome
    lists = _Lists(choice, evidence, constraints, outcome)
    if choice.measure is not None:
        writer = _Measured(choice, constraints, outcome)
    elif choice.gains is not None:
        writer = _Gained(choice.gains, evidence, config, constraints, outcome)
    else:
        writer = _Drawn(config.seed)
    lines = []
    for row, rank in zip(range(len(evidence.ids)), outcome.rank_N.tolist(), strict=False):
        special = lists.reason(row, kept=rank > 0)
        if special is not None:
            lines.append(special)
        elif rank > 0:
            lines.append(writer.kept(row, rank))
        else:
            lines.append(writer.rejected(row))
    return lines


class _Lists:
    """What the user's lists and quotas decided."""

    def __init__(
        self, choice: Choice, evidence: Evidence, constraints: Constraints, outcome: Outcome
    ) -> None:
        self.outcome, self.full, self.source = outcome, outcome.full, evidence.source
        self.keep, self.excluded = set(constraints.keep), {*map(int, constraints.excluded)}
        self.worth_N = _worth(choice, constraints)
        self.group_N = constraints.group_N

    def reason(self, row: int, *, kept: bool) -> str | None:
        if row in self.keep:
            return _KEEP_LIST
        if row in self.excluded:
            return _DROP_LIST
        if not kept and self.outcome.n_kept == self.outcome.n_listed:
            return _LIST_SPENDS
        if kept or self.group_N is None or int(self.group_N[row]) not in self.full:
            return None
        if self.worth_N is not None and self.worth_N[row] < self.worth_N[self.outcome.last]:
            return None
        assert self.source is not None
        cap = self.full[int(self.group_N[row])]
        return f"{_QUOTA}{self.source[row]!r} ({cap} rows) was spent"


def _full_groups(choice: Choice, constraints: Constraints) -> dict[int, int]:
    if constraints.group_N is None or not constraints.caps_G:
        return {}
    taken = np.bincount(
        constraints.group_N[choice.order_S], minlength=int(constraints.group_N.max()) + 1
    )
    return {group: cap for group, cap in constraints.caps_G.items() if taken[group] >= cap}


def _worth(choice: Choice, constraints: Constraints) -> np.ndarray | None:
    # Larger is better, comparable with the last kept row; None for a draw.
    if choice.gains is not None:
        costs_N = constraints.costs_N if constraints.budget.kind == "tokens" else 1
        return choice.gains.marginal_N / costs_N
    if choice.value_N is None:
        return None
    return -choice.value_N if choice.low_first else choice.value_N


class _Drawn:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def kept(self, row: int, rank: int) -> str:
        return f"drawn at random (seed {self.seed})"

    def rejected(self, row: int) -> str:
        return f"not drawn (seed {self.seed})"


class _Measured:
    def __init__(self, choice: Choice, constraints: Constraints, outcome: Outcome) -> None:
        assert choice.value_N is not None
        self.value_N, self.measure = choice.value_N, choice.measure
        self.first = "low" if choice.low_first else "high"
        self.n_kept, self.cut = outcome.n_kept, self.value_N[outcome.last]
        self.by_tokens = constraints.budget.kind == "tokens"
        self.costs_N, self.left = constraints.costs_N, outcome.left

    def kept(self, row: int, rank: int) -> str:
        return f"kept (rank {rank} of {self.n_kept}): {self._value(row)}, {self.first} first"

    def rejected(self, row: int) -> str:
        if np.isnan(self.value_N[row]):
            return f"not kept: no {self.measure} could be computed"
        if self.by_tokens and self.costs_N[row] > self.left and self._ahead(row):
            return (
                f"not kept: its {self.costs_N[row]} tokens did not fit what was left "
                f"({self._value(row)})"
            )
        return f"not kept: {self._value(row)}, last kept row {self.cut:.3g}"

    def _ahead(self, row: int) -> bool:
        value = self.value_N[row]
        return value <= self.cut if self.first == "low" else value >= self.cut

    def _value(self, row: int) -> str:
        return f"{self.measure} {self.value_N[row]:.3g}"


class _Gained:
    def __init__(
        self,
        gains: Gains,
        evidence: Evidence,
        config: SelectionConfig,
        constraints: Constraints,
        outcome: Outcome,
    ) -> None:
        self.gains, self.evidence, self.config = gains, evidence, config
        self.kept_because, self.rejected_because = words_of(config)
        self.by_tokens, self.costs_N = constraints.budget.kind == "tokens", constraints.costs_N
        self.marginal_N = gains.marginal_N
        self.n_kept, self.last, self.left = outcome.n_kept, outcome.last, outcome.left

    def kept(self, row: int, rank: int) -> str:
        head = f"kept (rank {rank} of {self.n_kept})"
        if self.marginal_N[row] < 0:
            # Only the penalty is negative, so it outweighs the rest, and there is a near row.
            return f"{head} to fill the budget: gain {self.marginal_N[row]:.3g}, {self._near(row)}"
        clauses = []
        if self.gains.gradient_N.any():
            clauses.append((self.gains.gradient_N[row], self._gradient(row)))
        if self.gains.diversity_N.any() or self.gains.penalty_N.any() or not clauses:
            clauses.append((self.gains.diversity_N[row], self._content(row)))
        clauses.sort(key=lambda clause: -clause[0])
        texts = [text for _, text in clauses]
        against = _AGAINST.get(self.config.score)
        if len(texts) > 1 and against is not None:
            # What speaks against the row stands last, and says so.
            word = f"although its gradient is {against}"
            texts = [text.replace(f"{against} gradient", word) for text in texts]
            texts.sort(key=lambda text: text.startswith(word))
        return f"{head}: " + ", ".join(texts)

    def rejected(self, row: int) -> str:
        gain, cut = self.marginal_N[row], self.marginal_N[self.last]
        if not self.by_tokens:
            return f"not kept: {self._shortfall(row)}; {_below('gain', gain, cut)}"
        cost = int(self.costs_N[row])
        rate, cut_rate = gain / cost, cut / self.costs_N[self.last]
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
            return "the only row kept" if self.n_kept == 1 else "no kept row among its neighbours"
        cosine = evidence.cosine_N[row]
        if cosine <= self.config.similarity_threshold:
            return f"no near-duplicate kept (nearest kept row at {cosine:.2f})"
        nearest = evidence.ids[evidence.nearest_N[row]]
        return f"content like that of kept row {nearest} ({cosine:.2f})"

    def _gradient(self, row: int) -> str:
        return self.kept_because(self._scored(row))

    def _gradient_below(self, row: int) -> str:
        return self.rejected_because(self._scored(row), self._scored(self.last))

    def _scored(self, row: int) -> ScoredRow:
        evidence = self.evidence
        return ScoredRow(
            evidence.score_N[row],
            evidence.density_pct_N[row],
            evidence.magnitude_pct_N[row],
            "response_length" in self.config.detrend,
            {name: score_N[row] for name, score_N in evidence.parts.items()},
        )


def _below(what: str, value: float, cut: float) -> str:
    for digits in range(3, 9):
        left, right = f"{value:.{digits}g}", f"{cut:.{digits}g}"
        if left != right:
            return f"{what} {left} < cut {right}"
    return f"{what} {left}, as the last kept row"
