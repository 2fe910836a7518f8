import pytest

from gradsift.selection.constraints import Budget, ResolvedBudget, parse_budget


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
