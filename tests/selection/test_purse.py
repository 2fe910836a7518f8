import numpy as np
import pytest

from gradsift.selection.constraints import Constraints, ResolvedBudget

COSTS = np.array([3, 1, 4, 1, 5])


def terms(kind="rows", amount=3, **changes):
    return Constraints(COSTS, ResolvedBudget(kind, amount, 3.0), **changes)


def test_rows_are_counted_one_by_one():
    purse = terms().purse()
    assert purse.take_in_order([4, 4, 2, 0, 1]).tolist() == [4, 2, 0]
    assert not purse.fitting().any()
    assert not purse.fits(1)


def test_tokens_are_a_ceiling_and_smaller_rows_still_fit():
    purse = terms("tokens", 6).purse()
    assert purse.take_in_order(range(5)).tolist() == [0, 1, 3]
    assert purse.left == 1


def test_fits_and_fitting_say_the_same():
    purse = terms(
        "tokens", 7, keep=(1,), group_N=np.array([0, 0, 1, 1, 1]), most_G={1: 1}, barred=(0,)
    ).purse()
    for row in (None, 3):
        if row is not None:
            purse.take(row)
        assert purse.fitting().tolist() == [purse.fits(r) for r in range(5)]
    assert purse.fitting().tolist() == [False] * 5


def test_what_must_be_kept_comes_first_and_counts():
    purse = terms(keep=(3, 2)).purse()
    assert purse.order == [3, 2]
    assert purse.left == 1


def test_room():
    assert terms().room() == 5
    assert terms(barred=(0, 1)).room() == 3
    groups = {"group_N": np.array([0, 0, 1, 1, 1]), "most_G": {1: 1}}
    assert terms(**groups).room() == 3
    assert terms(**groups, barred=(2, 3)).room() == 3
    assert terms(**groups, barred=(0, 2, 3, 4)).room() == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "tokens", "amount": 0}, "shortest instance has 1. Give at least 1tok"),
        ({"keep": (0, 1, 2, 3)}, "3 of 4 fit"),
        ({"keep": (0,), "barred": (0,)}, "0 of 1 fit"),
        ({"barred": (0, 1, 2)}, "leave 2 rows, but the budget asks for 3"),
        ({"group_N": np.zeros(5, dtype=int), "most_G": {0: 2}}, "leave 2 rows"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        terms(**given).purse()
