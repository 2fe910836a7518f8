import numpy as np
import pytest

from gradsift.selection.candidates import Candidates


def arrays(n=3):
    return {
        "ids": [f"r{row}" for row in range(n)],
        "statistics": {"lm_head": {"std": np.arange(n) + 1.0}},
        "features_ND": np.arange(2.0 * n).reshape(n, 2),
        "n_tokens": np.arange(n) + 5,
        "n_response_tokens": np.arange(n) + 2,
        "step": np.arange(n),
        "loss": np.arange(n) / 2,
    }


def test_take_reorders_every_array():
    pool = Candidates(**arrays()).take(np.array([2, 0]))
    assert pool.ids == ["r2", "r0"]
    assert len(pool) == 2
    assert pool.statistics["lm_head"]["std"].tolist() == [3, 1]
    assert pool.features_ND.tolist() == [[4, 5], [0, 1]]
    assert pool.n_tokens.tolist() == [7, 5]
    assert pool.n_response_tokens.tolist() == [4, 2]
    assert pool.step.tolist() == [2, 0]
    assert pool.loss.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["r0", "r1", "r0"]}, "'r0' is there twice"),
        ({"ids": []}, "no instance can be selected"),
        ({"step": np.arange(2)}, "step has 2 entries for 3 instances"),
        ({"loss": np.array([0, np.nan, 1])}, "loss of instance 'r1' is not finite"),
        (
            {"features_ND": np.array([[0, 1], [1, 1], [0, np.inf]])},
            "content features of instance 'r2' is not finite",
        ),
        (
            {"statistics": {"lm_head": {"std": np.array([np.nan, 1, 1])}}},
            "lm_head std of instance 'r0' is not finite",
        ),
        ({"n_tokens": np.array([5, 0, 5])}, "'r1' has no tokens"),
    ],
)
def test_a_pool_that_cannot_be_right_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Candidates(**arrays() | change)
