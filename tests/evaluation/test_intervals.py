from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from gradsift.evaluation.intervals import (
    Estimate,
    Measured,
    estimate_difference,
    estimate_level,
    estimate_relative_change,
    needed,
    pooled_spread,
)
from gradsift.evaluation.metrics import (
    LEARNING,
    METRICS,
    Metric,
    Replicated,
    replicate,
    resampling_weights,
)
from gradsift.evaluation.uncertainty import (
    NO_SPREAD,
    Contribution,
    Spread,
    Uncertainty,
    VarianceComponent,
)

N = 200
RATIO = Metric(
    "ratio", "ratio", LEARNING, True, 3, lambda sums_BK, _: sums_BK[:, 0] / sums_BK[:, 1]
)


def runs(values_SN, weights, metric=METRICS["loss"]):
    columns = (np.asarray(row, float).reshape(len(row), -1) for row in values_SN)
    return [replicate(metric, {"a": row_NK}, weights) for row_NK in columns]


def weights_for(n, n_resamplings=400, seed=0):
    return resampling_weights({"a": n}, n_resamplings, seed)


def same_class(*arms):
    spread = pooled_spread(arms)
    return [Measured(arm, spread) for arm in arms]


def items_only(*arms):
    return [Measured(arm, None) for arm in arms]


def crossed(rng, n_items, n_seeds, *, item_sd=0.2, noise=0.0, training=0.0):
    """One arm: its own way with the items, its trainings, and their noise."""
    own_N = rng.normal(0, item_sd, n_items)
    return own_N + rng.normal(0, training, (n_seeds, 1)) + rng.normal(0, noise, (n_seeds, n_items))


def noise_by_anova(values_SN):
    n_seeds, n_items = values_SN.shape
    rest_SN = values_SN - values_SN.mean(0) - values_SN.mean(1)[:, None] + values_SN.mean()
    return (rest_SN**2).sum() / (n_seeds - 1) / (n_items - 1)


def test_the_value_and_its_standard_error_are_those_of_the_mean():
    rng = np.random.default_rng(0)
    items = rng.normal(3, 2, N)
    found = runs([items], weights_for(N, 4000))[0]
    assert found.value == pytest.approx(items.mean())
    assert found.values_BK.std() == pytest.approx(items.std() / np.sqrt(N), rel=0.05)
    assert found.n_K == (N,)


def test_a_difference_is_paired_over_items():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, N)
    noise = rng.normal(0, 0.1, N)
    arms = items_only(*(runs([x], weights_for(N)) for x in (difficulty + 0.1 + noise, difficulty)))
    found = estimate_difference(*arms)
    assert found.value == pytest.approx(0.1 + noise.mean())
    # Each alone is known to 10/√200 = 0.7 only; their difference to 0.1/√200.
    assert found.high - found.value == pytest.approx(1.97 * noise.std() / np.sqrt(N), rel=0.15)
    assert found.p < 1e-6
    unpaired = estimate_level(arms[0])
    assert unpaired.high - unpaired.value > 1


def test_the_interval_is_that_of_a_two_way_analysis_of_variance():
    rng = np.random.default_rng(3)
    a_SN, b_SN = (crossed(rng, 80, n, noise=0.15, training=0.03) for n in (4, 6))
    weights = weights_for(80, 20_000)
    a, b = (
        Measured(arm, pooled_spread([arm])) for arm in (runs(a_SN, weights), runs(b_SN, weights))
    )
    found = estimate_difference(a, b)
    by_items = np.var(a_SN.mean(0) - b_SN.mean(0), ddof=1) / 80
    noise = noise_by_anova(a_SN) / 4 / 80 + noise_by_anova(b_SN) / 6 / 80
    seeds = [a_SN.mean(1).var(ddof=1) / 4, b_SN.mean(1).var(ddof=1) / 6]
    parts = [by_items - noise, *seeds]
    df = sum(parts) ** 2 / sum(v**2 / d for v, d in zip(parts, (79, 3, 5), strict=True))
    assert found.uncertainty.items.variance == pytest.approx(by_items, rel=0.03)
    assert found.uncertainty.noise == pytest.approx(noise, rel=0.03)
    assert [part.variance for part in found.uncertainty.seeds] == pytest.approx(seeds)
    # The spread of four trainings is known from three: its share counts unsquared.
    inverse = sum(
        (v / sum(parts)) ** (2 if d > 3 else 1) / d for v, d in zip(parts, (79, 3, 5), strict=True)
    )
    half = stats.t.ppf(0.975, 1 / inverse) * np.sqrt(sum(parts))
    assert found.high - found.value == pytest.approx(half, rel=0.02)
    assert half > stats.t.ppf(0.975, df) * np.sqrt(sum(parts))


def test_the_variance_is_that_of_a_mixed_model():
    rng = np.random.default_rng(1)
    n_seeds, n_items = 4, 30
    common = rng.normal(0, 1, n_items)
    arms_ASN = [
        common + crossed(rng, n_items, n_seeds, item_sd=0.3, noise=0.3, training=0.2)
        for _ in range(2)
    ]
    rows = [
        {"y": y, "arm": arm, "item": f"{i}", "arm_item": f"{arm}/{i}", "run": f"{arm}/{s}"}
        for arm, values_SN in enumerate(arms_ASN)
        for s, values_N in enumerate(values_SN)
        for i, y in enumerate(values_N)
    ]
    parts = {"item": "0 + C(item)", "arm_item": "0 + C(arm_item)", "run": "0 + C(run)"}
    table = pd.DataFrame(rows).assign(all=1)
    fitted = smf.mixedlm("y ~ arm", table, groups="all", vc_formula=parts).fit(reml=True)
    weights = weights_for(n_items, 20_000)
    uncertainty = estimate_difference(
        *same_class(*(runs(arm, weights) for arm in arms_ASN))
    ).uncertainty
    (seeds,) = uncertainty.seeds
    variance = uncertainty.items.variance - uncertainty.noise + seeds.variance
    assert variance == pytest.approx(fitted.bse["arm"] ** 2, rel=0.03)
    assert seeds.df == 6


@pytest.mark.parametrize(
    ("n_seeds", "noise", "training", "widest"),
    [
        # Noise alone: it was counted twice, and the interval was 1.5 times as wide as need be.
        ((5, 5), 0.4, 0.0, 1.2),
        ((3, 3), 0.4, 0.0, 1.3),
        ((3, 3), 0.2, 0.03, 1.3),
        ((5, 3), 0.1, 0.1, 1.3),
        ((1, 3, 3), 0.2, 0.03, 1.3),
        ((2, 2), 0.2, 0.05, 2.0),
        # Nothing is known of trainings but from two.
        ((1, 1, 2), 0.2, 0.05, 5.0),
    ],
)
def test_intervals_hold_the_truth_and_are_no_wider_than_need_be(n_seeds, noise, training, widest):
    rng = np.random.default_rng(1)
    held, widths, n_trials, n_items = 0, [], 400, 60
    weights = weights_for(n_items, 300)
    for _ in range(n_trials):
        arms = same_class(
            *(
                runs(crossed(rng, n_items, n, noise=noise, training=training), weights)
                for n in n_seeds
            )
        )
        found = estimate_difference(*arms[:2])
        held += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    parts = 0.08 / n_items + sum((training**2 + noise**2 / n_items) / n for n in n_seeds[:2])
    # 400 trials of 95 %: below 0.92 once in two hundred times.
    assert held / n_trials >= 0.92
    assert np.mean(widths) < widest * 2 * 1.96 * np.sqrt(parts)


def test_one_spread_for_two_arms_is_one_estimate():
    items = np.zeros(N)
    weights = {"a": np.ones((50, N))}
    several = runs([items, items + 0.2, items - 0.2], weights)
    once = runs([items + 1], weights)
    spread = pooled_spread([several, once])
    assert (spread.variance, spread.df) == (pytest.approx(0.04), 2)
    a, b = same_class(several, once)
    (seeds,) = estimate_difference(a, b).uncertainty.seeds
    assert (seeds.variance, seeds.df) == (pytest.approx(0.04 + 0.04 / 3), 2)
    # Of two classes it is two.
    apart = Measured(once, Spread(0.09, 0.0, 5))
    seeds = estimate_difference(a, apart).uncertainty.seeds
    assert [(part.variance, part.df) for part in seeds] == [
        (pytest.approx(0.04 / 3), 2),
        (pytest.approx(0.09), 5),
    ]
    # The untrained model has no spread.
    (seeds,) = estimate_difference(a, Measured(once, NO_SPREAD)).uncertainty.seeds
    assert seeds.variance == pytest.approx(0.04 / 3)
    assert pooled_spread([once]) is None
    assert estimate_difference(*items_only(once, once)).uncertainty.seeds == []


def test_what_is_known_of_one_arm_counts_where_nothing_is_known_of_the_other():
    rng = np.random.default_rng(0)
    weights = weights_for(N)
    several, once = (runs(crossed(rng, N, n, training=0.3), weights) for n in (6, 1))
    known = Measured(several, pooled_spread([several]))
    half = estimate_difference(known, Measured(once, None)).high
    assert half > estimate_difference(Measured(several, None), Measured(once, None)).high


def test_the_very_same_models_count_once():
    rng = np.random.default_rng(0)
    arm = runs(crossed(rng, N, 3, training=0.3), weights_for(N))
    other = runs(crossed(rng, N, 3, training=0.3), weights_for(N))
    assert pooled_spread([arm, list(arm)]) == pooled_spread([arm])
    assert pooled_spread([arm, other]).df == 4


@pytest.mark.parametrize(
    ("df", "expected"),
    [
        # Half of the variance each. Known from one: the mean of the quantiles 12.706 and 1.962.
        (1, (12.706 + 1.962) / 2),
        # From two: 1 / (0.5² / 999 + 0.5 / 2) = 4.0 degrees of freedom.
        (2, 2.778),
        # From four: Satterthwaite's 1 / (0.5² / 999 + 0.5² / 4) = 15.9.
        (4, 2.121),
    ],
)
def test_a_spread_that_is_hardly_known_makes_a_wider_interval(df, expected):
    known = Uncertainty(VarianceComponent(0.5, 999), (Contribution(1, 1, Spread(0.5, 0.0, df)),))
    found = known.half_width(lambda df: stats.t.ppf(0.975, df))
    assert found == pytest.approx(expected, rel=1e-3)


def test_trainings_that_happen_to_tie_make_no_interval_narrower_than_items_alone():
    rng = np.random.default_rng(0)
    # As many right each time, but other ones: the spread of the trainings is zero.
    one = rng.permutation(np.repeat([0.0, 1.0], 20))
    a = runs([one, one[::-1]], weights_for(40))
    b = runs([rng.permutation(one), rng.permutation(one)], weights_for(40))
    spread = pooled_spread([a, b])
    assert spread.variance == pytest.approx(0)
    assert spread.noise > 0.001
    tied = estimate_difference(Measured(a, spread), Measured(b, spread))
    alone = estimate_difference(*items_only(a, b))
    assert tied.high - tied.low == pytest.approx(alone.high - alone.low)


def test_the_noise_of_a_metric_that_is_no_mean_is_that_of_its_linear_part():
    rng = np.random.default_rng(0)
    length_N = rng.uniform(1, 3, N)
    hits_SN = length_N * (0.5 + crossed(rng, N, 4, item_sd=0.1, noise=0.1))
    items_SNK = np.stack([hits_SN, np.broadcast_to(length_N, hits_SN.shape)], axis=2)
    spread = pooled_spread([runs(items_SNK, weights_for(N, 4000), RATIO)])
    ratio_S1 = hits_SN.sum(1, keepdims=True) / length_N.sum()
    linear_SN = (hits_SN - ratio_S1 * length_N) / length_N.mean()
    assert spread.noise == pytest.approx(noise_by_anova(linear_SN) / N, rel=0.05)


def test_sets_count_alike_and_the_small_one_is_known_from_its_own_items():
    rng = np.random.default_rng(0)
    sets = {"a": rng.normal(0, 1, (10, 1)), "b": rng.normal(0, 1, (300, 1))}
    weights = resampling_weights({"a": 10, "b": 300}, 20_000, 0)
    found = estimate_level(Measured([replicate(METRICS["loss"], sets, weights)], None))
    parts = [np.var(items, ddof=1) / len(items) / 4 for items in sets.values()]
    df = sum(parts) ** 2 / sum(v**2 / d for v, d in zip(parts, (9, 299), strict=True))
    half = stats.t.ppf(0.975, df) * np.sqrt(sum(parts))
    assert found.value == pytest.approx(np.mean([items.mean() for items in sets.values()]))
    assert found.high - found.value == pytest.approx(half, rel=0.03)
    assert 9 < found.uncertainty.items.df < 12
    assert found.n_items == 310


def test_no_difference_at_all_is_no_finding():
    same = [Replicated(1.0, np.ones((20, 1)), (5,))]
    found = estimate_difference(*items_only(same, same))
    assert (found.value, found.p) == (0, 1)
    rng = np.random.default_rng(0)
    arm = runs(crossed(rng, N, 3, noise=0.1, training=0.1), weights_for(N))
    found = estimate_difference(*same_class(arm, list(arm)))
    assert (found.value, found.p, found.uncertainty.items.variance) == (0, 1, 0)


def test_few_items_are_not_certain_because_they_agree():
    a, b = (runs([np.full(5, x)], weights_for(5)) for x in (2.0, 1.0))
    found = estimate_difference(*items_only(a, b))
    # All five favour one arm: 2 · 0.5⁵, as in a sign test.
    assert found.p == pytest.approx(2 * 0.5**5)
    assert found.low < 0 < 1 < found.high
    several = [runs([np.full(5, x + y) for y in (0, 0.3, -0.3)], weights_for(5)) for x in (2, 1)]
    assert estimate_difference(*same_class(*several)).p > 2 * 0.5**5
    a, b = (runs([np.array([x])], weights_for(1)) for x in (2.0, 1.0))
    found = estimate_difference(*items_only(a, b))
    assert (found.low, found.high, found.p) == (-np.inf, np.inf, 1)
    assert "more than one item" in needed(found)


def test_one_item_in_a_set_has_no_spread_either():
    weights = resampling_weights({"a": 1, "b": 9}, 200, 0)
    a, b = (
        [
            replicate(
                METRICS["accuracy"], {"a": np.full((1, 1), x), "b": np.full((9, 1), x)}, weights
            )
        ]
        * 2
        for x in (1.0, 0.0)
    )
    found = estimate_difference(*same_class(a, b))
    # In per cent.
    assert (found.value, found.p) == (100, 1)


def test_resampling_few_items_understates_their_spread():
    rng = np.random.default_rng(0)
    items = rng.normal(0, 1, 4)
    (arm,) = items_only(runs([items], weights_for(4, 20_000)))
    found = estimate_level(arm)
    assert found.uncertainty.items.variance == pytest.approx(np.var(items, ddof=1) / 4, rel=0.03)


def relative(changes_AN, weights):
    """Base, arm and rival, the latter two less base by so much."""
    rng = np.random.default_rng(0)
    base_N = rng.normal(5, 1, len(changes_AN[0]))
    arms = [runs([base_N - change_N], weights) for change_N in (0 * base_N, *changes_AN)]
    return estimate_relative_change(Measured(arms[0], NO_SPREAD), *items_only(*arms[1:]))


def test_a_ratio_of_two_changes_has_fiellers_interval():
    rng = np.random.default_rng(0)
    changes = rng.multivariate_normal([0.1, 0.2], [[0.3, 0.1], [0.1, 0.5]], N).T
    found = relative(changes, weights_for(N, 20_000))
    (x, y), t = changes.mean(1), stats.t.ppf(0.975, N - 1)
    (xx, xy), (_, yy) = np.cov(changes) / N
    # The roots θ of (x - θy)² = t² (xx - 2θ xy + θ² yy).
    ends = np.roots([y**2 - t**2 * yy, -2 * (x * y - t**2 * xy), x**2 - t**2 * xx]) - 1
    assert found.value == pytest.approx(x / y - 1)
    assert (found.low, found.high) == pytest.approx(tuple(sorted(ends)), rel=0.03, abs=0.02)


def test_there_is_no_ratio_to_what_may_be_nothing():
    rng = np.random.default_rng(0)
    changes = rng.normal([[0.1], [0.0]], 0.5, (2, N))
    assert relative(changes, weights_for(N)) is None


def estimate_of(value, items, seeds=None, n_seeds=3, n_items=100):
    """Of two arms whose trainings have variance `seeds` in the difference, known from four."""
    spread = NO_SPREAD if seeds is None else Spread(seeds * n_seeds / 2, 0.0, 4)
    arms = tuple(Contribution(weight, n_seeds, spread) for weight in (1.0, -1.0))
    known = Uncertainty(VarianceComponent(items, n_items - 1), arms)
    return Estimate(value, -1, 3, 0.3, n_items, (n_seeds, n_seeds), known)


@pytest.mark.parametrize(
    ("items", "seeds", "expected"),
    [
        # With 200 degrees of freedom 80 % power takes a variance of (1 / (1.972 + 0.843))² = 0.126.
        (0.25, None, "about 99 more test rows needed"),
        # With one quantile for each and four degrees of freedom this was 14.
        (0.05, 0.2, "about 9 trainings of each arm needed"),
        # With 168 items 0.0655 + 0.05, known from 20.5: (2.083 + 0.860)² of it is 1.
        (0.11, 0.05, "about 68 more test rows or 10 trainings of each arm needed"),
        (0.2, 0.15, "about 3 times as many test rows and seeds needed"),
        (100.0, None, "more than 20 times as many test rows and seeds needed"),
    ],
)
def test_what_would_be_needed(items, seeds, expected):
    assert needed(estimate_of(1.0, items, seeds)) == expected


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_is_needed_is_the_least_that_has_the_power(noise):
    """Tried with each number, in numbers of normal draws."""
    spread = Spread(0.05, noise, 4)
    arms = tuple(Contribution(weight, 3, spread) for weight in (1.0, -1.0))
    known = Uncertainty(VarianceComponent(0.05, 299), arms)
    found = Estimate(1.0, -1, 3, 0.3, 300, (3, 3), known)
    said = int(re.search(r"(\d+) trainings", needed(found, 8))[1])

    def power(n):
        variance = 0.05 - noise * 2 / 3 + 0.05 * 2 / n
        df = variance**2 / ((0.05 - noise * 2 / 3) ** 2 / 299 + (0.1 / n) ** 2 / (4 + 2 * (n - 3)))
        return stats.nct.sf(stats.t.ppf(1 - 0.05 / 16, df), df, 1 / np.sqrt(variance))

    # Student's quantile in place of the noncentral distribution is a little off.
    assert power(said - 1) < 0.81
    assert power(said) > 0.79


def test_noise_falls_with_items_too():
    spread = Spread(0.3, 0.3, 20)
    arms = tuple(Contribution(weight, 3, spread) for weight in (1.0, -1.0))
    with_noise = Estimate(
        1.0, -1, 3, 0.3, 100, (3, 3), Uncertainty(VarianceComponent(0.25, 99), arms)
    )
    # All of the trainings' spread is noise, so all of the variance falls with the items: 0.05 that
    # is theirs, known from 99, and 0.2, known from 20.
    df = 0.25**2 / (0.05**2 / 99 + 0.2**2 / 20)
    times = 0.25 * (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) ** 2
    said = int(re.search(r"(\d+) more test rows", needed(with_noise))[1])
    assert said == pytest.approx(100 * (times - 1), abs=2)
    fixed = tuple(Contribution(weight, 3, Spread(0.3, 0.0, 20)) for weight in (1.0, -1.0))
    other = Estimate(1.0, -1, 3, 0.3, 100, (3, 3), Uncertainty(VarianceComponent(0.25, 99), fixed))
    assert "test rows or" not in needed(other)


def test_what_would_be_needed_is_more_where_p_is_adjusted():
    # Alone it would be clear: 2.2 standard errors. Of ten, it is not.
    found = estimate_of(2.2, 1.0)
    alone, detrended = needed(found), needed(found, 10)
    more = [int(text.split()[1]) for text in (alone, detrended)]
    assert 0 < more[0] < more[1]


def test_where_nothing_says_how_trainings_differ_more_of_them_come_first():
    arms = (Contribution(1.0, 1, None), Contribution(-1.0, 3, Spread(0.1, 0.0, 2)))
    found = Estimate(2.2, 1, 3, 0.01, 100, (1, 3), Uncertainty(VarianceComponent(1.0, 99), arms))
    assert needed(found).startswith("at least 2 trainings of each arm needed, better 3")


def test_nothing_helps_where_there_is_no_difference():
    assert "more than 20 times" in needed(estimate_of(0.0, 0.2))
