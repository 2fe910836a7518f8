import numpy as np
import pytest
from scipy.stats import gaussian_kde, multivariate_normal

from gradsift.selection import density as module
from gradsift.selection.density import estimate_density, whiten


def exact(signal):
    return gaussian_kde(signal.T).logpdf(signal.T)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_log_density_is_scipys_and_the_sum_of_kernels(k):
    signal = np.random.default_rng(k).normal(size=(60, k)) @ np.diag([1.0, 3.0, 0.2][:k])
    found = estimate_density(signal)
    # Whitening is linear, so that the densities differ by one factor.
    np.testing.assert_allclose(np.ptp(found.log_N - exact(signal)), 0, atol=1e-9)
    assert (found.method, found.error) == ("exact", 0.0)
    bandwidth = np.eye(k) * 60 ** (-2 / (k + 4))
    white = whiten(signal)
    kernels = [multivariate_normal(row, bandwidth).pdf(white) for row in white]
    np.testing.assert_allclose(found.log_N, np.log(np.mean(kernels, axis=0)), rtol=1e-9, atol=1e-9)


def heavy(n, k, seed=0):
    """A sample with two humps, correlated columns and a few rows far out."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, k))
    x[: n // 3] += 3
    x[:5] = 12 * generator.normal(size=(5, k))
    return x @ (np.eye(k) + 0.7)


@pytest.mark.parametrize(("k", "method"), [(1, "binned"), (2, "binned"), (3, "subsampled")])
def test_a_large_pool_is_near_the_exact_density_and_says_how_near(k, method, monkeypatch):
    monkeypatch.setattr(module, "_CENTRES", 1500)
    signal = heavy(3000, k)
    found = estimate_density(signal, exact_rows=100)
    error = np.abs(found.log_N - estimate_density(signal).log_N)
    assert found.method == method
    assert found.n_checked == 256
    assert 0 < found.error <= error.max() + 1e-9
    if method == "binned":
        assert error.max() < 0.02
    else:
        assert np.quantile(error, 0.9) < 0.3
    # The error that is told is that of 256 of the rows.
    assert found.error >= np.quantile(error, 0.9)


def test_a_signal_too_wide_for_a_grid_is_subsampled(monkeypatch):
    signal = heavy(2000, 2)
    monkeypatch.setattr(module, "_MOST_CELLS", 100)
    found = estimate_density(signal, exact_rows=100)
    assert found.method == "subsampled"
    assert np.isfinite(found.log_N).all()


def test_a_constant_column_changes_no_density():
    signal = np.random.default_rng(0).normal(size=(40, 1))
    padded = np.hstack([signal, np.full((40, 1), 0.1)])
    expected = estimate_density(signal).log_N
    np.testing.assert_allclose(estimate_density(padded).log_N, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "signal", [np.ones((5, 2)), np.ones((1, 2)), np.zeros((3, 1)), np.empty((4, 0))]
)
@pytest.mark.parametrize("exact_rows", [0, 100])
def test_a_constant_signal_makes_all_equally_typical(signal, exact_rows):
    assert (estimate_density(signal, exact_rows=exact_rows).log_N == 0).all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_density_with_no_more_instances_than_columns(n):
    signal = np.random.default_rng(0).normal(size=(n, 4))
    assert np.isfinite(estimate_density(signal).log_N).all()


SAMPLES = {
    "normal": lambda g, n: g.normal(size=(n, 3)),
    "heavy tails": lambda g, n: g.standard_t(3, size=(n, 4)),
    "skewed": lambda g, n: np.exp(g.normal(size=(n, 3))),
    "clusters": lambda g, n: (
        6 * g.normal(size=(5, 4))[g.integers(5, size=n)] + g.normal(size=(n, 4))
    ),
    "outliers": lambda g, n: g.normal(size=(n, 3)) * np.where(np.arange(n) % 20, 1, 8)[:, None],
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [None, 2])
def test_the_error_that_is_said_is_about_the_largest_of_all(name, width, monkeypatch):
    n = 6_000
    signal = SAMPLES[name](np.random.default_rng(1), n)[:, :width]
    monkeypatch.setattr(module, "_CENTRES", 600)
    found = estimate_density(signal, exact_rows=0)
    assert found.method == ("binned" if width else "subsampled")
    errors = np.abs(found.log_N - estimate_density(signal, exact_rows=n).log_N)
    assert 0.6 * errors.max() <= found.error <= errors.max() + 1e-12
    assert found.error >= np.quantile(errors, 0.995)
    # Rows that no sampled one is near are not far off either: they have their own kernel.
    assert errors.max() < 3


def test_the_order_of_the_rows_changes_not_a_bit_of_it():
    generator = np.random.default_rng(2)
    order = generator.permutation(3_000)
    for width, exact_rows in ((2, 5_000), (2, 0), (4, 0)):
        signal = generator.normal(size=(3_000, width))
        expected = estimate_density(signal, exact_rows=exact_rows)
        found = estimate_density(signal[order], exact_rows=exact_rows)
        np.testing.assert_array_equal(found.log_N, expected.log_N[order])
        assert found.error == expected.error


@pytest.mark.parametrize("exact_rows", [0, 100])
def test_an_instance_far_out_has_a_finite_and_the_lowest_density(exact_rows):
    signal = np.append(np.random.default_rng(0).normal(size=(50, 2)), [[40.0, -40.0]], axis=0)
    found = estimate_density(signal, exact_rows=exact_rows).log_N
    assert np.isfinite(found).all()
    assert found.argmin() == 50


def test_whitened_columns_are_uncorrelated():
    white = whiten(heavy(400, 3))
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(3), atol=1e-9)
