import numpy as np
import pytest

from gradsift.selection import neighbours as module
from gradsift.selection.content import content_vectors, find_clusters, fit_content, k_means_clusters
from gradsift.selection.neighbours import unit_rows


def drifting(n=400, width=12, seed=0):
    """Texts met twice: features of their own, a common direction, a trend, and uneven scales."""
    generator = np.random.default_rng(seed)
    own = generator.normal(size=(n // 2, width))
    own = np.vstack([own, own])
    step = np.arange(n) // 4
    time = step / step.max()
    trend = np.outer(time**2, 6 * generator.normal(size=width))
    scale = np.geomspace(0.1, 30, width)
    return ((own + trend) * scale + 50).astype(np.float32), step


def cosines_of_copies(vectors):
    unit = unit_rows(vectors)
    half = len(unit) // 2
    return np.einsum("ne,ne->n", unit[:half], unit[half:])


def test_vectors_have_mean_0_and_standard_deviation_1():
    x, step = drifting()
    vectors = content_vectors(x, step)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(vectors.std(axis=0), 1, rtol=1e-4)
    few = content_vectors(x, step // 10)
    assert len(np.unique(step // 10)) < 16
    np.testing.assert_allclose(few, (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-3)


def test_the_trend_is_that_of_a_polynomial_fit():
    x, step = drifting()
    expected = np.stack(
        [column - np.polyval(np.polyfit(step, column, 3), step) for column in x.T.astype(float)], 1
    )
    found = content_vectors(x, step)
    np.testing.assert_allclose(found, expected / expected.std(axis=0), atol=2e-3)


def test_copies_that_were_met_at_other_times_are_found_again():
    x, step = drifting()
    assert cosines_of_copies(content_vectors(x, step)).min() > 0.92
    assert cosines_of_copies(x - x.mean(axis=0)).min() < 0.9
    assert cosines_of_copies(content_vectors(x, np.zeros(len(x)))).min() < 0.9


def test_no_feature_decides_alone():
    x, step = drifting()
    vectors = unit_rows(content_vectors(x, step))
    assert (vectors**2).mean(axis=0).max() < 2 / x.shape[1]


def test_other_rows_are_put_on_the_scale_of_the_pool_at_their_own_step():
    x, step = drifting()
    scale = fit_content(x, step)
    np.testing.assert_array_equal(scale.vectors(x[7:9], step[7:9]), content_vectors(x, step)[7:9])


def test_a_feature_that_does_not_vary_says_nothing():
    x, step = drifting()
    x[:, 3] = 0.1
    assert (content_vectors(x, step)[:, 3] == 0).all()
    assert (content_vectors(np.full((5, 3), 0.1, dtype=np.float32), np.arange(5)) == 0).all()


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_pools(n):
    assert np.isfinite(content_vectors(np.ones((n, 3)), np.arange(n))).all()


def test_blocks_change_nothing(monkeypatch):
    x, step = drifting()
    whole = content_vectors(x, step)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 100)
    np.testing.assert_allclose(content_vectors(x, step), whole, atol=1e-4)


def test_there_is_a_cluster_for_every_20_rows():
    vectors = content_vectors(*drifting())
    clusters = find_clusters(vectors)
    assert set(clusters.tolist()) == set(range(20))
    np.testing.assert_array_equal(clusters, k_means_clusters(unit_rows(vectors), 20, seed=0))
