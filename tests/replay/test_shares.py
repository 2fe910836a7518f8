"""How much replay a share comes to."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.replay.shares import missed, n_rows_for, percent, share_of, spread, tokens_for


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.integers(1, 2000),
    st.floats(0.001, 0.9),
)
def test_whole_rows_come_nearest_to_the_share(tokens, n_own, ratio):
    wanted = tokens_for(ratio, n_own)
    n = n_rows_for(wanted, tokens)
    totals = list(accumulate(tokens))
    assert 1 <= n <= len(tokens)
    assert abs(totals[n - 1] - wanted) == min(abs(total - wanted) for total in totals)
    # Rows behind those that were looked at change nothing.
    if totals[-1] >= wanted:
        assert n_rows_for(wanted, [*tokens, 1, 1, 1]) == n


def test_a_share_is_of_all_tokens():
    assert tokens_for(0.2, 400) == pytest.approx(100)
    assert share_of(100, 400) == pytest.approx(0.2)
    assert [percent(share) for share in (0.05, 0.07, 0.125, 0.005)] == ["5%", "7%", "12.5%", "0.5%"]
    assert percent(1e-9) == "0.0000001%"


def test_others_stand_evenly_between_our_own():
    own, others = [f"a{i}" for i in range(9)], [f"b{i}" for i in range(3)]
    placed = spread(own, others)
    assert [one for one in placed if one in own] == own
    assert [placed.index(one) for one in others] == [2, 6, 10]
    assert spread(own, []) == own


def test_what_whole_rows_miss_is_told():
    assert missed(0.05, 0.054, "f") is None
    assert "replay has 12.0 %" in missed(0.05, 0.12, "f")
    assert "asked for were 5 %" in missed(0.05, 0.01, "f")
