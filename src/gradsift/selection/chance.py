"""What chance would do: whether a subset differs from its pool by more than a random one would.

Shapes: N rows of the pool; a random subset is drawn from it without putting back.
"""

from __future__ import annotations

import math

import numpy as np

# A random subset goes beyond this once in a hundred times, on one side, and on either side. Of what
# is also said in words on either side, warnings go by that, so that the two never disagree.
RARE = 0.01
RARE_DEVIATIONS = 2.33
RARE_DEVIATIONS_EITHER_SIDE = 2.58


def chance_of_so_many(n_marked: int, n_drawn: int, all_marked: int, n_rows: int) -> float:
    """Compute the probability that at least `n_marked` of `n_drawn` rows are marked ones.

    Of a random subset of `n_rows`, `all_marked` of which are (hypergeometric, exact).
    """
    rest = n_rows - all_marked
    k = np.arange(max(n_marked, n_drawn - rest), min(n_drawn, all_marked) + 1)
    # log n! of every n there is.
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_rows + 1)))])

    def log_choices(n: int, k: np.ndarray | int) -> np.ndarray | float:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    logs = log_choices(all_marked, k) + log_choices(rest, n_drawn - k)
    return min(1.0, float(np.exp(logs - log_choices(n_rows, n_drawn)).sum()))


def deviations(value_N: np.ndarray, selected_N: np.ndarray) -> float:
    """Return by how many standard deviations a subset's mean is above what chance makes of it.

    0 where there is no choice: a subset of everything or of nothing, or values that are alike.
    """
    n, n_drawn = len(value_N), int(selected_N.sum())
    if not 0 < n_drawn < n:
        return 0.0
    spread = float(np.std(value_N, ddof=1)) * math.sqrt((n - n_drawn) / (n * n_drawn))
    difference = float(value_N[selected_N].mean() - value_N.mean())
    return difference / spread if spread > 0 else 0.0
