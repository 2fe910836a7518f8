"""Training losses as a trainer logged them: what they were at the beginning, and at the end."""

from __future__ import annotations

import math
import sys
from typing import Any

# Of the steps, at either end.
SHARE = 0.1


def first_and_last(curve: Any) -> dict[str, float] | None:
    """Return the mean over the first and the last tenth of what was logged; None for nothing.

    Args:
        curve: (step, loss) in the order of the steps, perhaps from a file of anybody's: what is no
            finite number is left out.
    """
    pairs = [one for one in curve if isinstance(one, list | tuple) and len(one) == 2]
    numbers = [loss for _, loss in pairs if type(loss) in (int, float)]
    losses = [float(loss) for loss in numbers if abs(loss) <= sys.float_info.max]
    if not losses:
        return None
    n = math.ceil(SHARE * len(losses))
    return {"first": math.fsum(losses[:n]) / n, "last": math.fsum(losses[-n:]) / n}


def loss_sentence(ends: dict[str, float] | None) -> str:
    """Return the same as a line."""
    if ends is None:
        return "training loss: none was logged"
    return (
        f"training loss: {ends['first']:.3f} in the first tenth of the steps, "
        f"{ends['last']:.3f} in the last"
    )
