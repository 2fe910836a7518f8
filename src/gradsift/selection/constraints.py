"""How much may be selected, and what else limits it: budget, quotas, rows to keep and to drop.

Shapes: N instances of the pool, G groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradsift.errors import GradsiftError

_HOW = (
    'Write "50%" (half of the instances), "500" (rows), "20000tok" (tokens) or "auto"; '
    "in Python also 0.5 or 500."
)


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget on one pool.

    `amount` counts rows or tokens. `expected_rows` is the number of rows that the budget stands
    for: itself for rows; for tokens, the budget divided by the mean tokens of an instance.
    """

    kind: Literal["rows", "tokens"]
    amount: int
    expected_rows: float


@dataclass(frozen=True)
class Budget:
    """A budget as written: a fraction of the instances, rows, tokens, or "auto" (amount 1)."""

    kind: Literal["fraction", "rows", "tokens", "auto"]
    amount: float

    def __str__(self) -> str:
        if self.kind == "auto":
            return "auto"
        if self.kind == "fraction":
            return f"{100 * self.amount:.10g}%"
        return f"{int(self.amount)}" if self.kind == "rows" else f"{int(self.amount)}tok"

    def resolve(self, n_instances: int, total_tokens: int) -> ResolvedBudget:
        """Apply the budget to a pool of so many instances that can be selected, and their tokens.

        A fraction is one of the instances, not of tokens (dropped rows do not count), rounded to
        the nearest row, a half upwards. "auto" may take all.
        """
        if n_instances < 1:
            raise GradsiftError(
                "no instance can be selected: every row was dropped. "
                "The reasons stand in pool.parquet."
            )
        if self.kind == "tokens":
            return self._tokens(n_instances, total_tokens)
        rows = self.amount if self.kind == "rows" else self.amount * n_instances
        # 1e-9 forgives binary fractions: 0.145 * 100 is 14.499999999999998.
        rows = math.floor(rows + 0.5 + 1e-9)
        if rows < 1:
            raise GradsiftError(
                f"budget {self} of {n_instances} instances is less than one row: "
                f"give at least {math.ceil(100 / n_instances)}%, or a number of rows."
            )
        if rows > n_instances:
            raise GradsiftError(
                f"budget {self} asks for {rows} rows, but the pool has {n_instances} instances "
                f"that can be selected: give at most {n_instances}, or a percentage."
            )
        return ResolvedBudget("rows", rows, float(rows))

    def _tokens(self, n_instances: int, total_tokens: int) -> ResolvedBudget:
        tokens = int(self.amount)
        if tokens > total_tokens:
            raise GradsiftError(
                f"budget {self} is more than the pool's {total_tokens} tokens: give at most "
                f"{total_tokens}tok, or a percentage."
            )
        return ResolvedBudget("tokens", tokens, tokens * n_instances / total_tokens)


def parse_budget(value: str | int | float) -> Budget:
    """Read a budget: "50%", "500" (rows), "20000tok" or "auto", or a number.

    An int is a number of rows, a float in (0, 1] a fraction of the instances: 1.0 is all of them,
    1 is one row. A text such as "0.5" or "1.5" is refused: it may mean a fraction, a percentage or
    a number of rows.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GradsiftError(f"budget is {value!r}, expected a text or a number. {_HOW}")
    if isinstance(value, int):
        return _positive("rows", value, value)
    if not 0 < value <= 1:
        raise GradsiftError(
            f"budget is the fraction {value!r}, expected above 0 and at most 1.0 (all). {_HOW}"
        )
    return Budget("fraction", value)


def _parse_text(text: str) -> Budget:
    if text.strip() == "auto":
        return Budget("auto", 1.0)
    match = re.fullmatch(r"([+-]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*(%|tok|tokens)?", text.strip())
    if match is None:
        raise GradsiftError(f"budget {text!r} is not understood. {_HOW}")
    number, unit = match[1].replace("_", ""), match[2]
    if unit == "%":
        if float(number) > 100:
            raise GradsiftError(f"budget {text!r} is more than 100%. {_HOW}")
        return _positive("fraction", float(number) / 100, text)
    if "." in number:
        raise GradsiftError(
            f"budget {text!r} may mean a fraction, a percentage or a number of rows. {_HOW}"
        )
    return _positive("tokens" if unit else "rows", int(number), text)


def _positive(
    kind: Literal["fraction", "rows", "tokens"], amount: float, written: object
) -> Budget:
    if amount <= 0:
        raise GradsiftError(f"budget is {written!r}, expected more than 0. {_HOW}")
    return Budget(kind, amount)


@dataclass(frozen=True)
class Constraints:
    """The conditions of a selection.

    Attributes:
        costs_N: Tokens of each instance, above 0; they matter for a budget of tokens only.
        budget: On this pool.
        keep: Positions that are taken first.
        group_N: The group of each instance (its source, say), or None for no groups.
        caps_G: Most rows of each group, as far as it has a limit.
        excluded: Positions that are never taken.
    """

    costs_N: np.ndarray
    budget: ResolvedBudget
    keep: tuple[int, ...] = ()
    group_N: np.ndarray | None = None
    caps_G: dict[int, int] | None = None
    excluded: Sequence[int] | np.ndarray = ()

    def builder(self) -> SubsetBuilder:
        """Begin a subset with what must be kept."""
        self.require_capacity()
        builder = SubsetBuilder(self)
        for row in self.keep:
            if not builder.fits(row):
                raise GradsiftError(
                    "the rows that must be kept do not fit the budget or the quotas: "
                    f"{len(builder.order)} of {len(self.keep)} fit. Raise the budget, or shorten "
                    "the list."
                )
            builder.take(row)
        return builder

    def capacity(self) -> int:
        """Count the rows that may be taken, whatever the budget."""
        may_N = self.may_be_taken()
        if self.group_N is None:
            return int(may_N.sum())
        caps_G = self.caps_G or {}
        counts = np.bincount(self.group_N[may_N])
        return sum(min(int(c), caps_G.get(g, int(c))) for g, c in enumerate(counts))

    def may_be_taken(self) -> np.ndarray:
        """Say of every row whether it may be taken at all, whatever else is."""
        may_N = np.ones(len(self.costs_N), dtype=bool)
        may_N[np.asarray(self.excluded, dtype=np.intp)] = False
        if self.group_N is not None:
            closed = [group for group, cap in (self.caps_G or {}).items() if cap < 1]
            may_N &= ~np.isin(self.group_N, closed)
        return may_N

    def may_be_chosen(self) -> np.ndarray:
        """Say of every row whether it may be taken, and is not on the list of rows to keep."""
        may_N = self.may_be_taken()
        may_N[list(self.keep)] = False
        return may_N

    def require_capacity(self) -> None:
        """Refuse conditions that leave no row, or fewer than the budget asks for.

        Raises:
            GradsiftError: Saying which.
        """
        capacity, amount = self.capacity(), self.budget.amount
        by_tokens = self.budget.kind == "tokens"
        if capacity == 0:
            raise GradsiftError(
                "quotas and the list of rows to drop leave no row. Raise a quota, or shorten the "
                "list."
            )
        if not by_tokens and capacity < amount:
            raise GradsiftError(
                f"quotas and the list of rows to drop leave {capacity} rows, but the budget asks "
                f"for {amount}. Raise a quota, shorten the list, or lower the budget."
            )
        least = self.costs_N[self.may_be_taken()].min()
        if by_tokens and least > amount:
            raise GradsiftError(
                f"budget of {amount} tokens: the shortest instance has {least}. "
                f"Give at least {least}tok."
            )


class SubsetBuilder:
    """The state of one selection: what was taken, in order, and what may still be."""

    def __init__(self, constraints: Constraints) -> None:
        n, budget = len(constraints.costs_N), constraints.budget
        self.by_tokens = budget.kind == "tokens"
        self.cost_N = constraints.costs_N.astype(np.float64) if self.by_tokens else np.ones(n)
        self.left = float(budget.amount)
        self.order: list[int] = []
        self.selected_N = np.zeros(n, dtype=bool)
        self._excluded_N = np.zeros(n, dtype=bool)
        self._excluded_N[np.asarray(constraints.excluded, dtype=np.intp)] = True
        self._group_N = constraints.group_N
        self._capacity_G = dict(constraints.caps_G or {})

    def fits(self, row: int) -> bool:
        """Say whether a row was not taken yet, and budget and group have room for it."""
        if self.selected_N[row] or self._excluded_N[row] or self.cost_N[row] > self.left:
            return False
        return self._group_N is None or self._capacity_G.get(int(self._group_N[row]), 1) > 0

    def fitting(self) -> np.ndarray:
        """Say of every row what `fits` says."""
        fits_N = ~(self.selected_N | self._excluded_N) & (self.cost_N <= self.left)
        if self._group_N is not None:
            full = [group for group, left in self._capacity_G.items() if left <= 0]
            fits_N &= ~np.isin(self._group_N, full)
        return fits_N

    def take(self, row: int) -> None:
        """Take a row that fits."""
        assert self.fits(row), row
        self.order.append(row)
        self.selected_N[row] = True
        self.left -= self.cost_N[row]
        if self._group_N is not None:
            group = int(self._group_N[row])
            if group in self._capacity_G:
                self._capacity_G[group] -= 1

    def take_in_order(self, rows: Iterable[int]) -> np.ndarray:
        """Take rows, best first, leaving out those that do not fit; return all that was taken."""
        for row in rows:
            if self.left < 1:
                break
            if self.fits(row):
                self.take(row)
        return self.taken()

    def taken(self) -> np.ndarray:
        """Return the positions of what was taken, in that order."""
        return np.array(self.order, dtype=np.intp)


def quotas(
    source: Sequence[str] | None, quota: Mapping[str, str | int]
) -> tuple[np.ndarray | None, dict[int, int] | None]:
    """Turn most rows of a source, or percentages of its rows, into group_N and caps_G.

    "*" is every source that is not named. None and None without a quota.
    """
    if not quota:
        return None, None
    if source is None:
        raise GradsiftError(
            "quotas are for sources, but no row says where it comes from: capture again with "
            "`source_column`."
        )
    names, group_N = np.unique(np.asarray(source, dtype=object).astype(str), return_inverse=True)
    unknown = [name for name in quota if name != "*" and name not in names]
    if unknown:
        raise GradsiftError(
            f"quota for source {unknown[0]!r}: there is none of that name; there are "
            f"{', '.join(map(repr, names[:20].tolist()))}."
        )
    counts, caps_G = np.bincount(group_N), {}
    for group, name in enumerate(names):
        amount = quota.get(str(name), quota.get("*"))
        if amount is not None:
            caps_G[group] = _quota_rows(str(name), amount, int(counts[group]))
    return group_N, caps_G


def _quota_rows(name: str, amount: str | int, n_rows: int) -> int:
    text = str(amount).strip()
    number = text.removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0 or (text.endswith("%") and value > 100):
        raise GradsiftError(
            f"quota {name}={amount}: expected a number of rows, as in {name}=500, or a percentage "
            "of the source's rows, as in 25%."
        )
    return round(value * n_rows / 100) if text.endswith("%") else int(value)
