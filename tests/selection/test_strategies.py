import numpy as np
import pytest

from gradsift.selection.budget import Limit
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.objective import Objective, content_similarity
from gradsift.selection.strategies import STRATEGIES, Task


def task(limit, n=30, seed=0, costs=None):
    x = np.random.default_rng(1).normal(size=(n, 3))
    objective = Objective(np.linspace(0, 1, n), content_similarity(x, 0.8), 5.0, 1.0, 1.0, 1.0)
    return Task(objective, np.arange(1, n + 1) if costs is None else costs, limit, seed)


def test_grads_is_lazy_greedy():
    given = task(Limit("rows", 5, 5.0))
    found = STRATEGIES["grads"](given)
    expected = lazy_greedy(given.objective, given.costs_N, given.limit)
    np.testing.assert_array_equal(found.order_S, expected.order_S)


def test_random_is_of_the_seed_alone_and_leaves_the_global_generator_alone():
    limit = Limit("rows", 5, 5.0)
    np.random.seed(7)
    untouched = np.random.random()
    np.random.seed(7)
    draws = [tuple(STRATEGIES["random"](task(limit, seed=seed)).order_S) for seed in (0, 0, 1)]
    assert np.random.random() == untouched
    assert draws[0] == draws[1] != draws[2]
    assert all(len(set(draw)) == 5 for draw in draws)


def test_random_draws_every_row_equally_often():
    limit = Limit("rows", 10, 10.0)
    given = task(limit)
    counts = np.zeros(30)
    for seed in range(600):
        counts[STRATEGIES["random"](Task(given.objective, given.costs_N, limit, seed)).order_S] += 1
    # Each count is binomial(600, 1/3): mean 200, standard deviation 11.5.
    assert np.abs(counts - 200).max() < 50


@pytest.mark.parametrize("seed", range(5))
def test_random_under_tokens_keeps_to_the_budget_and_fills_it(seed):
    given = task(Limit("tokens", 100, 5.0), seed=seed)
    chosen = STRATEGIES["random"](given).order_S
    left = 100 - given.costs_N[chosen].sum()
    others = np.setdiff1d(np.arange(30), chosen)
    assert 0 <= left < given.costs_N[others].min()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_budget_that_nothing_fits_is_refused(name):
    with pytest.raises(ValueError, match="shortest instance has 9"):
        STRATEGIES[name](task(Limit("tokens", 8, 1.0), costs=np.full(30, 9)))
