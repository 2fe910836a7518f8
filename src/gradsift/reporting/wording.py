"""Numbers as a page says them."""

from __future__ import annotations


def percent(share: float) -> str:
    """Return a share of 0 to 1 in per cent, small ones with a decimal."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.1f} %"


def n_rows(n: int) -> str:
    """Return a number of rows in words."""
    return f"{n:,} row" + "s" * (n != 1)
