from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.selection.constraints import Constraints, ResolvedBudget
from gradsift.selection.greedy import elbow, lazy_greedy
from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.objective import Objective, Terms

# What terms are divided by, here.
SCALE = Terms(3.0, 1.0, 3.0)


def problem(n, seed, *, alpha=1.0, beta=1.0, gamma=1.0, tau=0.3, sparse=False):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3))
    # A third of the rows are copies, so that ties between rows are put to the test.
    x[n - n // 3 :] = x[: n // 3]
    score = generator.integers(0, 5, size=n) / 4
    graph = find_neighbours(x, n_neighbours=4, complete_rows=0 if sparse else 1000)
    return Objective(score, graph, alpha, beta, gamma, tau, scale=SCALE)


def rows_of(n, amount):
    return Constraints(np.ones(n), ResolvedBudget("rows", amount, float(amount)))


def slow_greedy(objective, costs, budget):
    """Greedy by the whole objective, every gain computed every time; no best-single guard."""
    order, gains, left = [], [], budget.amount
    while True:
        fits = [
            row
            for row in range(len(costs))
            if row not in order and (budget.kind == "rows" or costs[row] <= left)
        ]
        if not fits or (budget.kind == "rows" and len(order) == budget.amount):
            return order, gains
        before = objective.value(np.array(order, dtype=int))
        gain = {row: objective.value(np.array([*order, row])) - before for row in fits}
        per = {row: gain[row] / (costs[row] if budget.kind == "tokens" else 1) for row in fits}
        top = max(per.values())
        best = min(row for row in fits if per[row] >= top - 1e-12)
        if budget.kind == "tokens" and gain[best] < -1e-12:
            return order, gains
        order.append(best)
        gains.append(gain[best])
        left -= costs[best]


@given(
    st.integers(0, 10**6),
    st.integers(2, 14),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.booleans(),
)
def test_lazy_greedy_is_greedy(seed, n, gamma, sparse):
    objective = problem(n, seed, gamma=gamma, sparse=sparse)
    rows = 1 + seed % n
    found, gains = lazy_greedy(objective, rows_of(n, rows))
    order, expected = slow_greedy(objective, np.ones(n), ResolvedBudget("rows", rows, float(rows)))
    # Rows that tie but for rounding may come in either order.
    np.testing.assert_allclose(gains.marginal_N[found], expected, atol=1e-9)
    assert found.tolist() == order or sorted(found.tolist()) == sorted(order)


@given(st.integers(0, 10**6))
def test_greedy_under_lists_and_quotas_is_greedy_among_what_is_allowed(seed):
    n, generator = 12, np.random.default_rng(seed)
    objective, group = problem(n, seed), generator.integers(3, size=n)
    keep = tuple(generator.permutation(n)[:2].tolist())
    excluded = tuple(int(r) for r in generator.permutation(n)[:2] if r not in keep)
    most = {0: 2 + int((group[list(keep)] == 0).sum())}
    constraints = Constraints(
        np.ones(n), ResolvedBudget("rows", 6, 6.0), keep, group, most, excluded
    )
    if constraints.capacity() < 6:
        return
    found, gains = lazy_greedy(objective, constraints)
    order = list(keep)
    while len(order) < 6:
        before = objective.value(np.array(order))
        gain = {
            row: objective.value(np.array([*order, row])) - before
            for row in range(n)
            if row not in order
            and row not in excluded
            and (group[row] != 0 or (group[order] == 0).sum() < most[0])
        }
        order.append(min(row for row in gain if gain[row] >= max(gain.values()) - 1e-12))
    assert found.tolist() == order
    assert gains.marginal_N[order].sum() == pytest.approx(objective.value(np.array(order)))


def test_a_longer_budget_begins_with_the_shorter_one():
    objective = problem(40, 3, sparse=True)
    long, _ = lazy_greedy(objective, rows_of(40, 30))
    short, _ = lazy_greedy(objective, rows_of(40, 11))
    assert long[:11].tolist() == short.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_the_three_terms_are_those_of_the_objective(seed):
    n, rows = 12, 7
    objective = problem(n, seed)
    order, gains = lazy_greedy(objective, rows_of(n, rows))
    assert gains.marginal_N[order].sum() == pytest.approx(objective.value(order))
    for weight, column, sign in [
        ("alpha", gains.gradient_N, 1),
        ("beta", gains.diversity_N, 1),
        ("gamma", gains.penalty_N, -1),
    ]:
        others = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, weight: getattr(objective, weight)}
        part = Objective(
            objective.score_N,
            objective.neighbours,
            **others,
            similarity_threshold=0.3,
            scale=SCALE,
        )
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
    order, _ = lazy_greedy(objective, rows_of(n, rows))
    best = max(objective.value(np.array(subset)) for subset in combinations(range(n), rows))
    assert (1 - 1 / np.e) * best <= objective.value(order) <= best + 1e-9


def test_a_budget_of_rows_is_filled_even_with_negative_gains():
    objective = Objective(
        np.ones(4), find_neighbours(np.ones((4, 2))), gamma=9.0, scale=Terms(4.0, 1.0, 4.0)
    )
    order, gains = lazy_greedy(objective, rows_of(4, 4))
    assert order.tolist() == [0, 1, 2, 3]
    assert gains.marginal_N[3] == pytest.approx(1 / 4 - 3 * 9 / 4)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]))
def test_a_budget_of_tokens_is_never_exceeded_and_follows_gain_per_token(seed, gamma):
    n = 8
    costs = np.random.default_rng(seed).integers(1, 30, size=n)
    budget = ResolvedBudget("tokens", int(costs.min()) + seed % 60, 3.0)
    objective = problem(n, seed, gamma=gamma)
    found, _ = lazy_greedy(objective, Constraints(costs, budget))
    assert costs[found].sum() <= budget.amount
    assert len(set(found.tolist())) == len(found) > 0
    order, _ = slow_greedy(objective, costs, budget)
    best_single = max(
        objective.value(np.array([row])) for row in range(n) if costs[row] <= budget.amount
    )
    if found.tolist() != order:
        assert best_single > objective.value(np.array(order, dtype=int))
    assert objective.value(found) >= best_single - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_under_tokens_greedy_is_within_the_known_factor_of_the_best_subset(seed):
    n = 9
    costs = np.random.default_rng(seed).integers(1, 30, size=n)
    objective, budget = problem(n, seed, gamma=0.0), ResolvedBudget("tokens", 45, 3.0)
    best = max(
        objective.value(np.array(subset))
        for size in range(1, n + 1)
        for subset in combinations(range(n), size)
        if costs[list(subset)].sum() <= budget.amount
    )
    # Greedy by gain per cost or the best single element: (1 − 1/e)/2 (Leskovec et al., 2007).
    found = objective.value(lazy_greedy(objective, Constraints(costs, budget))[0])
    assert (1 - 1 / np.e) / 2 * best <= found <= best + 1e-9


def test_the_best_single_row_wins_over_a_cheap_one_that_shuts_it_out():
    objective = Objective(np.array([0.1, 1.0, 0.0, 0.0]), find_neighbours(np.eye(4)), 1.0, 0.0, 0.0)
    constraints = Constraints(np.array([1, 100, 500, 500]), ResolvedBudget("tokens", 100, 1.0))
    assert lazy_greedy(objective, constraints)[0].tolist() == [1]


def test_tokens_are_left_over_rather_than_spent_on_a_loss():
    objective = Objective(np.zeros(3), find_neighbours(np.ones((3, 2))), gamma=9.0, scale=SCALE)
    order, _ = lazy_greedy(
        objective, Constraints(np.full(3, 10), ResolvedBudget("tokens", 30, 3.0))
    )
    assert order.tolist() == [0]


def test_rows_that_must_be_kept_stay_when_the_best_single_row_wins():
    objective = Objective(np.array([0.1, 1.0, 5.0, 0.0]), find_neighbours(np.eye(4)), 1.0, 0.0, 0.0)
    constraints = Constraints(
        np.array([1, 100, 10, 500]), ResolvedBudget("tokens", 110, 1.0), keep=(2,)
    )
    assert lazy_greedy(objective, constraints)[0].tolist() == [2, 1]


def test_a_budget_below_the_shortest_instance_is_refused():
    with pytest.raises(ValueError, match="shortest instance has 7"):
        lazy_greedy(
            problem(4, 0), Constraints(np.array([9, 7, 8, 9]), ResolvedBudget("tokens", 6, 1.0))
        )


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([10, 10, 10, 1, 1, 1, 1], 3),
        ([5, 4, 2.9, 2, 1], 2),
        ([1, 1, 1, 1], 4),
        ([3], 1),
        ([-1, -2], 1),
        ([0, 0, 0], 1),
        ([10, 10, 1, 1, -5, -5], 2),
        ([2, 2, -1], 2),
    ],
)
def test_elbow(gains, expected):
    assert elbow(np.array(gains, dtype=float)) == expected


def test_at_the_elbow_a_further_row_is_worth_less_than_the_mean():
    gains = np.sort(np.random.default_rng(0).exponential(size=200))[::-1]
    k = elbow(gains)
    assert gains[k - 1] >= gains.mean() > gains[k]
