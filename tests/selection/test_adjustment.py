import numpy as np
import pytest
from statsmodels.nonparametric.smoothers_lowess import lowess

from gradsift.selection import adjustment
from gradsift.selection.adjustment import detrended
from gradsift.selection.scores import percentile_rank, rank_correlation


def test_detrending_takes_length_and_drift_off_and_leaves_the_rest():
    generator = np.random.default_rng(1)
    n = 1000
    length, step = generator.integers(5, 400, size=n), np.arange(n) // 8
    own = generator.normal(size=n)
    x = own - 2 * np.log(length) - np.sqrt(step)
    found = detrended(x, [length, step])
    assert abs(rank_correlation(x, length)) > 0.3
    for covariate in (length, step):
        assert abs(rank_correlation(found, covariate)) < 0.06
    assert rank_correlation(found, own) > 0.9
    np.testing.assert_array_equal(detrended(x, []), x)


def test_too_few_rows_are_not_detrended():
    x = np.arange(8.0)
    np.testing.assert_array_equal(detrended(x, [x]), x)
    assert np.ptp(detrended(np.arange(60.0), [np.arange(60)])) < 59


def pool(name, n=600):
    """Values and covariates with ties of many kinds."""
    generator = np.random.default_rng(5)
    rare = np.where(generator.random(n) < 0.9, 40, generator.integers(90, size=n))
    covariates = {
        "distinct": [generator.permutation(n)],
        "steps of 8": [generator.integers(5, 60, size=n), np.arange(n) // 8],
        "mostly one length": [rare],
        "two values": [np.arange(n) % 2],
        "constant": [np.ones(n)],
    }[name]
    return generator.normal(size=n) - sum(np.sqrt(one) for one in covariates), covariates


NAMES = ("distinct", "steps of 8", "mostly one length", "two values", "constant")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [9, 600, 5_500])
def test_the_order_of_the_rows_changes_not_a_bit(name, n):
    x, covariates = pool(name, n)
    expected = detrended(x, covariates)
    assert np.isfinite(expected).all()
    order = np.random.default_rng(0).permutation(n)
    found = detrended(x[order], [one[order] for one in covariates])
    np.testing.assert_array_equal(found, expected[order])


@pytest.mark.parametrize("name", NAMES)
def test_the_trend_is_gone_and_what_is_a_rows_own_stays(name):
    x, covariates = pool(name)
    found = detrended(x, covariates)
    for one in covariates:
        assert abs(rank_correlation(found, one) or 0) < 0.1
    own = x + sum(np.sqrt(one) for one in covariates)
    assert rank_correlation(found, own) > 0.93


def test_among_many_ties_it_is_their_mean_but_for_wild_rows():
    x, (length,) = pool("two values")
    wild = np.where(np.arange(len(x)) < 5, 1e3, x)
    for values in (x, wild):
        found = detrended(values, [length])
        for value in (0, 1):
            mine = length == value
            trend = values[mine] - found[mine]
            np.testing.assert_allclose(trend, trend[0], atol=1e-9)
            assert trend[0] == pytest.approx(x[mine].mean(), abs=0.05)
    alone = detrended(x, [np.ones(len(x))])
    np.testing.assert_allclose(alone, x - np.median(x), atol=1e-12)


def test_no_row_decides_for_the_ends():
    """Of pure noise the mean score of the shortest rows is as far from 1/2 as that of any 25."""
    ends = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        length = generator.permutation(400)
        score = percentile_rank(detrended(generator.normal(size=400), [length]))
        ends.append(score[length < 25].mean())
    # Of 25 rows drawn at random 0.058; a running median whose ends are repeated has 0.15.
    assert np.std(ends) < 0.075


def test_wild_rows_do_not_bend_it():
    generator = np.random.default_rng(0)
    length, x = np.arange(600), generator.normal(size=600)
    wild = x.copy()
    wild[::10] += 30
    plain = np.delete(np.arange(600), np.arange(0, 600, 10))
    moved = detrended(wild, [length])[plain] - detrended(x, [length])[plain]
    assert np.abs(moved).max() < 0.6


def test_pieces_are_fitted_as_the_whole_is(monkeypatch):
    generator = np.random.default_rng(2)
    length = np.arange(1_000)
    x = generator.normal(size=1_000) + np.sin(length / 100)
    monkeypatch.setattr(adjustment, "_FAR", np.inf)
    whole = lowess(x, length, frac=0.101, it=0, return_sorted=False)
    monkeypatch.setattr(adjustment, "_PIECE", 300)
    monkeypatch.setattr(adjustment, "_ROUNDS", 1)
    np.testing.assert_allclose(detrended(x, [length]), x - whole, atol=1e-9)


@pytest.mark.parametrize("value", [3.0, 0.1, 1e9])
def test_of_what_is_the_same_everywhere_or_a_line_of_length_nothing_is_left(value):
    length_N = np.random.default_rng(3).permutation(200).astype(float)
    for x_N in (np.full(200, value), value * (1 + length_N)):
        np.testing.assert_array_equal(detrended(x_N, [length_N]), 0)


LENGTHS = {
    "1 to 8": lambda draw, n: draw.integers(1, 9, size=n),
    "1 to 49": lambda draw, n: draw.integers(1, 50, size=n),
    "lognormal": lambda draw, n: np.exp(draw.normal(4, 1, size=n)).astype(int),
    "half share one": lambda draw, n: np.r_[
        np.full(n // 2, 7), draw.integers(500, size=n - n // 2)
    ],
    "two": lambda draw, n: (np.arange(n) >= 0.9 * n).astype(int),
    "steps of 8": lambda draw, n: np.arange(n) // 8,
    "distinct": lambda draw, n: draw.normal(size=n),
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n", [9, 30, 100, 300, 1_000, 2_001, 5_000])
def test_noise_stays_however_lengths_tie(name, n):
    for seed in range(3 if n < 1_000 else 1):
        draw = np.random.default_rng(seed)
        x, length = draw.normal(size=n), LENGTHS[name](draw, n)
        found = detrended(x, [length])
        trend = x - np.median(x) - found
        assert np.abs(trend).max() <= np.abs(x - np.median(x)).max()
        # A line takes two of nine degrees of freedom.
        assert np.corrcoef(x, found)[0, 1] > (0.95 if n > 100 else 0.94 if n == 100 else 0.6)
        if n >= 30:
            # The longest, which has neighbours on one side only, and a row anywhere.
            for at in (int(np.argmax(length)), int(draw.integers(n))):
                wild = x.copy()
                wild[at] = 1e6
                others = np.arange(n) != at
                change = (detrended(wild, [length]) - np.median(x) + np.median(wild) - found)[
                    others
                ]
                assert np.abs(change).max() < (1.6 if n < 300 else 0.7)
