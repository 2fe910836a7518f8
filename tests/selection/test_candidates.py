import numpy as np
import pytest

from gradsift.errors import GradsiftError
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
        "el2n": np.arange(n) / 3,
    }


def test_covariates():
    pool = Candidates(**arrays())
    assert pool.covariate("response_length").tolist() == [2, 3, 4]
    assert pool.covariate("prompt_length").tolist() == [3, 3, 3]
    assert pool.covariate("step").tolist() == [0, 1, 2]


def test_a_missing_loss_of_the_response_alone_is_no_fault():
    losses = {"response": np.ones(3), "alone": np.array([1, np.nan, 1]), "text": np.ones(3)}
    assert len(Candidates(**arrays(), reference_losses=losses)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["r0", "r0", "r1"]}, "'r0' is there twice"),
        ({"ids": ["r0", "r2", "r1"]}, "'r1' comes after 'r2': sort them first"),
        ({"sketches": {"lm_head": np.full((3, 2), np.inf)}}, "lm_head sketch of instance 'r0'"),
        ({"reference_losses": {"text": np.array([1, 1, np.nan])}}, "text loss of instance 'r2'"),
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
    with pytest.raises((GradsiftError, AssertionError), match=message):
        Candidates(**arrays() | change)
