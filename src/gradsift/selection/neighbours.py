"""Which rows are alike: a sparse, symmetric graph of near neighbours by cosine.

Shapes: N instances of the pool, D features, E edges of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

# Up to this size the graph holds every pair, so that what is computed on it is exact.
COMPLETE_ROWS = 3_000
# Up to this size the nearest neighbours are found by comparing all pairs.
EXACT_ROWS = 20_000
N_NEIGHBOURS = 64
# What a row's last neighbour would represent of it, times this, is what rows beyond it do.
BEYOND = 0.85
# Beyond EXACT_ROWS, neighbours are looked for along this many principal directions.
SEARCH_WIDTH = 64
_ORDERED_BY = 8
# An inverted-file index: lists for each √N, lists visited for each row, and its k-means.
LISTS_PER_ROOT = 4
VISITED_LISTS = 6
TRAINING_ROWS_PER_LIST = 40
TRAINING_ROUNDS = 5
# Cosines are kept as multiples of 2⁻²⁰ (about 10⁻⁶): rows with equal features get equal cosines,
# whatever block they were computed in, and sums of them in float64 are exact, in any order.
_STEPS = 2.0**20
_BLOCK_ENTRIES = 2**24
# Below this part of the largest norm, what is left of a row is rounding.
_ZERO_NORM = 1e-6


@dataclass(frozen=True)
class Neighbours:
    """A symmetric graph in compressed rows; each instance is a neighbour of itself.

    Attributes:
        offsets: [N+1] int64; the neighbours of row i stand at offsets[i] … offsets[i+1].
        rows_E: int32, positions of the neighbours, ascending within a row.
        cosines_E: float32 in (0, 1], multiples of 2⁻²⁰, 1 with itself. A pair that is not there
            counts as `floor_N`.
        floor_N: float32; how well any row beyond its neighbours represents an instance, estimated
            as 0.85 times the cosine of its last neighbour (the factor with which greedy comes
            nearest to greedy on all pairs, see docs/measurements.md); 0 where the graph holds
            every pair.
    """

    offsets: np.ndarray
    rows_E: np.ndarray
    cosines_E: np.ndarray
    floor_N: np.ndarray
    # Pairs that were found, by threshold: they are asked for again and again.
    _pairs: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours of one row: their positions, ascending, and their cosines."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.rows_E[part], self.cosines_E[part]

    def pairs_above(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the pairs of rows with a cosine above a threshold.

        As first_E < second_E, positions, and their cosines.
        """
        if threshold not in self._pairs:
            above_E = np.flatnonzero(self.cosines_E > threshold)
            first_E = np.searchsorted(self.offsets, above_E, side="right").astype(np.int32) - 1
            second_E = self.rows_E[above_E]
            once_E = first_E < second_E
            found = first_E[once_E], second_E[once_E], self.cosines_E[above_E[once_E]]
            self._pairs[threshold] = found
        return self._pairs[threshold]

    def owners(self) -> np.ndarray:
        """Return, for each edge, the row whose neighbour it leads to: int32, ascending."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))


def find_neighbours(
    vectors_ND: np.ndarray,
    *,
    n_neighbours: int = N_NEIGHBOURS,
    complete_rows: int = COMPLETE_ROWS,
    exact_rows: int = EXACT_ROWS,
) -> Neighbours:
    """Find the nearest neighbours of every row by cosine.

    Up to `complete_rows` rows, all pairs are kept. Above, each row keeps its `n_neighbours` most
    similar ones (and those that keep it): up to `exact_rows` found by comparing all pairs; above,
    by an inverted-file index (faiss) over at most 64 principal directions, which misses a few in a
    hundred; the cosines of the pairs that are found are those of the whole vectors. Only cosines
    above 0 are kept. A zero row counts as the same as other such rows and as unlike everything
    else. Deterministic on one machine.
    """
    unit_NE = unit_rows(vectors_ND)
    n = len(unit_NE)
    if n <= complete_rows:
        return _complete(unit_NE)
    k = min(n_neighbours, n)
    if n <= exact_rows:
        nearest_NK, cosine_NK = _search_all(unit_NE, k)
    else:
        nearest_NK, cosine_NK = _search_lists(unit_NE, k)
    return _symmetric(nearest_NK, cosine_NK)


def unit_rows(vectors_ND: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, in float32.

    Zero rows (up to rounding) point along a coordinate of their own, E = D + 1, which is there only
    if there are such rows.
    """
    vectors_ND = np.asarray(vectors_ND)
    assert np.isfinite(vectors_ND).all(), "vectors are not finite"
    n, d = vectors_ND.shape
    unit_ND = np.empty((n, d), dtype=np.float32)
    norm_N = np.empty(n)
    for rows in blocks(n, d):
        norm_N[rows] = np.linalg.norm(vectors_ND[rows].astype(np.float64), axis=1)
    lost_N = norm_N <= _ZERO_NORM * norm_N.max(initial=0)
    divisor_N = np.where(lost_N, np.inf, norm_N)
    for rows in blocks(n, d):
        unit_ND[rows] = vectors_ND[rows] / divisor_N[rows, None]
    return np.hstack([unit_ND, lost_N[:, None].astype(np.float32)]) if lost_N.any() else unit_ND


def blocks(n: int, width: int) -> Iterator[slice]:
    """Cut n rows of `width` entries into blocks that bound the memory of what is done to each."""
    size = max(1, _BLOCK_ENTRIES // max(width, 1))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _complete(unit_NE: np.ndarray) -> Neighbours:
    n = len(unit_NE)
    counts, rows, cosines = [], [], []
    exact_NE = unit_NE.astype(np.float64)
    for block in blocks(n, n):
        cosine_RN = rounded(exact_NE[block] @ exact_NE.T)
        here = np.arange(block.start, block.stop)
        cosine_RN[here - block.start, here] = 1
        owner_E, row_E = np.nonzero(cosine_RN > 0)
        counts.append(np.bincount(owner_E, minlength=len(here)))
        rows.append(row_E.astype(np.int32))
        cosines.append(cosine_RN[owner_E, row_E])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    nothing_N = np.zeros(n, dtype=np.float32)
    return Neighbours(offsets, np.concatenate(rows), np.concatenate(cosines), nothing_N)


def _search_all(unit_NE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    index = faiss.IndexFlatIP(unit_NE.shape[1])
    index.add(unit_NE)
    cosine_NK, nearest_NK = index.search(unit_NE, k)
    return nearest_NK.astype(np.int32), rounded(cosine_NK)


def _search_lists(unit_NE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    n, width = unit_NE.shape
    narrow_NE = unit_NE
    if width > SEARCH_WIDTH:
        narrow_NE = _principal(unit_NE, SEARCH_WIDTH)
        width = SEARCH_WIDTH
    is_narrow = narrow_NE is not unit_NE
    # The lists depend on the order in which rows come: let that be by what they are.
    order_N = np.lexsort(unit_NE[:, :_ORDERED_BY].T)
    narrow_NE = narrow_NE[order_N]
    n_lists = int(LISTS_PER_ROOT * n**0.5)
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFFlat(quantizer, width, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = TRAINING_ROUNDS
    index.cp.max_points_per_centroid = TRAINING_ROWS_PER_LIST
    index.cp.min_points_per_centroid = 1
    index.train(narrow_NE)
    index.add(narrow_NE)
    index.nprobe = VISITED_LISTS
    nearest_NK = np.empty((n, k), dtype=np.int32)
    cosine_NK = np.empty((n, k), dtype=np.float32)
    for rows in blocks(n, 16 * k):
        cosine_RK, nearest_RK = index.search(narrow_NE[rows], k)
        nearest_NK[order_N[rows]] = np.where(nearest_RK >= 0, order_N[nearest_RK], -1)
        cosine_NK[order_N[rows]] = cosine_RK
    if is_narrow:
        for rows in blocks(n, k * unit_NE.shape[1]):
            # −1 stands for "no further neighbour": what it is compared with does not matter.
            pairs_RKE = unit_NE[nearest_NK[rows]]
            cosine_NK[rows] = np.einsum("re,rke->rk", unit_NE[rows], pairs_RKE)
    return nearest_NK, rounded(cosine_NK)


def principal_directions(unit_NE: np.ndarray, width: int) -> np.ndarray:
    """Return the directions along which rows vary most: directions_EW, float32."""
    covariance_EE = np.zeros((unit_NE.shape[1],) * 2)
    for rows in blocks(len(unit_NE), unit_NE.shape[1]):
        covariance_EE += unit_NE[rows].T @ unit_NE[rows]
    return np.linalg.eigh(covariance_EE)[1][:, -width:].astype(np.float32)


def _principal(unit_NE: np.ndarray, width: int) -> np.ndarray:
    return unit_rows(unit_NE @ principal_directions(unit_NE, width))[:, :width]


def _symmetric(nearest_NK: np.ndarray, cosine_NK: np.ndarray) -> Neighbours:
    from scipy.sparse import csr_array

    n = len(nearest_NK)
    floor_N = rounded(BEYOND * np.maximum(cosine_NK[:, -1], 0))
    # Where rows repeat each other more than k times, a row may not be among its own neighbours.
    there_NK = (nearest_NK >= 0) & (cosine_NK > 0) & (nearest_NK != np.arange(n)[:, None])
    counts = there_NK.sum(axis=1)
    # Joined with its transpose the graph may have twice the edges.
    n_edges = int(counts.sum()) + n
    kind = np.int32 if 2 * n_edges <= np.iinfo(np.int32).max else np.int64
    offsets = np.concatenate([[0], np.cumsum(counts + 1)]).astype(kind)
    rows_E = np.empty(n_edges, dtype=kind)
    cosines_E = np.empty(n_edges, dtype=np.float32)
    first_E = offsets[:-1]
    rows_E[first_E], cosines_E[first_E] = np.arange(n), 1
    others = np.ones(n_edges, dtype=bool)
    others[first_E] = False
    rows_E[others], cosines_E[others] = nearest_NK[there_NK], cosine_NK[there_NK]
    half = csr_array((cosines_E, rows_E, offsets), shape=(n, n))
    graph = half.maximum(half.T.tocsr())
    graph.sort_indices()
    return Neighbours(
        graph.indptr.astype(np.int64),
        graph.indices.astype(np.int32, copy=False),
        graph.data.astype(np.float32, copy=False),
        floor_N,
    )


def rounded(cosines: np.ndarray) -> np.ndarray:
    """Return cosines as they are kept: float32 multiples of 2⁻²⁰."""
    # Where faiss found too few, it says the lowest of all numbers.
    return (np.round(np.clip(cosines, -1, 1) * _STEPS) / _STEPS).astype(np.float32)
