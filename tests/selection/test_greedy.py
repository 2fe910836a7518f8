from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.selection import greedy as module
from gradsift.selection.budget import Limit
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.objective import Objective, content_similarity


def problem(n, seed, *, alpha=1.0, beta=1.0, gamma=1.0, expected_rows=3.0, tau=0.3):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3))
    # A third of the rows are copies, so that ties between rows are put to the test.
    x[n - n // 3 :] = x[: n // 3]
    weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
    score = generator.integers(0, 5, size=n) / 4
    return Objective(score, content_similarity(x, tau), expected_rows, **weights)


def slow_greedy(objective, costs, limit):
    """Greedy by the whole objective, every gain computed every time; no best-single guard."""
    order, gains, left = [], [], limit.amount
    while True:
        fits = [
            row
            for row in range(len(costs))
            if row not in order and (limit.kind == "rows" or costs[row] <= left)
        ]
        if not fits or (limit.kind == "rows" and len(order) == limit.amount):
            return order, gains
        before = objective.value(np.array(order, dtype=int))
        gain = {row: objective.value(np.array([*order, row])) - before for row in fits}
        per = {row: gain[row] / (costs[row] if limit.kind == "tokens" else 1) for row in fits}
        top = max(per.values())
        best = min(row for row in fits if per[row] >= top - 1e-12)
        if limit.kind == "tokens" and gain[best] < -1e-12:
            return order, gains
        order.append(best)
        gains.append(gain[best])
        left -= costs[best]


@given(st.integers(0, 10**6), st.integers(2, 14), st.sampled_from([0.0, 1.0, 5.0]))
def test_lazy_greedy_is_greedy(seed, n, gamma):
    objective = problem(n, seed, gamma=gamma)
    rows = 1 + seed % n
    choice = lazy_greedy(objective, np.ones(n), Limit("rows", rows, float(rows)))
    order, gains = slow_greedy(objective, np.ones(n), Limit("rows", rows, float(rows)))
    assert choice.order_S.tolist() == order
    np.testing.assert_allclose(choice.gains.marginal_N[order], gains, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_size_of_a_batch_changes_nothing(monkeypatch, batch):
    objective, limit = problem(60, 1), Limit("rows", 40, 40.0)
    expected = lazy_greedy(objective, np.ones(60), limit)
    monkeypatch.setattr(module, "_BATCH_ROWS", batch)
    found = lazy_greedy(objective, np.ones(60), limit)
    np.testing.assert_array_equal(found.order_S, expected.order_S)
    np.testing.assert_array_equal(found.gains.marginal_N, expected.gains.marginal_N)


@pytest.mark.parametrize("seed", range(10))
def test_the_three_terms_are_those_of_the_objective(seed):
    n, rows = 12, 7
    objective = problem(n, seed)
    choice = lazy_greedy(objective, np.ones(n), Limit("rows", rows, float(rows)))
    order, gains = choice.order_S, choice.gains
    assert gains.marginal_N[order].sum() == pytest.approx(objective.value(order))
    for weight, column, sign in [
        ("alpha", gains.gradient_N, 1),
        ("beta", gains.diversity_N, 1),
        ("gamma", gains.penalty_N, -1),
    ]:
        others = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, weight: getattr(objective, weight)}
        part = Objective(objective.score_N, objective.similarity, 3.0, **others)
        for place, row in enumerate(order):
            step = part.value(order[: place + 1]) - part.value(order[:place])
            assert sign * column[row] == pytest.approx(step, abs=1e-9)
        for row in set(range(n)) - set(order.tolist()):
            left_out = part.value(np.append(order, row)) - part.value(order)
            assert sign * column[row] == pytest.approx(left_out, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_greedy_is_near_the_best_subset_where_theory_says_so(seed):
    n, rows = 10, 4
    objective = problem(n, seed, gamma=0.0)
    choice = lazy_greedy(objective, np.ones(n), Limit("rows", rows, float(rows)))
    best = max(objective.value(np.array(subset)) for subset in combinations(range(n), rows))
    assert (1 - 1 / np.e) * best <= objective.value(choice.order_S) <= best + 1e-9


def test_a_budget_of_rows_is_filled_even_with_negative_gains():
    objective = Objective(np.ones(4), content_similarity(np.ones((4, 2)), 0.8), 4.0, 1.0, 1.0, 9.0)
    choice = lazy_greedy(objective, np.ones(4), Limit("rows", 4, 4.0))
    assert choice.order_S.tolist() == [0, 1, 2, 3]
    assert choice.gains.marginal_N[3] == pytest.approx(1 / 4 - 3 * 9 / 4)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]))
def test_a_budget_of_tokens_is_never_exceeded_and_follows_gain_per_token(seed, gamma):
    n = 8
    costs = np.random.default_rng(seed).integers(1, 30, size=n)
    limit = Limit("tokens", int(costs.min()) + seed % 60, 3.0)
    objective = problem(n, seed, gamma=gamma)
    choice = lazy_greedy(objective, costs, limit)
    assert costs[choice.order_S].sum() <= limit.amount
    assert len(set(choice.order_S.tolist())) == len(choice.order_S) > 0
    order, _ = slow_greedy(objective, costs, limit)
    best_single = max(
        objective.value(np.array([row])) for row in range(n) if costs[row] <= limit.amount
    )
    if choice.order_S.tolist() != order:
        assert best_single > objective.value(np.array(order, dtype=int))
    assert objective.value(choice.order_S) >= best_single - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_under_tokens_greedy_is_within_the_known_factor_of_the_best_subset(seed):
    n = 9
    costs = np.random.default_rng(seed).integers(1, 30, size=n)
    objective, limit = problem(n, seed, gamma=0.0), Limit("tokens", 45, 3.0)
    best = max(
        objective.value(np.array(subset))
        for size in range(1, n + 1)
        for subset in combinations(range(n), size)
        if costs[list(subset)].sum() <= limit.amount
    )
    # Greedy by gain per cost or the best single element: (1 − 1/e)/2 (Leskovec et al., 2007).
    found = objective.value(lazy_greedy(objective, costs, limit).order_S)
    assert (1 - 1 / np.e) / 2 * best <= found <= best + 1e-9


def test_the_best_single_row_wins_over_a_cheap_one_that_shuts_it_out():
    x = np.eye(4)
    objective = Objective(
        np.array([0.1, 1.0, 0.0, 0.0]), content_similarity(x, 0.8), 1.0, 1.0, 0.0, 0.0
    )
    costs = np.array([1, 100, 500, 500])
    choice = lazy_greedy(objective, costs, Limit("tokens", 100, 1.0))
    assert choice.order_S.tolist() == [1]


def test_tokens_are_left_over_rather_than_spent_on_a_loss():
    objective = Objective(np.zeros(3), content_similarity(np.ones((3, 2)), 0.8), 3.0, 1.0, 1.0, 9.0)
    choice = lazy_greedy(objective, np.full(3, 10), Limit("tokens", 30, 3.0))
    assert choice.order_S.tolist() == [0]


def test_a_budget_below_the_shortest_instance_is_refused():
    with pytest.raises(ValueError, match="shortest instance has 7"):
        lazy_greedy(problem(4, 0), np.array([9, 7, 8, 9]), Limit("tokens", 6, 1.0))
