"""Content features → vectors whose cosine says how alike two rows are in content, and clusters.

Shapes: N instances of the pool, D content features, K terms of the trend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.neighbours import blocks, unit_rows

# The trend is a polynomial of this degree in the step, where there are so many steps.
_DEGREE = 3
_FEWEST_STEPS = 16

MOST_CLUSTERS = 50
_ROWS_PER_CLUSTER = 20
_ROUNDS = 20


@dataclass(frozen=True)
class ContentScale:
    """Takes off what content features of a pool have in common, and brings them to one scale.

    * Hidden states of a language model share one large direction, so that raw cosines are all near
      0.9: the mean is subtracted.
    * Recorded during training, they move with the model: a row and its exact copy, met later, drift
      apart. So it is a trend that is subtracted, a cubic polynomial in the step fitted to all rows
      (the mean alone where there are fewer than 16 different steps).
    * A few features are many times as large as the rest and would decide alone: each is divided by
      its standard deviation over the pool.

    Attributes:
        steps: Mean and standard deviation of the steps of the pool.
        trend_KD: Coefficients of the trend.
        scale_D: Standard deviations; infinite for features that do not vary.
    """

    steps: tuple[float, float]
    trend_KD: np.ndarray
    scale_D: np.ndarray

    def vectors(self, features_ND: np.ndarray, step_N: np.ndarray) -> np.ndarray:
        """Put content features of any rows, by the same model, on the pool's scale, in float32."""
        vectors_ND = np.empty(features_ND.shape, dtype=np.float32)
        for rows in blocks(*features_ND.shape):
            terms_RK = _terms(step_N[rows], self.steps, len(self.trend_KD) - 1)
            vectors_ND[rows] = (features_ND[rows] - terms_RK @ self.trend_KD) / self.scale_D
        return vectors_ND


def fit_content(features_ND: np.ndarray, step_N: np.ndarray) -> ContentScale:
    """Fit the scale of a pool's content features; step_N are the updates made before each row."""
    features_ND, step_N = np.asarray(features_ND), np.asarray(step_N, dtype=np.float64)
    assert np.isfinite(features_ND).all(), "features are not finite"
    degree = _DEGREE if len(np.unique(step_N)) >= _FEWEST_STEPS else 0
    steps = float(step_N.mean()), float(step_N.std()) or 1.0
    n, d = features_ND.shape
    gram_KK, product_KD = np.zeros((degree + 1, degree + 1)), np.zeros((degree + 1, d))
    for rows in blocks(n, d):
        terms_RK = _terms(step_N[rows], steps, degree)
        gram_KK += terms_RK.T @ terms_RK
        product_KD += terms_RK.T @ features_ND[rows].astype(np.float64)
    trend_KD = np.linalg.lstsq(gram_KK, product_KD, rcond=None)[0]
    squares_D, largest_D = np.zeros(d), np.zeros(d)
    for rows in blocks(n, d):
        rest_RD = features_ND[rows] - _terms(step_N[rows], steps, degree) @ trend_KD
        squares_D += (rest_RD**2).sum(axis=0)
        largest_D = np.maximum(largest_D, np.abs(features_ND[rows]).max(axis=0))
    scale_D = np.sqrt(squares_D / n)
    # What is left of a feature that does not vary is rounding.
    return ContentScale(steps, trend_KD, np.where(scale_D > 1e-6 * largest_D, scale_D, np.inf))


def content_vectors(features_ND: np.ndarray, step_N: np.ndarray) -> np.ndarray:
    """Put the content features of a pool on its own scale."""
    return fit_content(features_ND, step_N).vectors(np.asarray(features_ND), np.asarray(step_N))


def _terms(step_N: np.ndarray, steps: tuple[float, float], degree: int) -> np.ndarray:
    mean, spread = steps
    return np.vander((step_N - mean) / spread, degree + 1, increasing=True)


def find_clusters(vectors_ND: np.ndarray) -> np.ndarray:
    """Cluster content vectors: one cluster for every 20 rows, at most 50."""
    n_clusters = max(1, min(MOST_CLUSTERS, len(vectors_ND) // _ROWS_PER_CLUSTER))
    return k_means_clusters(unit_rows(vectors_ND), n_clusters, seed=0)


def k_means_clusters(unit_NE: np.ndarray, n_clusters: int, *, seed: int) -> np.ndarray:
    """Cluster rows of length 1 by k-means: cluster_N, int32, from 0."""
    import faiss

    kmeans = faiss.Kmeans(
        unit_NE.shape[1], n_clusters, niter=_ROUNDS, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(unit_NE)
    return kmeans.assign(unit_NE)[1].astype(np.int32)
