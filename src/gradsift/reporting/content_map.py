"""Rows of a pool on a plane, by what they say: near on the map is alike, as far as a plane can say.

Shapes: R rows on the map, D content features.
"""

from __future__ import annotations

import numpy as np

from gradsift.selection.content import content_vectors
from gradsift.selection.neighbours import unit_rows


def plane_of(features_RD: np.ndarray, step_R: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the two directions in which content differs most: [R, 2], and their share of it.

    A principal component analysis of the vectors whose cosines say how alike two rows are. Its
    signs are fixed, so that the same rows give the same picture.
    """
    unit_RD = unit_rows(content_vectors(features_RD, step_R))
    centred_RD = unit_RD.astype(np.float64) - unit_RD.mean(axis=0, dtype=np.float64)
    values_D, directions_DD = np.linalg.eigh(centred_RD.T @ centred_RD)
    axes_D2 = directions_DD[:, :-3:-1]
    axes_D2 = axes_D2 * np.where(axes_D2.sum(axis=0) < 0, -1, 1)
    total = values_D.sum()
    return centred_RD @ axes_D2, float(values_D[-2:].sum() / total) if total > 0 else 0.0
