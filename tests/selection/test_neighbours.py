import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.selection import neighbours as module
from gradsift.selection.neighbours import find_neighbours, unit_rows
from pools import slow_cosines

STEP = 2.0**-20


def clustered(n, width=8, seed=0, spread=0.3):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(2, n // 15), width))
    x = centres[generator.integers(len(centres), size=n)]
    return (x + spread * generator.normal(size=(n, width))).astype(np.float32)


def dense(graph):
    matrix = np.zeros((len(graph), len(graph)), dtype=np.float32)
    matrix[graph.owners(), graph.rows_E] = graph.cosines_E
    return matrix


def test_a_small_pool_has_every_positive_cosine():
    x = clustered(40)
    expected = np.maximum(slow_cosines(x), 0)
    found = dense(find_neighbours(x))
    np.testing.assert_allclose(found, expected, atol=STEP)
    assert (found > 0).sum() == (expected > STEP).sum()


@pytest.mark.parametrize("exact_rows", [10**6, 0])
@pytest.mark.parametrize("width", [8, 100])
def test_a_larger_pool_has_the_nearest(exact_rows, width):
    x, k = clustered(600, width), 12
    found = dense(find_neighbours(x, n_neighbours=k, complete_rows=0, exact_rows=exact_rows))
    true = slow_cosines(x)
    there = found > 0
    np.testing.assert_allclose(found[there], true[there], atol=2 * STEP)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 1).all()
    nearest = np.argsort(-true, axis=1)[:, :k]
    recall = np.take_along_axis(there, nearest, axis=1).mean()
    assert recall == 1 if exact_rows else recall > 0.9


def test_beyond_its_neighbours_a_row_is_represented_a_little_less_than_by_the_last():
    x, k = clustered(300), 12
    graph = find_neighbours(x, n_neighbours=k, complete_rows=0)
    last = np.sort(slow_cosines(x), axis=1)[:, -k]
    np.testing.assert_allclose(graph.floor_N, 0.85 * np.maximum(last, 0), atol=2 * STEP)
    assert (find_neighbours(x).floor_N == 0).all()


def test_rows_are_in_order_and_of_is_a_row_of_the_matrix():
    graph = find_neighbours(clustered(300), n_neighbours=5, complete_rows=0)
    matrix = dense(graph)
    for row in (0, 17, 299):
        rows, cosines = graph.of(row)
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(rows, np.flatnonzero(matrix[row]))
        np.testing.assert_array_equal(cosines, matrix[row, rows])


@given(st.integers(0, 10**6), st.booleans())
def test_cosines_are_steps_so_that_sums_do_not_depend_on_order(seed, complete):
    x = np.random.default_rng(seed).normal(size=(25, 3))
    cosines = find_neighbours(x, complete_rows=100 if complete else 0).cosines_E
    assert (cosines / STEP == np.round(cosines / STEP)).all()
    shuffled = np.random.default_rng(seed).permutation(cosines)
    assert cosines.sum(dtype=np.float64) == shuffled.sum(dtype=np.float64)


@pytest.mark.parametrize("complete_rows", [0, 1000])
def test_equal_rows_have_equal_cosines(complete_rows):
    x = clustered(60)
    x[40] = x[3]
    matrix = dense(find_neighbours(x, n_neighbours=60, complete_rows=complete_rows))
    assert matrix[3, 40] == 1
    others = [row for row in range(60) if row not in (3, 40)]
    np.testing.assert_array_equal(matrix[3, others], matrix[40, others])


def test_more_copies_than_neighbours_still_know_themselves():
    x = np.vstack([np.tile([[1.0, 2.0, 3.0]], (30, 1)), clustered(10, 3)])
    graph = find_neighbours(x, n_neighbours=4, complete_rows=0)
    assert (np.diag(dense(graph)) == 1).all()


def test_zero_rows_are_alike_among_themselves_only():
    found = dense(find_neighbours(np.array([[1.0, 0], [-1, 0], [0, 0], [0, 0]])))
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_identical_rows_are_all_duplicates(n):
    for x in (np.full((n, 3), 0.1, dtype=np.float32), np.zeros((n, 3))):
        assert (dense(find_neighbours(x)) == 1).all()


def test_blocks_change_nothing(monkeypatch):
    x = clustered(50)
    whole, units = dense(find_neighbours(x)), unit_rows(x)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 100)
    np.testing.assert_allclose(dense(find_neighbours(x)), whole, atol=STEP)
    np.testing.assert_array_equal(unit_rows(x), units)
