"""The objective that a selection maximises, and the criteria that describe any subset.

Shapes: N instances of the pool, S rows of a subset, E edges of the neighbour graph.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.selection.neighbours import Neighbours

DEFAULTS = SelectionConfig()


@dataclass(frozen=True)
class Terms:
    """One number for each term of the objective.

    Of a subset: `gradient` is Σ g_i, `diversity` FL(S)/FL(pool), `similarity` Σ_{i<j} near_ij.
    """

    gradient: float = 1.0
    diversity: float = 1.0
    similarity: float = 1.0


@dataclass(frozen=True)
class Objective:
    """F(S) = α·Σ g_i / R_g + β·FL(S)/FL(pool) / R_d − γ·Σ_{i<j} near_ij / R_s, to be maximised.

    g_i is the gradient score; FL(S) = Σ_u max_{i∈S} cosine_ui is facility location over the pool,
    how well each instance is represented by the most similar selected one, counted from what an
    instance of which no neighbour is selected has (`Neighbours.floor_N`, 0 in small pools);
    near_ij (see `nearness`) counts pairs of near-duplicates. Every instance represents itself, so
    FL(pool) = N. R (`scale`) is what each term can gain over a random subset on this pool under
    this budget (see `possible_gains`), so that the coefficients compare: α = β means that a tenth
    of what the score alone could gain is worth as much as a tenth of what diversity alone could.
    A term whose R is 0 can gain nothing and counts 0.

    The first term is modular; the second is monotone submodular, since a further row can only
    cover what is not covered yet; the third is minus a sum over pairs, so that each further row
    costs at least as much as before: submodular, not monotone. The sum is thus submodular: the
    gain of a row never grows while others are selected. Hence a gain computed earlier is an upper
    bound, and lazy greedy chooses exactly what greedy chooses. With γ = 0 and a budget of rows,
    F of the greedy choice is at least 1 − 1/e of the best possible (Nemhauser et al., 1978); with
    γ > 0 this guarantee does not hold, since F may fall.
    """

    score_N: np.ndarray
    neighbours: Neighbours
    alpha: float = DEFAULTS.alpha
    beta: float = DEFAULTS.beta
    gamma: float = DEFAULTS.gamma
    similarity_threshold: float = DEFAULTS.similarity_threshold
    scale: Terms = Terms()

    @property
    def weights(self) -> Terms:
        """What one unit of each term is worth: its coefficient over its scale."""
        pairs = zip((self.alpha, self.beta, self.gamma), astuple(self.scale), strict=True)
        return Terms(*(factor / scale if scale > 0 else 0.0 for factor, scale in pairs))

    def terms(self, rows_S: np.ndarray) -> Terms:
        """Compute the three terms of a subset, each as it is."""
        return Terms(
            float(self.score_N[rows_S].sum()),
            coverage(self.neighbours, rows_S),
            near_pairs(self.neighbours, rows_S, self.similarity_threshold),
        )

    def value(self, rows_S: np.ndarray) -> float:
        """Compute F of a subset, 0 for the empty one."""
        if len(rows_S) == 0:
            return 0.0
        floor = self.neighbours.floor_N.mean(dtype=np.float64)
        weights, terms = self.weights, self.terms(rows_S)
        return float(
            weights.gradient * terms.gradient
            + weights.diversity * (terms.diversity - floor)
            - weights.similarity * terms.similarity
        )


def nearness(cosines: np.ndarray, threshold: float) -> np.ndarray:
    """Say how near to being duplicates pairs of rows are: max(0, (cosine − τ)/(1 − τ)).

    In float64: 0 up to a cosine of τ, the threshold, 1 for a duplicate.
    """
    return np.maximum((np.asarray(cosines, dtype=np.float64) - threshold) / (1 - threshold), 0)


def coverage(neighbours: Neighbours, rows_S: np.ndarray) -> float:
    """Compute FL(S)/FL(pool), the share of the pool's content that a subset represents."""
    selected_N = np.zeros(len(neighbours), dtype=bool)
    selected_N[rows_S] = True
    cosine_E = np.where(selected_N[neighbours.rows_E], neighbours.cosines_E, 0)
    best_N = np.maximum.reduceat(cosine_E, neighbours.offsets[:-1])
    return float(np.maximum(best_N, neighbours.floor_N).mean(dtype=np.float64))


def near_pairs(neighbours: Neighbours, rows_S: np.ndarray, threshold: float) -> float:
    """Compute Σ_{i<j∈S} near_ij, the near-duplicate pairs within a subset."""
    inside_N = np.zeros(len(neighbours), dtype=bool)
    inside_N[rows_S] = True
    owner_E, other_E, cosine_E = neighbours.pairs_above(threshold)
    pair_E = inside_N[owner_E] & inside_N[other_E]
    # Sorted, so that the order of the rows does not show.
    return float(np.sort(nearness(cosine_E[pair_E], threshold)).sum())


@dataclass(frozen=True)
class Criteria:
    """What a subset loses; lower is better, and only comparisons on one pool mean something.

    `density`: mean negative log-density of the subset's signal under the pool's KDE, in nats, of
        the whitened signal.
    `content_diversity`: 1 − FL(S)/FL(pool), 0 for the whole pool.
    `similarity`: Σ_{i<j∈S} near_ij / |S|, duplicates for each selected row.
    """

    density: float
    content_diversity: float
    similarity: float


def criteria_of(
    rows_S: np.ndarray,
    log_density_N: np.ndarray,
    neighbours: Neighbours,
    similarity_threshold: float,
) -> Criteria:
    """Compute the three criteria of a subset of at least one row."""
    assert len(rows_S) > 0, "the criteria of an empty subset are not defined"
    return Criteria(
        density=float(-log_density_N[rows_S].mean()),
        content_diversity=1 - coverage(neighbours, rows_S),
        similarity=near_pairs(neighbours, rows_S, similarity_threshold) / len(rows_S),
    )


def nearest_selected(
    neighbours: Neighbours, selected_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the selected instance most similar to each instance of the pool, itself left out.

    Returns:
        nearest_N, its position, the smallest on ties, −1 where none is among the neighbours; and
        cosine_N, its cosine, NaN where there is none.
    """
    n = len(neighbours)
    selected_N = np.zeros(n, dtype=bool)
    selected_N[selected_S] = True
    owner_E = neighbours.owners()
    eligible_E = selected_N[neighbours.rows_E] & (owner_E != neighbours.rows_E)
    cosine_E = np.where(eligible_E, neighbours.cosines_E, -np.inf)
    cosine_N = np.maximum.reduceat(cosine_E, neighbours.offsets[:-1]).astype(np.float64)
    best_E = np.flatnonzero(eligible_E & (cosine_E == cosine_N[owner_E]))
    owners, first = np.unique(owner_E[best_E], return_index=True)
    nearest_N = np.full(n, -1)
    nearest_N[owners] = neighbours.rows_E[best_E[first]]
    return nearest_N, np.where(nearest_N >= 0, cosine_N, np.nan)
