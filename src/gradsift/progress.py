"""How long work tells how far it is, and which of several processes tells it."""

import os
from collections.abc import Callable

# Is called with rows done, rows in all, tokens done, tokens in all.
Progress = Callable[[int, int, int, int], None]


def no_progress(*_: int) -> None:
    """Tell nothing."""


def stage(progress: Progress, done: str) -> Progress:
    """Return what shows the progress of one stage, in which rows are "scored", say.

    Displays tell stages apart; a function of a caller's own is called as ever.
    """
    named = getattr(progress, "stage", None)
    return progress if named is None else named(done)


def tell_kept(progress: Progress) -> None:
    """Tell a display that all rows done so far are on the disk; those it begins with always are."""
    kept = getattr(progress, "kept", None)
    if kept is not None:
        kept()


def is_first_process() -> bool:
    """Return whether this is the one of several training together that speaks for all."""
    return os.environ.get("RANK", "0") == "0"  # As torchrun and accelerate set it.
