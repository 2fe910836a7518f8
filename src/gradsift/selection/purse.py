"""What may still be taken: the budget, limits for each group of rows, rows that must be kept.

Shapes: N instances of the pool, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Limit


@dataclass(frozen=True)
class Terms:
    """The conditions of a selection.

    Attributes:
        costs_N: Tokens of each instance, above 0; they matter for a budget of tokens only.
        limit: The budget.
        keep: Positions that are taken first.
        group_N: The group of each instance (its source, say), or None for no groups.
        most_G: Most rows of each group, as far as it has a limit.
        barred: Positions that are never taken.
    """

    costs_N: np.ndarray
    limit: Limit
    keep: tuple[int, ...] = ()
    group_N: np.ndarray | None = None
    most_G: dict[int, int] | None = None
    barred: tuple[int, ...] = ()

    def purse(self) -> Purse:
        """Open the purse, and take what must be kept.

        Returns:
            A purse with what is left.

        Raises:
            ValueError: If no instance fits a budget of tokens, the rows that must be kept do not
                fit, or quotas and barred rows leave fewer rows than the budget asks for.
        """
        self._refuse_if_nothing_fits()
        self._refuse_if_too_few_may_be_taken()
        purse = Purse(self)
        for row in self.keep:
            if not purse.fits(row):
                raise ValueError(
                    "the rows that must be kept do not fit the budget or the quotas: "
                    f"{len(purse.order)} of {len(self.keep)} fit. Raise the budget, or shorten the "
                    "list."
                )
            purse.take(row)
        return purse

    def _refuse_if_nothing_fits(self) -> None:
        least = self.costs_N.min()
        if self.limit.kind == "tokens" and least > self.limit.amount:
            raise ValueError(
                f"budget of {self.limit.amount} tokens: the shortest instance has {least}. "
                f"Give at least {least}tok."
            )

    def room(self) -> int:
        """Count the rows that may be taken, whatever the budget.

        Returns:
            Rows that are not barred, as far as the groups have room for them.
        """
        may_N = np.ones(len(self.costs_N), dtype=bool)
        may_N[list(self.barred)] = False
        if self.group_N is None:
            return int(may_N.sum())
        most_G = self.most_G or {}
        counts = np.bincount(self.group_N[may_N])
        return sum(min(int(c), most_G.get(g, int(c))) for g, c in enumerate(counts))

    def _refuse_if_too_few_may_be_taken(self) -> None:
        if self.limit.kind == "rows" and (room := self.room()) < self.limit.amount:
            raise ValueError(
                f"quotas and the list of rows to drop leave {room} rows, but the budget asks for "
                f"{self.limit.amount}. Raise a quota, shorten the list, or lower the budget."
            )


class Purse:
    """The state of one selection: what was taken, in order, and what may still be."""

    def __init__(self, terms: Terms) -> None:
        n = len(terms.costs_N)
        self.by_tokens = terms.limit.kind == "tokens"
        self.cost_N = terms.costs_N.astype(np.float64) if self.by_tokens else np.ones(n)
        self.left = float(terms.limit.amount)
        self.order: list[int] = []
        self.selected_N = np.zeros(n, dtype=bool)
        self._barred_N = np.zeros(n, dtype=bool)
        self._barred_N[list(terms.barred)] = True
        self._group_N = terms.group_N
        self._room_G = dict(terms.most_G or {})

    def fits(self, row: int) -> bool:
        """Say whether a row may be taken.

        Args:
            row: Its position.

        Returns:
            Whether it was not taken yet, and budget and group have room for it.
        """
        if self.selected_N[row] or self._barred_N[row] or self.cost_N[row] > self.left:
            return False
        return self._group_N is None or self._room_G.get(int(self._group_N[row]), 1) > 0

    def fitting(self) -> np.ndarray:
        """Say which rows may be taken.

        Returns:
            fits_N.
        """
        fits_N = ~(self.selected_N | self._barred_N) & (self.cost_N <= self.left)
        if self._group_N is not None:
            full = [group for group, room in self._room_G.items() if room <= 0]
            fits_N &= ~np.isin(self._group_N, full)
        return fits_N

    def take(self, row: int) -> None:
        """Take a row.

        Args:
            row: Its position.
        """
        assert self.fits(row), row
        self.order.append(row)
        self.selected_N[row] = True
        self.left -= self.cost_N[row]
        if self._group_N is not None:
            group = int(self._group_N[row])
            if group in self._room_G:
                self._room_G[group] -= 1

    def take_in_order(self, rows: Iterable[int]) -> np.ndarray:
        """Take rows one after the other, leaving out those that do not fit.

        Args:
            rows: Positions, best first.

        Returns:
            All positions that were taken since the purse was opened, in that order.
        """
        for row in rows:
            if self.left < 1:
                break
            if self.fits(row):
                self.take(row)
        return self.taken()

    def taken(self) -> np.ndarray:
        """Return what was taken.

        Returns:
            order_S, positions.
        """
        return np.array(self.order, dtype=np.intp)
