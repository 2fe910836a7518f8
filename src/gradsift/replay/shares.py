"""How much replay a share comes to, and where its rows stand among the others."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TypeVar

from gradsift.wording import short

T = TypeVar("T")
# By how much the share that whole rows come to may differ from the one that was asked for, as a
# part of it, before that is told.
TOLERANCE = 0.1


def tokens_for(ratio: float, n_own: int) -> float:
    """Return the tokens of replay that are `ratio` of all, beside `n_own` others."""
    return n_own * ratio / (1 - ratio)


def share_of(n_replay: int, n_own: int) -> float:
    """Return the share of replay in all tokens."""
    return n_replay / (n_replay + n_own)


def n_rows_for(wanted: float, tokens: Sequence[int]) -> int:
    """Return how many rows come nearest to a number of tokens, taken in their order; at least one.

    Rows behind those that are looked at change nothing. The rows have as many tokens in all.
    """
    n_taken, total = 0, 0
    for n_tokens in tokens:
        if n_taken and abs(total + n_tokens - wanted) >= abs(total - wanted):
            break
        n_taken, total = n_taken + 1, total + n_tokens
        if total >= wanted:
            break
    return n_taken


def spread(own: Sequence[T], others: Sequence[T]) -> list[T]:
    """Put others between our own, evenly: for whoever does not shuffle, too."""
    at = [(i + 0.5) / len(own) for i in range(len(own))]
    between = [(i + 0.5) / len(others) for i in range(len(others))]
    # Sorting is stable: of two at one place the own comes first.
    placed = sorted(zip([*at, *between], [*own, *others], strict=True), key=lambda pair: pair[0])
    return [one for _, one in placed]


def percent(ratio: float) -> str:
    """Return a share as people write it: 5%, 0.5%."""
    # Never 1e-07%.
    return f"{Decimal(f'{100 * ratio:g}'):f}%"


def missed(ratio: float, share: float, rows: str) -> str | None:
    """Return what is to be said where whole rows do not come to the share; None if they do."""
    if abs(share - ratio) <= TOLERANCE * ratio:
        return None
    return (
        f"replay has {100 * share:.1f} % of the tokens that have a loss, asked for were "
        f"{percent(ratio)[:-1]} %: rows are taken whole, and those of {short(rows, 60)} are long "
        "for it"
    )
