"""How long work tells how far it is."""

from collections.abc import Callable

# Is called with rows done, rows in all, tokens done, tokens in all.
Progress = Callable[[int, int, int, int], None]


def no_progress(*_: int) -> None:
    """Tell nothing."""
