"""Near neighbours across parts: each part looks for its rows' in the cells that they visit.

Shapes: R rows of a part, H rows of the cells that are visited, K neighbours, E edges, W entries
of a projected vector, D of a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.neighbours import BEYOND, Neighbours, blocks, rounded

NOTHING = -1


@dataclass(frozen=True)
class Rows:
    """Some rows in the order of positions, or those of some cells of them.

    Attributes:
        positions_H: In the order of parts.
        cell_H: The cell of each.
        narrow_HW: Projected to length 1.
        unit_HD: Whole, to length 1.
    """

    positions_H: np.ndarray
    cell_H: np.ndarray
    narrow_HW: np.ndarray
    unit_HD: np.ndarray


class NearestFinder:
    """Collects the K nearest rows of a part's own rows, from the rows of one part after another."""

    def __init__(self, own: Rows, visited_RV: np.ndarray, k: int) -> None:
        self.own, self.visited_RV, self.k = own, visited_RV, k
        n = len(own.positions_H)
        # What they are ranked by is the cosine of the projections.
        self.ranked_RK = np.full((n, k), -np.inf, dtype=np.float32)
        self.nearest_RK = np.full((n, k), NOTHING, dtype=np.int64)
        self.cosine_RK = np.zeros((n, k), dtype=np.float32)

    def look_among(self, others: Rows) -> None:
        """Take in what is near among further rows: of each row, those in the cells it visits."""
        import faiss
        from faiss.contrib.ivf_tools import add_preassigned

        if len(others.positions_H) == 0:
            return
        cells = np.unique(others.cell_H)
        width, k = self.own.narrow_HW.shape[1], min(self.k, len(others.positions_H))
        # An index of fewer lists than are visited would visit fewer.
        n_visited = self.visited_RV.shape[1]
        n_lists = max(len(cells), n_visited)
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, n_lists, faiss.METRIC_INNER_PRODUCT
        )
        index.is_trained, index.nprobe = True, n_visited
        add_preassigned(
            index, others.narrow_HW, np.searchsorted(cells, others.cell_H).astype(np.int64)
        )
        is_there = np.isin(self.visited_RV, cells)
        rows = np.flatnonzero(is_there.any(axis=1))
        for part in blocks(len(rows), 16 * k):
            here = rows[part]
            local = np.searchsorted(cells, self.visited_RV[here]).astype(np.int64)
            local = np.where(is_there[here], local, NOTHING)
            queries = np.ascontiguousarray(self.own.narrow_HW[here])
            nothing = np.zeros(local.shape, dtype=np.float32)
            ranked, found = index.search_preassigned(queries, k, local, nothing)
            self._merge(here, others, ranked, found)

    def _merge(self, rows: np.ndarray, others: Rows, ranked: np.ndarray, found: np.ndarray) -> None:
        there = found >= 0
        cosine = ranked
        if others.unit_HD is not others.narrow_HW:
            cosine = np.einsum("rd,rkd->rk", self.own.unit_HD[rows], others.unit_HD[found])
        ranked = np.hstack([self.ranked_RK[rows], np.where(there, ranked, -np.inf)])
        nearest = np.hstack(
            [self.nearest_RK[rows], np.where(there, others.positions_H[found], NOTHING)]
        )
        cosines = np.hstack([self.cosine_RK[rows], np.where(there, cosine, 0)])
        # On equal cosines the smaller position, so that the order of the parts does not show.
        best = np.lexsort((nearest, -ranked), axis=1)[:, : self.k]
        self.ranked_RK[rows] = np.take_along_axis(ranked, best, axis=1)
        self.nearest_RK[rows] = np.take_along_axis(nearest, best, axis=1)
        self.cosine_RK[rows] = np.take_along_axis(cosines, best, axis=1)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Return nearest_RK, positions, −1 where there are fewer; and their rounded cosines."""
        return self.nearest_RK, rounded(self.cosine_RK)


def floors(cosine_RK: np.ndarray) -> np.ndarray:
    """Return what stands for rows beyond the neighbours of each, see `Neighbours.floor_N`."""
    return rounded(BEYOND * np.maximum(cosine_RK[:, -1], 0))


def edges_of(
    positions_R: np.ndarray, nearest_RK: np.ndarray, cosine_RK: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges from rows to those near them: owner_E, other_E, cosine_E, by other."""
    there_RK = (nearest_RK >= 0) & (cosine_RK > 0) & (nearest_RK != positions_R[:, None])
    owner_E = np.repeat(positions_R, there_RK.sum(axis=1))
    other_E, cosine_E = nearest_RK[there_RK], cosine_RK[there_RK]
    order_E = np.argsort(other_E, kind="stable")
    return owner_E[order_E], other_E[order_E], cosine_E[order_E]


def graph_of(
    start: int,
    floor_R: np.ndarray,
    own: tuple[np.ndarray, np.ndarray, np.ndarray],
    back: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Neighbours:
    """Join edges from the rows of a part and edges to them, from all parts, to its graph.

    Args:
        start: Position of its first row.
        floor_R: See `Neighbours`.
        own: owner_E, other_E, cosine_E with owners in this part.
        back: The same with the others in this part: whoever has a row near is near to it.

    Returns:
        The neighbours of this part's rows; `rows_E` are positions in the whole pool.
    """
    n = len(floor_R)
    itself = np.arange(n, dtype=np.int64)
    owner_E = np.concatenate([itself, own[0] - start, back[1] - start])
    other_E = np.concatenate([itself + start, own[1], back[0]])
    cosine_E = np.concatenate([np.ones(n, np.float32), own[2], back[2]])
    order_E = np.lexsort((-cosine_E, other_E, owner_E))
    owner_E, other_E, cosine_E = owner_E[order_E], other_E[order_E], cosine_E[order_E]
    first_E = np.ones(len(owner_E), dtype=bool)
    first_E[1:] = (owner_E[1:] != owner_E[:-1]) | (other_E[1:] != other_E[:-1])
    owner_E, other_E, cosine_E = owner_E[first_E], other_E[first_E], cosine_E[first_E]
    counts_R = np.bincount(owner_E, minlength=n)
    offsets = np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64)
    return Neighbours(offsets, other_E.astype(np.int32), cosine_E, floor_R)


def with_border(graph: Neighbours, start: int, floor_N: np.ndarray) -> Neighbours:
    """Return the graph of a part's rows and, behind them, of the rows elsewhere near to them.

    Positions count from the part's first row. The rows elsewhere have no edges but to this part.

    Args:
        graph: Of the part's rows.
        start: Position of the first.
        floor_N: Of the whole pool.
    """
    n, rows_E = len(graph), graph.rows_E.astype(np.int64) - start
    outside_E = (rows_E < 0) | (rows_E >= n)
    elsewhere, place_E = np.unique(rows_E[outside_E], return_inverse=True)
    rows_E[outside_E] = n + place_E
    owner_E = graph.owners().astype(np.int64)
    itself = np.arange(n, n + len(elsewhere))
    owners = np.concatenate([owner_E, rows_E[outside_E], itself])
    others = np.concatenate([rows_E, owner_E[outside_E], itself])
    ones = np.ones(len(itself), np.float32)
    cosines = np.concatenate([graph.cosines_E, graph.cosines_E[outside_E], ones])
    order = np.lexsort((others, owners))
    counts = np.bincount(owners, minlength=n + len(elsewhere))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    floors_of_all = np.concatenate([graph.floor_N, floor_N[elsewhere + start]])
    return Neighbours(offsets, others[order].astype(np.int32), cosines[order], floors_of_all)


def within(graph: Neighbours, start: int) -> Neighbours:
    """Return the graph of a part's rows among themselves; positions count from its first row."""
    n = len(graph)
    rows_E = graph.rows_E.astype(np.int64) - start
    inside_E = (rows_E >= 0) & (rows_E < n)
    counts_R = np.add.reduceat(inside_E, graph.offsets[:-1], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64)
    return Neighbours(
        offsets, rows_E[inside_E].astype(np.int32), graph.cosines_E[inside_E], graph.floor_N
    )
