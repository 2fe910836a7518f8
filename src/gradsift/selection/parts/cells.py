"""Which rows of a large pool lie together: cells of alike rows, and parts made of cells.

Shapes: N rows, M rows of a sample, E entries of a unit vector, W of its projection, C cells, V
cells visited for each row, S shards, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.neighbours import (
    EXACT_ROWS,
    LISTS_PER_ROOT,
    SEARCH_WIDTH,
    TRAINING_ROUNDS,
    TRAINING_ROWS_PER_LIST,
    VISITED_LISTS,
    principal_directions,
    unit_rows,
)


@dataclass(frozen=True)
class Cells:
    """Cells of alike rows, as an inverted-file index has them: the rows nearest to a centroid.

    Attributes:
        directions_EW: Principal directions along which rows are compared; None for all entries.
        centroids_CW: Of length 1.
    """

    directions_EW: np.ndarray | None
    centroids_CW: np.ndarray

    def narrow(self, unit_NE: np.ndarray) -> np.ndarray:
        """Project rows to the directions that they are compared along, again to length 1."""
        if self.directions_EW is None:
            return unit_NE
        width = self.directions_EW.shape[1]
        return unit_rows(unit_NE @ self.directions_EW)[:, :width]

    def visited(self, narrow_NW: np.ndarray) -> np.ndarray:
        """Return the cells that each row's neighbours are looked for in, its own first: int32."""
        import faiss

        index = faiss.IndexFlatIP(self.centroids_CW.shape[1])
        index.add(self.centroids_CW)
        n_visited = min(VISITED_LISTS, len(self.centroids_CW))
        return index.search(narrow_NW, n_visited)[1].astype(np.int32)


def fit_cells(sample_ME: np.ndarray, n_rows: int) -> Cells:
    """Make cells for a pool of so many rows from unit vectors of a sample of it."""
    import faiss

    directions_EW = None
    if sample_ME.shape[1] > SEARCH_WIDTH and n_rows > EXACT_ROWS:
        directions_EW = principal_directions(sample_ME, SEARCH_WIDTH)
    cells = Cells(directions_EW, np.empty((0, 0), np.float32))
    narrow_MW = cells.narrow(sample_ME)
    # A small pool is one cell, in which all pairs are compared.
    n_cells = min(int(LISTS_PER_ROOT * n_rows**0.5), len(narrow_MW)) if n_rows > EXACT_ROWS else 1
    kmeans = faiss.Kmeans(
        narrow_MW.shape[1],
        n_cells,
        niter=TRAINING_ROUNDS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINING_ROWS_PER_LIST,
    )
    kmeans.train(narrow_MW)
    return Cells(directions_EW, kmeans.centroids)


def part_of_cells(counts_C: np.ndarray, centroids_CW: np.ndarray, n_parts: int) -> np.ndarray:
    """Put cells that lie together into parts of about as many rows: part_C, from 0.

    Cells are halved again and again across the direction in which they differ most. A part may
    have the rows of one cell more than its share.
    """
    part_C = np.zeros(len(counts_C), dtype=np.int32)
    to_halve = [(np.arange(len(counts_C)), 0, n_parts)]
    while to_halve:
        cells_c, first, n = to_halve.pop()
        if n == 1 or len(cells_c) <= 1:
            part_C[cells_c] = first
            continue
        weights_c = counts_C[cells_c].astype(np.float64)
        points_cW = centroids_CW[cells_c].astype(np.float64)
        points_cW = points_cW - np.average(points_cW, axis=0, weights=np.maximum(weights_c, 1e-9))
        axis_W = np.linalg.eigh((points_cW * weights_c[:, None]).T @ points_cW)[1][:, -1]
        # A direction has no sign of its own.
        axis_W = axis_W * np.sign(axis_W[np.abs(axis_W).argmax()])
        cells_c = cells_c[np.argsort(points_cW @ axis_W, kind="stable")]
        before_c = np.cumsum(counts_C[cells_c])
        share = before_c[-1] * (n // 2) / n
        cut = int(np.abs(before_c[:-1] - share).argmin()) + 1
        to_halve.append((cells_c[:cut], first, n // 2))
        to_halve.append((cells_c[cut:], first + n // 2, n - n // 2))
    return part_C


@dataclass(frozen=True)
class Layout:
    """Where each row stands in the order of parts: by part, cell, shard, and place in the shard.

    Attributes:
        part_C: The part of each cell.
        starts_SC: Position of the first row that a shard has in a cell.
        starts_P1: Position of the first row of each part, and N.
        cell_starts_C: Position of the first row of each cell.
    """

    part_C: np.ndarray
    starts_SC: np.ndarray
    starts_P1: np.ndarray
    cell_starts_C: np.ndarray


def lay_out(counts_SC: np.ndarray, centroids_CW: np.ndarray, n_parts: int) -> Layout:
    """Give every row its position, from the rows that each shard has in each cell."""
    counts_C = counts_SC.sum(axis=0)
    part_C = part_of_cells(counts_C, centroids_CW, n_parts)
    order_C = np.argsort(part_C, kind="stable")
    ends_C = np.cumsum(counts_C[order_C])
    cell_starts_C = np.empty(len(counts_C), dtype=np.int64)
    cell_starts_C[order_C] = ends_C - counts_C[order_C]
    earlier_SC = np.cumsum(counts_SC, axis=0) - counts_SC
    rows_P = np.bincount(part_C, weights=counts_C, minlength=n_parts).astype(np.int64)
    starts_P1 = np.concatenate([[0], np.cumsum(rows_P)])
    return Layout(part_C, cell_starts_C + earlier_SC, starts_P1, cell_starts_C)
