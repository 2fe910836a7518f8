import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation, rankdata, spearmanr

from gradsift.errors import GradsiftError
from gradsift.selection.density import estimate_density
from gradsift.selection.scores import (
    SCORES,
    ScoreInput,
    gradient_signal,
    percentile_rank,
    rank_correlation,
    ranks,
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
    signal, magnitude = gradient_signal(pool)
    np.testing.assert_array_equal(signal, np.stack(expected, axis=1))
    np.testing.assert_allclose(magnitude, signal.mean(axis=1))


def test_all_statistics_are_whitened_and_repeated_directions_left_out():
    signal, _ = gradient_signal(values(200), statistics=ALL)
    # 2 · 6 columns, but norm and std of a layer are one direction.
    assert signal.shape == (200, 10)
    np.testing.assert_allclose(np.cov(signal, rowvar=False), np.eye(10), atol=1e-8)
    assert np.isfinite(estimate_density(signal).log_N).all()


def test_a_norm_of_zero_counts_as_the_smallest_other():
    pool = {"lm_head": {"l2_norm": np.array([0.0, 0.5, 2.0, 8.0])}}
    signal = gradient_signal(pool, layers=("lm_head",))[0][:, 0]
    assert signal[0] == signal[1] < signal[2] < signal[3]
    nothing = {"lm_head": {"l2_norm": np.zeros(4)}}
    assert (gradient_signal(nothing, layers=("lm_head",))[0] == 0).all()


def test_a_layer_that_was_not_captured_is_refused():
    with pytest.raises(ValueError, match="layer 'head' is unknown, expected one of embedding"):
        gradient_signal(values(5), layers=("head",))


@pytest.mark.parametrize(
    ("x", "expected"),
    [([3, 1, 2], [1, 0, 0.5]), ([1, 1, 5], [0.25, 0.25, 1]), ([2, 2], [0.5, 0.5]), ([9], [0.5])],
)
def test_percentile_rank(x, expected):
    np.testing.assert_allclose(percentile_rank(np.array(x)), expected)


@given(st.lists(st.integers(-3, 3), min_size=1))
def test_ranks_are_scipys(x):
    np.testing.assert_array_equal(ranks(np.array(x)), rankdata(x))


def test_typical_region_is_tukeys_fence():
    bulk = np.linspace(-1, 0, 16)
    np.testing.assert_array_equal(
        typical_region(np.append(bulk, [-10.0, -8, -6, -4])), [True] * 16 + [False] * 4
    )
    lower, upper = np.quantile(-bulk, [0.25, 0.75])
    edge = -(upper + 1.5 * (upper - lower))
    # Two more rows move the quartiles a little; far enough on either side they do not matter.
    assert typical_region(np.append(bulk, [edge + 0.5, edge - 0.5])).tolist()[16:] == [True, False]


@pytest.mark.parametrize("x", [[1.0], [1.0, 5], [2.0, 2, 2], [0.0, 1, 2, 3]])
def test_where_nothing_lies_apart_there_is_no_tail(x):
    assert typical_region(np.array(x)).all()


def test_of_clean_samples_little_is_cut():
    generator = np.random.default_rng(0)
    normal = estimate_density(generator.normal(size=(4000, 2))).log_N
    uniform = estimate_density(generator.uniform(size=(4000, 2))).log_N
    assert 0.02 < 1 - typical_region(normal).mean() < 0.08
    assert 0.02 < 1 - typical_region(uniform).mean() < 0.06


def test_outliers_of_the_pool_are_outside_the_typical_region():
    generator = np.random.default_rng(3)
    signal = generator.normal(size=(300, 2))
    signal[:15] = 8 + 4 * generator.uniform(-1, 1, size=(15, 2))
    typical = typical_region(estimate_density(signal).log_N)
    assert not typical[:15].any()
    assert typical[15:].mean() > 0.9


def test_magnitude_goes_by_the_statistics_of_the_signal_but_the_signed_mean():
    pool = values(50)
    expected = np.mean(
        [robust_standardise(np.log(pool[layer][s])) for layer in LAYERS for s in ("max", "std")],
        axis=0,
    )
    found = gradient_signal(pool, statistics=("max", "mean", "std"))[1]
    np.testing.assert_allclose(found, expected)
    alone = gradient_signal(pool, layers=("lm_head",), statistics=("mean",))[1]
    np.testing.assert_allclose(alone, robust_standardise(pool["lm_head"]["mean"]))


def scored(name, magnitude, density, difficulty):
    ones = np.ones(len(difficulty))
    losses = {"response": difficulty, "mismatched": ones, "mismatched_again": ones}
    given = ScoreInput(magnitude, density, (), losses)
    return SCORES[name].function(given)


def test_the_scores_prefer_what_they_say():
    size = np.array([0.0, 1, 2, 3, 9])
    density = np.array([-1.2, -1.0, -1.1, -1.3, -9])
    difficulty = np.array([0.9, 0.2, np.inf, 1.5, 0.5])
    score = {name: scored(name, size, density, difficulty) for name in SCORES}
    np.testing.assert_allclose(score["low-norm"], [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(score["prompt-gain"], [0.5, 1, 0, 0.25, 0.75])
    np.testing.assert_allclose(score["density"], [0.5, 1, 0.75, 0.25, 0])
    np.testing.assert_allclose(score["high-norm"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(score["high-norm-in-density"], [0.25, 0.5, 0.75, 1, 0])


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-700, 10)), min_size=1, max_size=30),
    st.sampled_from(sorted(SCORES)),
)
def test_every_score_is_in_0_1_and_follows_its_instance(pairs, name):
    size, density = np.array(pairs).T
    score = scored(name, size, density, size)
    assert np.isfinite(score).all()
    assert score.min() >= 0
    assert score.max() <= 1
    turned = scored(name, size[::-1], density[::-1], size[::-1])
    np.testing.assert_array_equal(turned[::-1], score)


def test_the_prompts_gain_is_taken_beside_rows_of_about_the_same_length():
    generator = np.random.default_rng(0)
    length, own = generator.integers(5, 400, size=600), generator.normal(size=600)
    losses = {
        "response": own - np.log(length),
        "mismatched": np.zeros(600),
        "mismatched_again": np.full(600, 2.0),
    }
    nothing = np.zeros(600)
    given = ScoreInput(nothing, nothing, [own], losses, lengths=[length])
    found = SCORES["prompt-gain"].function(given)
    assert rank_correlation(-losses["response"], length) > 0.5
    assert abs(rank_correlation(found, length)) < 0.1
    assert rank_correlation(found, -own) > 0.9


def test_the_prompts_gain_is_that_of_whole_responses_over_two_other_prompts():
    losses = {
        "response": np.array([0.5, 5.0, 1.0, 0.3, 2.0, 1.0]),
        "mismatched": np.array([0.5, 6.5, 2.0, np.nan, 1.0, 1.0]),
        "mismatched_again": np.array([1.5, 5.5, 1.0, 9.0, 1.0, 3.0]),
    }
    n_response, nothing = np.array([10, 1, 8, 9, 50, 4]), np.zeros(6)
    given = ScoreInput(nothing, nothing, (), losses, n_response=n_response)
    # In nats: 5, 1, 4, unknown, −50, 4; means over tokens would put the second first.
    np.testing.assert_allclose(SCORES["prompt-gain"].function(given), [1, 0.4, 0.7, 0, 0.2, 0.7])


def test_the_prompts_gain_wants_prompts_that_differ():
    losses = {"response": np.ones(3), "mismatched": np.full(3, np.nan)}
    given = ScoreInput(np.zeros(3), np.zeros(3), (), {**losses, "mismatched_again": np.ones(3)})
    with pytest.raises(GradsiftError, match="no row of this pool has one that can be"):
        SCORES["prompt-gain"].function(given)


def test_rank_correlation():
    a = np.array([1.0, 2, 3, 4, 5])
    # 1 − 6·Σd²/(n(n²−1)) with d = (0, 0, 1, −1, 0)
    assert rank_correlation(a, np.array([10.0, 20, 40, 30, 99])) == pytest.approx(0.9)
    assert rank_correlation(a, np.exp(-a)) == pytest.approx(-1)
    assert rank_correlation(a, np.ones(5)) is None
    x, y = np.random.default_rng(0).integers(0, 9, size=(2, 50))
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation(a[:2], a[:2]) is None
