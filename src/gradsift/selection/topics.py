"""Clusters of content: what the rows are about, coarsely."""

from __future__ import annotations

import numpy as np

from gradsift.selection.neighbours import unit_rows

MOST_TOPICS = 50
_ROWS_PER_TOPIC = 20
_ROUNDS = 20


def find_topics(vectors_ND: np.ndarray) -> np.ndarray:
    """Cluster content vectors (of length 1) by k-means with a fixed seed.

    One cluster for every 20 rows, at most 50.

    Args:
        vectors_ND: As from `content_vectors`.

    Returns:
        topic_N, int32, from 0.
    """
    import faiss

    unit_NE = unit_rows(vectors_ND)
    n_topics = max(1, min(MOST_TOPICS, len(unit_NE) // _ROWS_PER_TOPIC))
    kmeans = faiss.Kmeans(
        unit_NE.shape[1], n_topics, niter=_ROUNDS, seed=0, min_points_per_centroid=1
    )
    kmeans.train(unit_NE)
    return kmeans.assign(unit_NE)[1].astype(np.int32)
