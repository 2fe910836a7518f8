"""The objective that a selection maximises, and the losses that describe any subset.

Shapes: N instances of the pool, D content features, S rows of a subset, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_EXACT = 20_000
BLOCK_ROWS = 512
# Below this part of the largest norm, what centring leaves of a row is rounding.
_ZERO_NORM = 1e-6


@dataclass(frozen=True)
class Similarity:
    """Similarity of content between all instances of a pool, exact.

    Selection asks only for whole rows, by the two methods below: another way to hold them (a
    sparse neighbour graph) can take the place of the matrix.
    """

    cosine_NN: np.ndarray
    near_threshold: float

    def __len__(self) -> int:
        return len(self.cosine_NN)

    def cosines(self, rows_R: np.ndarray) -> np.ndarray:
        """Return the cosines of some rows with all instances.

        Args:
            rows_R: Positions.

        Returns:
            cosine_RN in [-1, 1], float32; 1 with itself.
        """
        return self.cosine_NN[rows_R]

    def near(self, rows_R: np.ndarray) -> np.ndarray:
        """Return how near some rows are to being duplicates of all instances: sim⁺.

        Args:
            rows_R: Positions.

        Returns:
            near_RN = max(0, (cosine − τ)/(1 − τ)) with τ the near threshold, float64: 0 up to a
            cosine of τ, 1 for a duplicate (and with itself).
        """
        tau = self.near_threshold
        return np.maximum((self.cosine_NN[rows_R].astype(np.float64) - tau) / (1 - tau), 0)


def content_similarity(features_ND: np.ndarray, near_threshold: float) -> Similarity:
    """Compute the cosines of content features after the pool's mean was subtracted.

    Hidden states of a language model share one large direction, so that raw cosines are all near
    0.9; without the mean they tell texts apart. A row that equals the mean has no direction left:
    it counts as the same as other such rows and as unlike everything else. Computed in float64
    and kept in float32 (N² · 4 bytes), so that rows with equal features get equal cosines.

    Args:
        features_ND: Content features, finite.
        near_threshold: τ in [0, 1): cosines above it count as near-duplicates.

    Returns:
        The similarity.

    Raises:
        ValueError: If the pool is too large for an N×N matrix, or the threshold is out of range.
    """
    n = len(features_ND)
    if n > MAX_EXACT:
        raise ValueError(
            f"{n} instances: exact selection compares all pairs and takes at most {MAX_EXACT}. "
            "Capture a random part of the rows, or split the file and select from each part."
        )
    if not 0 <= near_threshold < 1:
        raise ValueError(f"near_threshold is {near_threshold}, expected at least 0 and below 1.")
    unit_NE = _unit_rows(features_ND)
    cosine_NN = np.empty((n, n), dtype=np.float32)
    for rows_R in blocks(n):
        cosine_NN[rows_R] = np.clip(unit_NE[rows_R] @ unit_NE.T, -1, 1)
    np.fill_diagonal(cosine_NN, 1)
    return Similarity(cosine_NN, near_threshold)


@dataclass(frozen=True)
class Objective:
    """F(S) = α·Σ g_i / B + β·FL(S)/FL(pool) − γ·Σ_{i<j} near_ij / B, to be maximised.

    g_i is the gradient score; FL(S) = Σ_u max_{i∈S} max(0, cosine_ui) is facility location over
    the pool: how well each instance is represented by the most similar selected one; near_ij (see
    `Similarity.near`) counts pairs of near-duplicates. Every instance represents itself, so
    FL(pool) = N. B is the number of rows that the budget stands for. So the first term is at most
    about 1 (the mean score), the second at most 1, and in the third each pair of duplicates costs
    as much as a whole score of 1 brings: the coefficients compare.

    The first term is modular; the second is monotone submodular, since a further row can only
    cover what is not covered yet; the third is minus a sum over pairs, so that each further row
    costs at least as much as before: submodular, not monotone. The sum is thus submodular: the
    gain of a row never grows while others are selected. Hence a gain computed earlier is an upper
    bound, and lazy greedy chooses exactly what greedy chooses. With γ = 0 and a budget of rows,
    F of the greedy choice is at least 1 − 1/e of the best possible (Nemhauser et al., 1978); with
    γ > 0 this guarantee does not hold, since F may fall.
    """

    score_N: np.ndarray
    similarity: Similarity
    expected_rows: float
    alpha: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        coefficients = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        for name, value in coefficients.items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0.")
        if not any(coefficients.values()):
            raise ValueError(
                "alpha, beta and gamma are all 0: there is nothing to maximise. "
                "Give one of them a value above 0, or use the strategy random."
            )

    def value(self, rows_S: np.ndarray) -> float:
        """Compute F of a subset.

        Args:
            rows_S: Positions, each at most once.

        Returns:
            F; 0 for the empty subset.
        """
        if len(rows_S) == 0:
            return 0.0
        gradient = self.score_N[rows_S].sum() / self.expected_rows
        near = near_pairs(self.similarity, rows_S) / self.expected_rows
        return float(
            self.alpha * gradient
            + self.beta * coverage(self.similarity, rows_S)
            - self.gamma * near
        )


def coverage(similarity: Similarity, rows_S: np.ndarray) -> float:
    """Compute FL(S)/FL(pool), the share of the pool's content that a subset represents.

    Args:
        similarity: Of the pool.
        rows_S: Positions, at least one.

    Returns:
        A value in (0, 1]; 1 for the whole pool.
    """
    covered_N = np.zeros(len(similarity))
    for block in blocks(len(rows_S)):
        cosine_RN = similarity.cosines(rows_S[block])
        np.maximum(covered_N, cosine_RN.max(axis=0), out=covered_N)
    return float(covered_N.mean())


def near_pairs(similarity: Similarity, rows_S: np.ndarray) -> float:
    """Compute Σ_{i<j∈S} near_ij, the near-duplicate pairs within a subset.

    Args:
        similarity: Of the pool.
        rows_S: Positions, each at most once.

    Returns:
        The sum; a pair of exact duplicates counts 1.
    """
    total = 0.0
    for block in blocks(len(rows_S)):
        total += similarity.near(rows_S[block])[:, rows_S].sum()
    return float((total - len(rows_S)) / 2)


@dataclass(frozen=True)
class Losses:
    """What a subset loses; lower is better, and only comparisons on one pool mean something.

    `density`: mean negative log-density of the subset's signal under the pool's KDE, in nats.
    `content_diversity`: 1 − FL(S)/FL(pool), 0 for the whole pool.
    `similarity`: Σ_{i<j∈S} near_ij / |S|, duplicates for each selected row.
    """

    density: float
    content_diversity: float
    similarity: float


def losses(rows_S: np.ndarray, log_density_N: np.ndarray, similarity: Similarity) -> Losses:
    """Compute the three losses of a subset.

    Args:
        rows_S: Positions, at least one, each at most once.
        log_density_N: Of the pool.
        similarity: Of the pool.

    Returns:
        The losses.
    """
    assert len(rows_S) > 0, "the losses of an empty subset are not defined"
    return Losses(
        density=float(-log_density_N[rows_S].mean()),
        content_diversity=1 - coverage(similarity, rows_S),
        similarity=near_pairs(similarity, rows_S) / len(rows_S),
    )


def blocks(n: int) -> Iterator[np.ndarray]:
    """Cut 0 … n−1 into consecutive blocks, which bound the memory of what is done to each.

    Args:
        n: Number of positions.

    Yields:
        Positions, at most BLOCK_ROWS at a time.
    """
    for start in range(0, n, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, n))


def _unit_rows(features_ND: np.ndarray) -> np.ndarray:
    features_ND = np.asarray(features_ND, dtype=np.float64)
    assert np.isfinite(features_ND).all(), "content features are not finite"
    largest = np.linalg.norm(features_ND, axis=1).max(initial=0)
    centred_ND = features_ND - features_ND.mean(axis=0)
    norm_N1 = np.linalg.norm(centred_ND, axis=1, keepdims=True)
    at_mean_N1 = norm_N1 <= _ZERO_NORM * largest
    unit_ND = np.where(at_mean_N1, 0, centred_ND / np.where(at_mean_N1, 1, norm_N1))
    # A coordinate of their own makes the rows at the mean alike among themselves only.
    return np.hstack([unit_ND, at_mean_N1])
