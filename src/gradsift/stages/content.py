"""What the rows of a run are about: neighbours and topics, found once and kept."""

from __future__ import annotations

import numpy as np

from gradsift.selection import neighbours as graph
from gradsift.selection.content import content_vectors, find_clusters
from gradsift.selection.neighbours import Neighbours, find_neighbours
from gradsift.store.reader import GradientStore
from gradsift.store.tables import read_neighbours, write_neighbours

# Changes whenever the graph or the topics are made otherwise.
_MADE_BY = f"2 {graph.N_NEIGHBOURS} {graph.COMPLETE_ROWS} {graph.EXACT_ROWS}"


def content_of(store: GradientStore) -> tuple[Neighbours, np.ndarray]:
    """Find, or read, the neighbours and topics of the instances with finite gradients.

    Kept in the run folder where finding them takes a while.

    Args:
        store: A complete gradient store.

    Returns:
        The graph and cluster_N, in the order of the ids.
    """
    made_from = f"{_MADE_BY} {store.fingerprint()}"
    kept = read_neighbours(store.folder, made_from)
    if kept is not None:
        return Neighbours(*kept[:-1]), kept[-1]
    vectors_ND = content_vectors(store.content_ND[store.finite], store.step[store.finite])
    neighbours, cluster_N = find_neighbours(vectors_ND), find_clusters(vectors_ND)
    if len(neighbours) > graph.COMPLETE_ROWS:
        write_neighbours(
            store.folder,
            made_from,
            neighbours.offsets,
            neighbours.rows_E,
            neighbours.cosines_E,
            neighbours.floor_N,
            cluster_N,
        )
    return neighbours, cluster_N
