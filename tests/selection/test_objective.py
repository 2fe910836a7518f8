import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.objective import (
    Objective,
    Terms,
    coverage,
    criteria_of,
    near_pairs,
    nearest_selected,
    nearness,
)
from pools import slow_cosines, slow_value

TAU = 0.8


def features(n, width=4, seed=0):
    return np.random.default_rng(seed).normal(1.0, 1.0, size=(n, width)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_objective_is_its_definition(seed, tau):
    generator = np.random.default_rng(seed)
    x, score = features(12, seed=seed), generator.random(12)
    rows = generator.permutation(12)[: 1 + seed * 2]
    weights = {"alpha": 0.7, "beta": 1.3, "gamma": 2.1, "scale": Terms(4.5, 0.2, 3.0)}
    found = Objective(score, find_neighbours(x), similarity_threshold=tau, **weights).value(rows)
    expected = slow_value(x, score, rows, similarity_threshold=tau, **weights)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_duplicate_costs_as_much_as_a_whole_score_brings():
    x = features(20)
    x[1] = x[0]
    graph = find_neighbours(x)
    assert near_pairs(graph, np.array([0, 1]), TAU) == pytest.approx(1)
    objective = Objective(np.ones(20), graph, alpha=1.0, beta=0.0, gamma=1.0)
    alone, both = objective.value(np.array([0])), objective.value(np.array([0, 1]))
    assert both == pytest.approx(alone)
    assert objective.value(np.array([], dtype=int)) == 0


@given(st.integers(0, 10**6), st.booleans())
def test_the_objective_is_submodular(seed, sparse):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(9, 2))
    graph = find_neighbours(x, n_neighbours=3, complete_rows=0 if sparse else 100)
    objective = Objective(generator.random(9), graph, *generator.random(3), 0.3)
    order = generator.permutation(9)
    small, large, row = order[:2], order[:6], order[8:]
    gain_early = objective.value(np.append(small, row)) - objective.value(small)
    gain_late = objective.value(np.append(large, row)) - objective.value(large)
    assert gain_late <= gain_early + 1e-9


def test_nearness_is_zero_up_to_the_threshold_and_one_for_a_duplicate():
    found = nearness(np.array([1, 0.8, 0.9, -1], dtype=np.float32), 0.8)
    np.testing.assert_allclose(found, [1, 0, 0.5, 0], atol=1e-6)


def test_coverage_and_near_pairs_against_a_dense_matrix():
    x, rows = features(23), np.array([20, 3, 8, 1])
    cosine = np.maximum(slow_cosines(x), 0)
    graph = find_neighbours(x)
    assert coverage(graph, rows) == pytest.approx(cosine[rows].max(axis=0).mean(), abs=1e-6)
    pairs = np.triu(nearness(cosine[np.ix_(rows, rows)], 0.1), 1).sum()
    assert near_pairs(graph, rows, 0.1) == pytest.approx(pairs, abs=1e-5)
    assert near_pairs(graph, rows[::-1], 0.1) == near_pairs(graph, rows, 0.1)


def test_the_criteria():
    x = features(10)
    x[5:] = x[:5]
    density, graph = -np.arange(10.0), find_neighbours(x)
    pool = criteria_of(np.arange(10), density, graph, TAU)
    half = criteria_of(np.arange(5), density, graph, TAU)
    assert (pool.density, half.density) == (4.5, 2.0)
    # Every row of the other half is there as its copy.
    assert pool.content_diversity == pytest.approx(0, abs=1e-6)
    assert half.content_diversity == pytest.approx(0, abs=1e-6)
    one = criteria_of(np.array([0]), density, graph, TAU)
    expected = 1 - np.maximum(slow_cosines(x)[0], 0).mean()
    assert one.content_diversity == pytest.approx(expected, abs=1e-6)
    # Each distinct pair is there 4 times among 10 rows, and each row once more as its copy.
    between = near_pairs(graph, np.arange(5), TAU)
    assert pool.similarity == pytest.approx((4 * between + 5) / 10)
    assert half.similarity == pytest.approx(between / 5)


@given(st.integers(0, 10**6), st.booleans())
def test_the_nearest_selected_row_is_never_the_row_itself(seed, sparse):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 3))
    graph = find_neighbours(x, n_neighbours=4, complete_rows=0 if sparse else 100)
    selected = generator.permutation(20)[:6]
    nearest, cosine = nearest_selected(graph, selected)
    for row in range(20):
        rows, cosines = graph.of(row)
        pairs = zip(rows.tolist(), cosines, strict=True)
        there = {r: c for r, c in pairs if r in selected and r != row}
        if not there:
            assert nearest[row] == -1
            assert np.isnan(cosine[row])
        else:
            assert cosine[row] == max(there.values())
            assert nearest[row] == min(r for r, c in there.items() if c == cosine[row])


def test_of_equally_near_selected_rows_the_first_is_named():
    x = np.array([[1.0, 0], [1, 0], [1, 0], [-3, 1]])
    nearest, cosine = nearest_selected(find_neighbours(x), np.array([2, 1]))
    assert nearest.tolist() == [1, 2, 1, -1]
    assert cosine[:3].tolist() == [1, 1, 1]
