"""How a long stage tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _say_nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Listener:
    """Two functions that a stage calls; by default nothing is told.

    Attributes:
        note: Called with a line worth reading.
        progress: Called with instances done, instances in all, tokens done, tokens in all.
    """

    note: Callable[[str], None] = _say_nothing
    progress: Callable[[int, int, int, int], None] = _say_nothing


SILENT = Listener()
