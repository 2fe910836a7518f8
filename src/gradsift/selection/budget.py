"""How much may be kept: what the user writes, and what it comes to on a given pool."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

_HOW = (
    'Write "50%" (half of the instances), "500" (rows), "20000tok" (tokens) or "auto"; '
    "in Python also 0.5 or 500."
)


@dataclass(frozen=True)
class Limit:
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

    def resolve(self, n_instances: int, total_tokens: int) -> Limit:
        """Apply the budget to a pool.

        Args:
            n_instances: Instances that can be selected. A fraction is a fraction of these (of
                rows, not of tokens; dropped rows do not count), rounded to the nearest row, a
                half upwards. "auto" may take all.
            total_tokens: Tokens of all these instances together.

        Returns:
            The limit in rows or tokens.

        Raises:
            ValueError: If the pool is empty, holds less than the budget, or the fraction comes to
                less than one row.
        """
        if n_instances < 1:
            raise ValueError(
                "no instance can be selected: every row was dropped. "
                "The reasons stand in pool.parquet."
            )
        if self.kind == "tokens":
            return self._tokens(n_instances, total_tokens)
        rows = self.amount if self.kind == "rows" else self.amount * n_instances
        # 1e-9 forgives binary fractions: 0.145 * 100 is 14.499999999999998.
        rows = math.floor(rows + 0.5 + 1e-9)
        if rows < 1:
            raise ValueError(
                f"budget {self} of {n_instances} instances is less than one row: "
                f"give at least {math.ceil(100 / n_instances)}%, or a number of rows."
            )
        if rows > n_instances:
            raise ValueError(
                f"budget {self} asks for {rows} rows, but the pool has {n_instances} instances "
                f"that can be selected: give at most {n_instances}, or a percentage."
            )
        return Limit("rows", rows, float(rows))

    def _tokens(self, n_instances: int, total_tokens: int) -> Limit:
        tokens = int(self.amount)
        if tokens > total_tokens:
            raise ValueError(
                f"budget {self} is more than the pool's {total_tokens} tokens: give at most "
                f"{total_tokens}tok, or a percentage."
            )
        return Limit("tokens", tokens, tokens * n_instances / total_tokens)


def parse_budget(value: str | int | float) -> Budget:
    """Read a budget.

    Args:
        value: `"50%"`, `"500"` (rows), `"20000tok"` or `"auto"`; an int is a number of rows; a
            float in (0, 1] is a fraction of the instances: 1.0 is all of them, 1 is one row.

    Returns:
        The budget, not yet applied to a pool.

    Raises:
        ValueError: For anything else; also for a string such as "0.5" or "1.5", which may mean a
            fraction, a percentage or a number of rows.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"budget is {value!r}, expected a text or a number. {_HOW}")
    if isinstance(value, int):
        return _positive("rows", value, value)
    if not 0 < value <= 1:
        raise ValueError(
            f"budget is the fraction {value!r}, expected above 0 and at most 1.0 (all). {_HOW}"
        )
    return Budget("fraction", value)


def _parse_text(text: str) -> Budget:
    if text.strip() == "auto":
        return Budget("auto", 1.0)
    match = re.fullmatch(r"([+-]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*(%|tok|tokens)?", text.strip())
    if match is None:
        raise ValueError(f"budget {text!r} is not understood. {_HOW}")
    number, unit = match[1].replace("_", ""), match[2]
    if unit == "%":
        if float(number) > 100:
            raise ValueError(f"budget {text!r} is more than 100%. {_HOW}")
        return _positive("fraction", float(number) / 100, text)
    if "." in number:
        raise ValueError(
            f"budget {text!r} may mean a fraction, a percentage or a number of rows. {_HOW}"
        )
    return _positive("tokens" if unit else "rows", int(number), text)


def _positive(
    kind: Literal["fraction", "rows", "tokens"], amount: float, written: object
) -> Budget:
    if amount <= 0:
        raise ValueError(f"budget is {written!r}, expected more than 0. {_HOW}")
    return Budget(kind, amount)
