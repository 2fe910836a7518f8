"""Which rows a page shows where it cannot show all: drawn so that every kind is there."""

from __future__ import annotations

import numpy as np


def stratified(stratum_N: np.ndarray, n: int) -> np.ndarray:
    """Draw n of N rows without putting back, about its share from each stratum; ascending.

    Rows in a random order are taken in turn by how far through its stratum each is, so that every
    stratum with at least N / n rows is there. The same for the same rows.
    """
    if n >= len(stratum_N):
        return np.arange(len(stratum_N))
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(len(stratum_N))
    ordered = shuffled[np.argsort(stratum_N[shuffled], kind="stable")]
    _, counts = np.unique(stratum_N, return_counts=True)
    within = np.concatenate([(np.arange(c) + generator.random()) / c for c in counts])
    return np.sort(ordered[np.argsort(within, kind="stable")[:n]])


def shown_length(lengths: np.ndarray, most: int) -> int:
    """Return how many characters of each text fit, so that all together are at most `most`."""
    if lengths.sum() <= most:
        return int(lengths.max(initial=0))
    ascending = np.sort(lengths)
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    # What is cut at the length of the i-th text: those before it are whole.
    total = below + ascending * np.arange(len(ascending), 0, -1)
    first = int(np.searchsorted(total, most, side="right"))
    return int((most - below[first]) // (len(ascending) - first))
