from __future__ import annotations

import numpy as np
import pytest

from gradsift.evaluation.intervals import (
    Estimate,
    VarianceComponent,
    estimate_difference,
    needed,
    pooled_seed_spread,
)
from gradsift.evaluation.metrics import METRICS, Replicated, replicate, resampling_weights

N = 200


def runs(values_SN, weights):
    return [replicate(METRICS["loss"], {"a": row[:, None]}, weights) for row in values_SN]


def test_the_value_and_its_standard_error_are_those_of_the_mean():
    rng = np.random.default_rng(0)
    items = rng.normal(3, 2, N)
    found = runs([items], resampling_weights({"a": N}, 4000, 0))[0]
    assert found.value == pytest.approx(items.mean())
    assert found.values_B.std() == pytest.approx(items.std() / np.sqrt(N), rel=0.05)


def test_a_difference_is_paired_over_items():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, N)
    noise = rng.normal(0, 0.1, N)
    weights = resampling_weights({"a": N}, 500, 0)
    a, b = runs([difficulty + 0.1 + noise], weights), runs([difficulty], weights)
    found = estimate_difference(a, b, n_items=N)
    assert found.value == pytest.approx(0.1 + noise.mean())
    # Each alone is known to 10/√200 = 0.7 only; their difference to 0.1/√200.
    assert found.high - found.value == pytest.approx(1.97 * noise.std() / np.sqrt(N), rel=0.15)
    assert found.p < 1e-6
    unpaired = estimate_difference(a, [], n_items=N)
    assert unpaired.high - unpaired.value > 1


@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.4])
def test_intervals_hold_the_true_difference(seed_sd):
    rng = np.random.default_rng(1)
    held, n_trials = 0, 300
    for trial in range(n_trials):
        weights = resampling_weights({"a": 60}, 150, trial)
        difficulty = rng.normal(0, 1, 60)
        arms = [
            runs(
                effect + difficulty + rng.normal(0, seed_sd, (3, 1)) + rng.normal(0, 0.5, (3, 60)),
                weights,
            )
            for effect in (0.3, 0.0)
        ]
        found = estimate_difference(*arms, n_items=60)
        held += found.low <= 0.3 <= found.high
    # 300 trials of 95 %: below 0.92 once in a hundred times. Wider than nominal is allowed.
    assert held / n_trials >= 0.92


def test_seeds_count():
    weights = {"a": np.ones((50, N))}
    items = np.zeros(N)
    a = runs([items + 1.0, items + 1.2, items + 0.8], weights)
    b = runs([items, items + 0.2, items - 0.2], weights)
    found = estimate_difference(a, b, n_items=N)
    # Welch: standard error √(0.04/3 + 0.04/3), 4 degrees of freedom, t = 2.776. Items have none.
    assert found.value == pytest.approx(1.0)
    assert found.high - found.value == pytest.approx(2.776 * np.sqrt(0.08 / 3), rel=1e-3)
    assert found.seeds.df == pytest.approx(4)


def test_an_arm_trained_once_borrows_the_luck_of_the_others():
    weights = {"a": np.ones((50, N))}
    items = np.zeros(N)
    several = runs([items, items + 0.2, items - 0.2], weights)
    once = runs([items + 1], weights)
    spread = pooled_seed_spread([several, once])
    assert (spread.variance, spread.df) == (pytest.approx(0.04), 2)
    with_it = estimate_difference(once, several, n_items=N, seed_spread=spread)
    # One estimate of what one training is worth, used for both arms: known no better for that.
    assert with_it.seeds.variance == pytest.approx(0.04 + 0.04 / 3)
    assert with_it.seeds.df == 2
    assert estimate_difference(once, once, n_items=N, seed_spread=spread).seeds.df == 2
    # The untrained model has no seed variance.
    base = estimate_difference(several, once, n_items=N, seed_spread=spread, trained=(True, False))
    assert base.seeds.variance == pytest.approx(0.04 / 3)
    assert pooled_seed_spread([once]) is None
    assert estimate_difference(once, once, n_items=N).seeds is None


@pytest.mark.parametrize("n_seeds", [(1, 1, 2), (2, 1), (1, 1, 3)])
def test_intervals_that_borrow_hold_the_true_difference(n_seeds):
    rng = np.random.default_rng(1)
    held, n_trials = 0, 300
    for trial in range(n_trials):
        weights = resampling_weights({"a": 200}, 100, trial)
        difficulty = rng.normal(0, 1, 200)
        arms = [
            runs(difficulty + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.5, (n, 200)), weights)
            for n in n_seeds
        ]
        spread = pooled_seed_spread(arms)
        found = estimate_difference(*arms[:2], n_items=200, seed_spread=spread)
        held += found.low <= 0 <= found.high
    assert held / n_trials >= 0.92


def test_no_difference_at_all_is_no_finding():
    same = [Replicated(1.0, np.ones(20))]
    found = estimate_difference(same, same, n_items=5)
    assert (found.value, found.p) == (0, 1)


@pytest.mark.parametrize(
    ("items", "seeds", "expected"),
    [
        # With 99 degrees of freedom 80 % power takes a variance of (1 / (1.984 + 0.845))² = 0.1249.
        (0.25, None, "about 101 more test rows needed"),
        # Items take 0.05 · 2.829² = 0.400 of 1; three trainings of each 0.2 · (2.776 + 0.941)² =
        # 2.763, so n of each 8.290 / n, which is 0.6 for 13.8.
        (0.05, 0.2, "about 14 trainings of each arm needed"),
        (0.15, 0.11, "about 3 times as many test rows and seeds needed"),
        # 1 - 0.05 · 13.816 = 0.309 is left for items, which take 1.200 with 100.
        (0.15, 0.05, "about 289 more test rows needed"),
        (0.25, 0.25, "about 5 times as many test rows and seeds needed"),
        (100.0, None, "more than 20 times as many test rows and seeds needed"),
    ],
)
def test_what_would_be_needed(items, seeds, expected):
    part = None if seeds is None else VarianceComponent(seeds, 4)
    found = Estimate(1.0, -1, 3, 0.3, 100, (3, 3), VarianceComponent(items, 99), part)
    assert needed(found) == expected


def test_what_would_be_needed_is_more_where_p_is_adjusted():
    # Alone it would be clear: 2.2 standard errors. Of ten, it is not.
    found = Estimate(2.2, 0.2, 4.2, 0.03, 100, (1, 1), VarianceComponent(1.0, 99), None)
    alone, detrended = needed(found), needed(found, 10)
    more = [int(text.split()[1]) for text in (alone, detrended)]
    assert 0 < more[0] < more[1]


def test_few_items_are_not_certain_because_they_agree():
    weights = resampling_weights({"a": 5}, 200, 0)
    a, b = runs([np.full(5, 2.0)], weights), runs([np.full(5, 1.0)], weights)
    found = estimate_difference(a, b, n_items=5)
    # All five favour one arm: 2 · 0.5⁵, as in a sign test.
    assert found.p == pytest.approx(2 * 0.5**5)
    assert found.low < 0 < 1 < found.high
    weights = resampling_weights({"a": 1}, 200, 0)
    a, b = runs([np.array([2.0])], weights), runs([np.array([1.0])], weights)
    found = estimate_difference(a, b, n_items=1)
    assert (found.low, found.high, found.p) == (-np.inf, np.inf, 1)
    assert "more than one item" in needed(found)


def test_one_item_in_each_set_has_no_spread_either():
    weights = resampling_weights({"a": 1, "b": 1}, 200, 0)
    a, b = (
        [replicate(METRICS["accuracy"], {"a": x, "b": x}, weights)]
        for x in (np.ones((1, 1)), np.zeros((1, 1)))
    )
    found = estimate_difference(a, b, n_items=2, smallest_set=1)
    # In per cent.
    assert (found.value, found.p) == (100, 1)


def test_resampling_few_items_understates_their_spread():
    rng = np.random.default_rng(0)
    items = rng.normal(0, 1, 4)
    found = estimate_difference(
        runs([items], resampling_weights({"a": 4}, 20000, 0)), [], n_items=4
    )
    assert found.items.variance == pytest.approx(np.var(items, ddof=1) / 4, rel=0.03)


def test_nothing_helps_where_there_is_no_difference():
    found = Estimate(0.0, -1, 1, 1.0, 100, (3, 3), VarianceComponent(0.2, 99), None)
    assert "more than 20 times" in needed(found)
