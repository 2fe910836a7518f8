from dataclasses import astuple
from itertools import combinations

import numpy as np
import pytest

from gradsift.selection.constraints import Constraints, ResolvedBudget
from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.objective import Objective, Terms
from gradsift.selection.possible_gains import possible_gains, with_a_choice

N = 9


def problem(*, sparse=False, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(N, 3))
    x[8] = x[0]
    graph = find_neighbours(x, n_neighbours=4, complete_rows=0 if sparse else 100)
    # Coefficients and scale play no part.
    return Objective(generator.random(N), graph, 5.0, 7.0, 0.0, 0.3, Terms(3.0, 2.0, 9.0))


def rows(n, **more):
    return Constraints(np.arange(1, N + 1), ResolvedBudget("rows", n, float(n)), **more)


def rows_of(n, amount):
    return Constraints(np.ones(n), ResolvedBudget("rows", amount, float(amount)))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 8, 9])
def test_a_random_subset_is_the_mean_of_all_and_alone_is_the_best_or_nearly(n_rows, sparse):
    objective = problem(sparse=sparse)
    found = possible_gains(objective, rows(n_rows))
    every = [objective.terms(np.array(one)) for one in combinations(range(N), n_rows)]
    values = np.array([astuple(one) for one in every])
    np.testing.assert_allclose(astuple(found.random), values.mean(axis=0), atol=1e-9)
    best = Terms(*values[:, :2].max(axis=0), values[:, 2].min())
    assert found.alone.gradient == pytest.approx(best.gradient)
    assert 0.97 * best.diversity <= found.alone.diversity <= best.diversity + 1e-9
    assert found.alone.similarity >= best.similarity - 1e-9
    if n_rows == N:
        assert astuple(found.scale) == (0, 0, 0)
    else:
        assert found.attained(found.alone) == {
            "gradient": pytest.approx(1),
            "diversity": pytest.approx(1),
            "similarity": pytest.approx(1) if n_rows > 1 else None,
        }
        assert found.attained(found.random)["gradient"] == pytest.approx(0)


@pytest.mark.parametrize(
    "constraints",
    [
        rows(4, keep=(2, 8)),
        rows(4, excluded=(0, 1, 2)),
        rows(4, group_N=np.arange(N) % 2, caps_G={0: 1}),
        Constraints(np.arange(1, N + 1), ResolvedBudget("tokens", 16, 4.0)),
    ],
)
def test_other_conditions_hold_for_both_sides(constraints):
    objective = problem()
    found = possible_gains(objective, constraints)
    drawn = [
        astuple(objective.terms(constraints.builder().take_in_order(order.tolist())))
        for order in np.random.default_rng(1).permuted(np.tile(np.arange(N), (500, 1)), axis=1)
    ]
    spread = np.std(drawn, axis=0)
    # A mean of 32 draws lies within four of its own standard errors.
    assert (np.abs(np.subtract(astuple(found.random), np.mean(drawn, axis=0))) < 0.8 * spread).all()
    assert found.alone.gradient >= found.random.gradient
    assert found.alone.diversity >= found.random.diversity
    assert found.alone.similarity <= found.random.similarity


def test_where_all_can_be_taken_the_scale_is_that_of_half():
    assert with_a_choice(rows(5)).budget.amount == 5
    assert with_a_choice(rows(5), half=True).budget.amount == 2
    assert with_a_choice(rows(9)).budget.amount == 4
    assert with_a_choice(rows(9, keep=(0, 1, 2))).budget.amount == 6
    assert with_a_choice(rows(7, excluded=(0, 1))).budget.amount == 3
    tokens = Constraints(np.arange(1, N + 1), ResolvedBudget("tokens", 45, 9.0))
    assert with_a_choice(tokens).budget.amount == 22
    one = Constraints(np.ones(1), ResolvedBudget("rows", 1, 1.0))
    assert with_a_choice(one).budget.amount == 1


def test_scores_that_are_all_equal_can_gain_nothing():
    objective = problem()
    flat = Objective(np.full(N, 0.1), objective.neighbours, similarity_threshold=0.3)
    found = possible_gains(flat, rows(4))
    assert found.scale.gradient == 0
    assert found.attained(found.alone)["gradient"] is None


@pytest.mark.parametrize("centre", [0, 5])
def test_which_rows_go_apart_does_not_hang_on_their_place(centre):
    """One row is near to four that are not near to each other: without it there is room for all."""
    x = np.insert(np.eye(5), centre, [1, 1, 1, 1, 0], axis=0)
    objective = Objective(np.zeros(6), find_neighbours(x), similarity_threshold=0.3)
    assert possible_gains(objective, rows_of(6, 5)).alone.similarity == 0


def test_rows_without_near_duplicates_are_found_where_there_are_enough():
    """Whatever their place: the last five here, while the first are copies of one another."""
    x = np.eye(N)
    x[:4] = x[0]
    objective = Objective(np.zeros(N), find_neighbours(x))
    assert possible_gains(objective, rows(6)).alone.similarity == 0
    assert possible_gains(objective, rows(7)).alone.similarity == pytest.approx(1)


@pytest.mark.parametrize("left_out", [1, 40])
def test_a_budget_of_tokens_is_spent_by_the_rows_that_go_apart_too(left_out):
    """Else they would gain what only an empty place can: of nearly all rows it is little."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    x[30:] = x[:30]
    costs_N = generator.integers(1, 30, size=60)
    amount = int(costs_N.sum()) - left_out
    conditions = Constraints(costs_N, ResolvedBudget("tokens", amount, 59.0))
    objective = Objective(generator.random(60), find_neighbours(x))
    found = possible_gains(objective, conditions)
    whole = objective.terms(np.arange(60)).similarity
    # Each pair that is broken up takes a row of at least one token.
    dearest = np.sort(costs_N)[: left_out + 1].cumsum()
    assert found.alone.similarity >= whole - (1 + np.sum(dearest <= left_out)) * 4
    assert found.scale.similarity < 0.3 * whole


def test_no_share_is_more_than_the_whole():
    found = possible_gains(problem(), rows(4))
    beyond = Terms(99.0, 99.0, -99.0)
    assert found.attained(beyond) == dict.fromkeys(("gradient", "diversity", "similarity"), 1.0)
