import numpy as np
import pytest

from gradsift.selection.greedy import elbow


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
