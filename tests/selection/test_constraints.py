import numpy as np
import pytest

from gradsift.selection.constraints import Budget, Constraints, ResolvedBudget, parse_budget

COSTS = np.array([3, 1, 4, 1, 5])


def constraints(kind="rows", amount=3, **changes):
    return Constraints(COSTS, ResolvedBudget(kind, amount, 3.0), **changes)


def test_rows_are_counted_one_by_one():
    builder = constraints().builder()
    assert builder.take_in_order([4, 4, 2, 0, 1]).tolist() == [4, 2, 0]
    assert not builder.fitting().any()
    assert not builder.fits(1)


def test_tokens_are_a_ceiling_and_smaller_rows_still_fit():
    builder = constraints("tokens", 6).builder()
    assert builder.take_in_order(range(5)).tolist() == [0, 1, 3]
    assert builder.left == 1


def test_fits_and_fitting_say_the_same():
    builder = constraints(
        "tokens", 7, keep=(1,), group_N=np.array([0, 0, 1, 1, 1]), caps_G={1: 1}, excluded=(0,)
    ).builder()
    for row in (None, 3):
        if row is not None:
            builder.take(row)
        assert builder.fitting().tolist() == [builder.fits(r) for r in range(5)]
    assert builder.fitting().tolist() == [False] * 5


def test_what_must_be_kept_comes_first_and_counts():
    builder = constraints(keep=(3, 2)).builder()
    assert builder.order == [3, 2]
    assert builder.left == 1


def test_room():
    assert constraints().capacity() == 5
    assert constraints(excluded=(0, 1)).capacity() == 3
    groups = {"group_N": np.array([0, 0, 1, 1, 1]), "caps_G": {1: 1}}
    assert constraints(**groups).capacity() == 3
    assert constraints(**groups, excluded=(2, 3)).capacity() == 3
    assert constraints(**groups, excluded=(0, 2, 3, 4)).capacity() == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "tokens", "amount": 0}, "shortest instance has 1. Give at least 1tok"),
        ({"keep": (0, 1, 2, 3)}, "3 of 4 fit"),
        ({"keep": (0,), "excluded": (0,)}, "0 of 1 fit"),
        ({"excluded": (0, 1, 2)}, "leave 2 rows, but the budget asks for 3"),
        ({"group_N": np.zeros(5, dtype=int), "caps_G": {0: 2}}, "leave 2 rows"),
        ({"kind": "tokens", "excluded": (0, 1, 2, 3, 4)}, "leave no row"),
        ({"amount": 0, "group_N": np.zeros(5, dtype=int), "caps_G": {0: 0}}, "leave no row"),
        ({"kind": "tokens", "excluded": (1, 3), "amount": 2}, "shortest instance has 3"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        constraints(**given).builder()


@pytest.mark.parametrize(
    ("written", "kind", "amount", "shown"),
    [
        ("50%", "fraction", 0.5, "50%"),
        ("2.5%", "fraction", 0.025, "2.5%"),
        ("100%", "fraction", 1.0, "100%"),
        (0.5, "fraction", 0.5, "50%"),
        (1.0, "fraction", 1.0, "100%"),
        ("500", "rows", 500, "500"),
        (1, "rows", 1, "1"),
        ("1", "rows", 1, "1"),
        ("20000tok", "tokens", 20000, "20000tok"),
        ("20_000 tokens", "tokens", 20000, "20000tok"),
    ],
)
def test_every_way_to_write_a_budget(written, kind, amount, shown):
    budget = parse_budget(written)
    assert (budget.kind, budget.amount, str(budget)) == (kind, amount, shown)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("101%", "more than 100%"),
        ("0%", "more than 0"),
        ("0", "more than 0"),
        ("-5", "more than 0"),
        ("-5tok", "more than 0"),
        ("1.5", "may mean a fraction"),
        ("0.5", "may mean a fraction"),
        ("1.5tok", "may mean a fraction"),
        ("half", "not understood"),
        ("", "not understood"),
        ("50%%", "not understood"),
        (0, "more than 0"),
        (-1, "more than 0"),
        (0.0, "above 0"),
        (1.5, "at most 1.0"),
        (float("nan"), "above 0"),
        (True, "a text or a number"),
        (None, "a text or a number"),
    ],
)
def test_what_is_no_budget_is_refused_with_the_ways_to_write_one(written, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_budget(written)
    assert "20000tok" in str(error.value)


@pytest.mark.parametrize(
    ("written", "n", "rows"),
    [
        ("50%", 400, 200),
        ("5%", 400, 20),
        ("50%", 3, 2),
        ("50%", 1, 1),
        ("14.5%", 100, 15),
        ("100%", 7, 7),
        ("7", 7, 7),
    ],
)
def test_a_budget_of_rows_is_a_share_of_the_instances_to_the_nearest_row(written, n, rows):
    assert parse_budget(written).resolve(n, 1000 * n) == ResolvedBudget("rows", rows, float(rows))


def test_a_budget_of_tokens_stands_for_as_many_rows_as_have_that_many_tokens_on_average():
    assert parse_budget("300tok").resolve(40, 1200) == ResolvedBudget("tokens", 300, 10.0)


@pytest.mark.parametrize(
    ("budget", "n", "tokens", "message"),
    [
        (Budget("rows", 8), 7, 70, "the pool has 7 instances"),
        (Budget("tokens", 71), 7, 70, "the pool's 70 tokens"),
        (Budget("fraction", 0.01), 7, 70, "give at least 15%"),
        (Budget("fraction", 0.5), 0, 0, "every row was dropped"),
    ],
)
def test_a_budget_that_does_not_fit_the_pool_is_refused(budget, n, tokens, message):
    with pytest.raises(ValueError, match=message):
        budget.resolve(n, tokens)
