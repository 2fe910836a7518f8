"""`--budget auto`: where further rows stop being worth their place."""

from __future__ import annotations

import numpy as np


def elbow(gain_S: np.ndarray) -> int:
    """Find where the curve of summed gains bends.

    Rule: rows are counted up to the first whose gain is negative; the sum of the gains over these,
    both axes scaled to 1, is compared with the straight line from (0, 0) to (1, 1), along which
    every row would be worth the same; the elbow is where the curve lies farthest above it, that is,
    where the gain of one more row falls below the mean gain (Kneedle, Satopää et al., 2011, without
    smoothing: greedy's gains fall, so that the curve is concave). If no point lies above the line,
    all rows are worth the same and all are counted.

    Args:
        gain_S: Marginal gains in the order of selection.

    Returns:
        The number of rows, at least 1.
    """
    negative = np.flatnonzero(gain_S < 0)
    n = int(negative[0]) if len(negative) else len(gain_S)
    if n <= 1:
        return 1
    summed = np.concatenate([[0.0], np.cumsum(gain_S[:n])])
    if summed[-1] <= 0:
        return 1
    above = summed / summed[-1] - np.arange(n + 1) / n
    best = int(np.argmax(above))
    return best if above[best] > 1e-9 else n
