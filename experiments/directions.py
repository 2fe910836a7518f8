"""Whether a row's gradient points where those of other rows point: cosines of gradient sketches.

Shapes: N instances of the pool, E entries of a gradient sketch.
"""

import numpy as np

from gradsift.selection.neighbours import blocks


def cosine_with_others(sketch_NE: np.ndarray, group_N: np.ndarray | None = None) -> np.ndarray:
    """Return the cosine of each row's gradient with the mean direction of the others'.

    Each row counts alike, whatever its norm, and never for itself: beside its own share in it, a
    row of a small pool would be like any mean. 0 where the row has no gradient, or no other row.

    Args:
        sketch_NE: Sketches, of any scale.
        group_N: From 0; the others are those of the row's group. None for the whole pool.
    """
    n, width = sketch_NE.shape
    group_N = np.zeros(n, dtype=np.int64) if group_N is None else np.asarray(group_N)
    sum_GE = np.zeros((int(group_N.max()) + 1, width))
    for rows in blocks(n, width):
        np.add.at(sum_GE, group_N[rows], _unit(sketch_NE[rows]))
    cosine_N = np.empty(n)
    for rows in blocks(n, width):
        unit_RE = _unit(sketch_NE[rows])
        others_RE = sum_GE[group_N[rows]] - unit_RE
        length_R = np.linalg.norm(others_RE, axis=1)
        # What is left of a sum that is nothing but the row itself is rounding.
        along_R = np.einsum("re,re->r", unit_RE, others_RE)
        cosine_N[rows] = np.where(length_R > 1e-9, along_R / np.maximum(length_R, 1e-9), 0)
    return cosine_N


def _unit(x_NE: np.ndarray) -> np.ndarray:
    x_NE = x_NE.astype(np.float64)
    norm_N1 = np.linalg.norm(x_NE, axis=1, keepdims=True)
    return x_NE / np.where(norm_N1 > 0, norm_N1, 1)
