import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.selection import objective as module
from gradsift.selection.objective import (
    Objective,
    content_similarity,
    coverage,
    losses,
    near_pairs,
)


def features(n, width=4, seed=0):
    return np.random.default_rng(seed).normal(1.0, 1.0, size=(n, width)).astype(np.float32)


def slow_value(x, score, rows, *, alpha, beta, gamma, tau, expected_rows):
    """F from its definition, in plain loops."""
    x = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    n = len(x)

    def cosine(i, j):
        return x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))

    covered = sum(max(max(0.0, cosine(u, i)) for i in rows) for u in range(n))
    pairs = [(i, j) for i in rows for j in rows if i < j]
    near = sum(max(0.0, (cosine(i, j) - tau) / (1 - tau)) for i, j in pairs)
    gradient = sum(score[i] for i in rows)
    return alpha * gradient / expected_rows + beta * covered / n - gamma * near / expected_rows


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_objective_is_its_definition(seed, tau):
    generator = np.random.default_rng(seed)
    x, score = features(12, seed=seed), generator.random(12)
    rows = generator.permutation(12)[: 1 + seed * 2]
    weights = {"alpha": 0.7, "beta": 1.3, "gamma": 2.1, "expected_rows": 4.5}
    found = Objective(score, content_similarity(x, tau), **weights).value(rows)
    assert found == pytest.approx(slow_value(x, score, rows, tau=tau, **weights), rel=1e-5)


def test_a_duplicate_costs_as_much_as_a_whole_score_brings():
    x = features(20)
    x[1] = x[0]
    similarity = content_similarity(x, 0.8)
    assert near_pairs(similarity, np.array([0, 1])) == pytest.approx(1)
    objective = Objective(np.ones(20), similarity, 10.0, alpha=1.0, beta=0.0, gamma=1.0)
    alone, both = objective.value(np.array([0])), objective.value(np.array([0, 1]))
    assert both == pytest.approx(alone)
    assert objective.value(np.array([], dtype=int)) == 0


@given(st.integers(0, 10**6))
def test_the_objective_is_submodular(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(9, 2))
    objective = Objective(
        generator.random(9), content_similarity(x, 0.3), 4.0, *generator.random(3)
    )
    order = generator.permutation(9)
    small, large, row = order[:2], order[:6], order[8:]
    gain_early = objective.value(np.append(small, row)) - objective.value(small)
    gain_late = objective.value(np.append(large, row)) - objective.value(large)
    assert gain_late <= gain_early + 1e-9


def test_centring_tells_apart_what_raw_cosines_do_not():
    x = features(30) + 100
    raw = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert (raw @ raw.T).min() > 0.9
    cosine = content_similarity(x, 0.8).cosines(np.arange(30))
    assert cosine.min() < -0.5
    np.testing.assert_array_equal(cosine, cosine.T)


def test_rows_at_the_mean_are_alike_among_themselves_only():
    x = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 0]])
    cosine = content_similarity(x, 0.8).cosines(np.arange(4))
    np.testing.assert_allclose(cosine, [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_identical_rows_are_all_duplicates(n):
    x = np.full((n, 3), 0.1, dtype=np.float32)
    assert (content_similarity(x, 0.8).cosines(np.arange(n)) == 1).all()
    assert (content_similarity(np.zeros((n, 3)), 0.8).near(np.arange(n)) == 1).all()


def test_near_is_zero_up_to_the_threshold_and_one_for_a_duplicate():
    similarity = module.Similarity(np.array([[1, 0.8, 0.9, -1]], dtype=np.float32), 0.8)
    np.testing.assert_allclose(similarity.near(np.array([0])), [[1, 0, 0.5, 0]], atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    x, rows = features(23), np.arange(0, 23, 2)
    whole = content_similarity(x, 0.5)
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    parts = content_similarity(x, 0.5)
    np.testing.assert_allclose(parts.cosine_NN, whole.cosine_NN, atol=1e-6)
    assert near_pairs(parts, rows) == pytest.approx(near_pairs(whole, rows[::-1]))
    assert coverage(parts, rows) == pytest.approx(
        np.maximum(whole.cosine_NN[rows], 0).max(axis=0).mean()
    )


def test_the_losses():
    x = features(10)
    x[5:] = x[:5]
    density, similarity = -np.arange(10.0), content_similarity(x, 0.8)
    pool = losses(np.arange(10), density, similarity)
    half = losses(np.arange(5), density, similarity)
    assert (pool.density, half.density) == (4.5, 2.0)
    # Every row of the other half is there as its copy.
    assert pool.content_diversity == pytest.approx(0, abs=1e-6)
    assert half.content_diversity == pytest.approx(0, abs=1e-6)
    one = losses(np.array([0]), density, similarity)
    assert one.content_diversity == pytest.approx(
        1 - np.maximum(similarity.cosine_NN[0], 0).mean(), abs=1e-6
    )
    # Each distinct pair is there 4 times among 10 rows, and each row once more as its copy.
    between = near_pairs(similarity, np.arange(5))
    assert pool.similarity == pytest.approx((4 * between + 5) / 10)
    assert half.similarity == pytest.approx(between / 5)


def test_too_many_instances_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match=r"20001 instances.*at most 20000.*random part"):
        content_similarity(np.zeros((20_001, 1), dtype=np.float32), 0.8)


@pytest.mark.parametrize("tau", [1.0, -0.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(tau):
    with pytest.raises(ValueError, match="near_threshold is"):
        content_similarity(features(3), tau)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1.0, 1.0, 1.0), "alpha is -1.0"),
        ((1.0, float("nan"), 1.0), "beta is nan"),
        ((1.0, 1.0, float("inf")), "gamma is inf"),
        ((0.0, 0.0, 0.0), "nothing to maximise"),
    ],
)
def test_coefficients_that_mean_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Objective(np.ones(3), content_similarity(features(3), 0.8), 1.0, *weights)
