"""Training losses as a trainer logged them: what they were at the beginning, and at the end."""

from __future__ import annotations

import math
import sys
from typing import Any

# Of the steps, at either end.
SHARE = 0.1


def first_and_last(curve: Any) -> dict[str, float] | None:
    """Return the mean over the first and the last tenth of the steps; None if nothing was logged.

    A loss that was logged is the mean over the steps since the one before (`logging_steps`), and
    counts as many times. Where a tenth of the steps is less than what was logged together, the
    mean is over all of that, and `first_steps` and `last_steps` say how many steps it is.

    Args:
        curve: (step, loss) in the order of the steps, perhaps from a file of anybody's: what is no
            finite number is left out.
    """
    pairs = [one for one in curve if isinstance(one, list | tuple) and len(one) == 2]
    windows, before = [], 0
    for step, loss in pairs:
        if type(step) is int and type(loss) in (int, float) and step > before:
            if abs(loss) <= sys.float_info.max:
                windows.append((step - before, float(loss)))
            before = step
    if not windows:
        return None
    wanted = math.ceil(SHARE * sum(n for n, _ in windows))
    (first, n_first), (last, n_last) = (_mean(one, wanted) for one in (windows, windows[::-1]))
    more = {"first_steps": n_first, "last_steps": n_last} if max(n_first, n_last) > wanted else {}
    return {"first": first, "last": last, **more}


def _mean(windows: list[tuple[int, float]], wanted: int) -> tuple[float, int]:
    """Return the mean over as many whole windows as hold the wanted steps, and their steps."""
    taken, n_steps = [], 0
    for n, loss in windows:
        if n_steps >= wanted:
            break
        taken.append(n * loss)
        n_steps += n
    return math.fsum(taken) / n_steps, n_steps


def loss_sentence(ends: dict[str, float] | None) -> str:
    """Return the same as a line."""
    if ends is None:
        return "training loss: none was logged"
    first, last = "tenth of the steps", ""
    if "first_steps" in ends:
        first, last = f"{ends['first_steps']} steps", f" {ends['last_steps']}"
    return (
        f"training loss: {ends['first']:.3f} in the first {first}, {ends['last']:.3f} in the "
        f"last{last}"
    )
