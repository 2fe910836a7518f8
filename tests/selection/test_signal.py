import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gaussian_kde, median_abs_deviation, multivariate_normal

from gradsift.selection.signal import (
    SIDES,
    combined_signal,
    gradient_score,
    log_density,
    magnitude,
    percentile_rank,
    rank_correlation,
    robust_standardise,
    typical_region,
)

LAYERS = ("embedding", "lm_head")
ALL = ("max", "min", "mean", "mean_abs", "std", "l2_norm")


def values(n, seed=0):
    generator = np.random.default_rng(seed)
    out = {}
    for layer in LAYERS:
        out[layer] = {name: np.exp(generator.normal(size=n)) for name in ALL}
        out[layer]["min"] = -out[layer]["min"]
        out[layer]["mean"] = generator.normal(size=n) * 1e-9
        # As in a real store: the norm is the std times a constant.
        out[layer]["l2_norm"] = out[layer]["std"] * 1000
    return out


def test_robust_standardise_is_scipys_mad_and_unmoved_by_a_wild_row():
    x = np.random.default_rng(0).normal(5, 3, size=501)
    expected = (x - np.median(x)) / median_abs_deviation(x, scale="normal")
    np.testing.assert_allclose(robust_standardise(x), expected, rtol=1e-12)
    wild = np.append(x, 1e9)
    assert np.abs(robust_standardise(wild)[:-1] - expected).max() < 0.05


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([2.0, 2, 2, 2, 7], [0, 0, 0, 0, 2.5]),
        ([3.0, 3, 3], [0, 0, 0]),
        ([4.0], [0]),
    ],
)
def test_robust_standardise_without_spread_in_the_middle(x, expected):
    np.testing.assert_allclose(robust_standardise(np.array(x)), expected)


def test_the_default_signal_is_the_standardised_log_norm_of_each_layer():
    pool = values(50)
    expected = [robust_standardise(np.log(pool[layer]["l2_norm"])) for layer in LAYERS]
    signal = combined_signal(pool)
    np.testing.assert_array_equal(signal, np.stack(expected, axis=1))
    np.testing.assert_allclose(magnitude(pool), signal.mean(axis=1))


def test_all_statistics_are_whitened_and_repeated_directions_left_out():
    signal = combined_signal(values(200), statistics=ALL)
    # 2 · 6 columns, but norm and std of a layer are one direction.
    assert signal.shape == (200, 10)
    np.testing.assert_allclose(np.cov(signal, rowvar=False), np.eye(10), atol=1e-8)
    assert np.isfinite(log_density(signal)).all()


def test_a_norm_of_zero_counts_as_the_smallest_other():
    pool = {"lm_head": {"l2_norm": np.array([0.0, 0.5, 2.0, 8.0])}}
    signal = combined_signal(pool, layers=("lm_head",))[:, 0]
    assert signal[0] == signal[1] < signal[2] < signal[3]
    nothing = {"lm_head": {"l2_norm": np.zeros(4)}}
    assert (combined_signal(nothing, layers=("lm_head",)) == 0).all()


@pytest.mark.parametrize(
    ("layers", "statistics", "message"),
    [
        (("head",), ("std",), "layer 'head' is unknown"),
        (LAYERS, ("norm",), "statistic 'norm' is unknown"),
        ((), ("std",), "at least one"),
        (LAYERS, (), "at least one"),
    ],
)
def test_an_unknown_part_of_the_signal_is_refused(layers, statistics, message):
    with pytest.raises(ValueError, match=message):
        combined_signal(values(5), layers=layers, statistics=statistics)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_log_density_is_scipys_and_the_sum_of_kernels(k):
    signal = np.random.default_rng(k).normal(size=(60, k)) @ np.diag([1.0, 3.0, 0.2][:k])
    found = log_density(signal)
    np.testing.assert_allclose(found, gaussian_kde(signal.T).logpdf(signal.T), rtol=1e-9)
    bandwidth = np.atleast_2d(np.cov(signal.T)) * 60 ** (-2 / (k + 4))
    kernels = [multivariate_normal(row, bandwidth).pdf(signal) for row in signal]
    np.testing.assert_allclose(found, np.log(np.mean(kernels, axis=0)), rtol=1e-9)


def test_a_constant_column_changes_no_density():
    signal = np.random.default_rng(0).normal(size=(40, 1))
    padded = np.hstack([signal, np.full((40, 1), 0.1)])
    np.testing.assert_allclose(log_density(padded), log_density(signal), rtol=1e-9)


@pytest.mark.parametrize(
    "signal", [np.ones((5, 2)), np.ones((1, 2)), np.zeros((3, 1)), np.empty((4, 0))]
)
def test_a_constant_signal_makes_all_equally_typical(signal):
    assert (log_density(signal) == 0).all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_density_with_no_more_instances_than_columns(n):
    signal = np.random.default_rng(0).normal(size=(n, 4))
    assert np.isfinite(log_density(signal)).all()


def test_an_instance_far_out_has_a_finite_and_the_lowest_density():
    signal = np.append(np.random.default_rng(0).normal(size=(50, 2)), [[40.0, -40.0]], axis=0)
    found = log_density(signal)
    assert np.isfinite(found).all()
    assert found.argmin() == 50


@pytest.mark.parametrize(
    ("x", "expected"),
    [([3, 1, 2], [1, 0, 0.5]), ([1, 1, 5], [0.25, 0.25, 1]), ([2, 2], [0.5, 0.5]), ([9], [0.5])],
)
def test_percentile_rank(x, expected):
    np.testing.assert_allclose(percentile_rank(np.array(x)), expected)


def test_typical_region_ends_where_the_density_bends():
    tail, bulk = np.array([-10.0, -8, -6, -4]), np.linspace(-1, 0, 16)
    np.testing.assert_array_equal(typical_region(np.append(bulk, tail)), [True] * 16 + [False] * 4)


@pytest.mark.parametrize("x", [[1.0], [1.0, 5], [2.0, 2, 2], [0.0, 0, 0, 1], [0.0, 1, 2, 3]])
def test_without_a_bend_there_is_no_tail(x):
    assert typical_region(np.array(x)).all()


def test_a_majority_is_typical_even_where_the_density_bends_later():
    x = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 7.01, 7.02])
    np.testing.assert_array_equal(typical_region(x), x >= 5)


def test_outliers_of_the_pool_are_outside_the_typical_region():
    generator = np.random.default_rng(3)
    signal = generator.normal(size=(300, 2))
    signal[:15] = 8 + 4 * generator.uniform(-1, 1, size=(15, 2))
    typical = typical_region(log_density(signal))
    assert not typical[:15].any()
    assert typical[15:].mean() > 0.75


def test_the_sides_prefer_what_they_say():
    size = np.array([0.0, 1, 2, 3, 9])
    density = np.array([-1.2, -1.0, -1.1, -1.3, -9])
    score = {side: gradient_score(size, density, side) for side in SIDES}
    np.testing.assert_allclose(score["representative"], [0.5, 1, 0.75, 0.25, 0])
    np.testing.assert_allclose(score["informative"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(score["balanced"], [0.25, 0.5, 0.75, 1, 0])
    with pytest.raises(ValueError, match="'middle', expected one of representative"):
        gradient_score(size, density, "middle")


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-700, 10)), min_size=1, max_size=30),
    st.sampled_from(SIDES),
)
def test_every_score_is_in_0_1_and_follows_its_instance(pairs, side):
    size, density = np.array(pairs).T
    score = gradient_score(size, density, side)
    assert np.isfinite(score).all()
    assert score.min() >= 0
    assert score.max() <= 1
    turned = gradient_score(size[::-1], density[::-1], side)
    np.testing.assert_array_equal(turned[::-1], score)


def test_rank_correlation():
    a = np.array([1.0, 2, 3, 4, 5])
    # 1 − 6·Σd²/(n(n²−1)) with d = (0, 0, 1, −1, 0)
    assert rank_correlation(a, np.array([10.0, 20, 40, 30, 99])) == pytest.approx(0.9)
    assert rank_correlation(a, np.exp(-a)) == pytest.approx(-1)
    assert rank_correlation(a, np.ones(5)) is None
    assert rank_correlation(a[:2], a[:2]) is None
