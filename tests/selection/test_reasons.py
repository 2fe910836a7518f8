import numpy as np
import pytest

from gradsift.config import SelectionConfig
from gradsift.selection.constraints import Constraints, ResolvedBudget
from gradsift.selection.greedy import Gains
from gradsift.selection.reasons import Evidence, write_reasons
from gradsift.selection.strategies.base import Choice


def reason_of_row(
    row,
    *,
    gradient=(0.3, 0.2, 0.1),
    diversity=(0.1, 0.05, 0.01),
    penalty=(0.0, 0.0, 0.0),
    cosine=(0.2, 0.2, 0.4),
    density=(80, 60, 3),
    size=(90, 70, 20),
    scores=(0.8, 0.6, 0.03),
    costs=(10, 10, 10),
    budget=None,
    score="density",
    detrend=(),
    **settings,
):
    """Rows a and b are kept in this order; c is not, and its nearest is a."""
    evidence = Evidence(
        ids=["a", "b", "c"],
        score_N=np.array(scores, dtype=float),
        density_pct_N=np.array(density, dtype=float),
        magnitude_pct_N=np.array(size, dtype=float),
        nearest_N=np.array([1, 0, 0]),
        cosine_N=np.array(cosine),
        source=None,
    )
    gains = Gains(np.array(gradient), np.array(diversity), np.array(penalty))
    choice = Choice(np.array([0, 1]), gains)
    constraints = Constraints(np.array(costs), budget or ResolvedBudget("rows", 2, 2.0))
    return write_reasons(
        choice, evidence, SelectionConfig(score=score, detrend=detrend, **settings), constraints
    )[row]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            {},
            "typical gradient (density percentile 80), "
            "no near-duplicate kept (nearest kept row at 0.20)",
        ),
        (
            {"diversity": (0.9, 0, 0), "density": (49.4, 60, 3)},
            "no near-duplicate kept (nearest kept row at 0.20), "
            "although its gradient is less typical (density percentile 49)",
        ),
        (
            {"cosine": (0.93, 0.93, 0.4), "score": "high-norm"},
            "large gradient (magnitude percentile 90), content like that of kept row b (0.93)",
        ),
        (
            {"score": "high-norm", "size": (30, 70, 20), "diversity": (0, 0, 0)},
            "small gradient (magnitude percentile 30)",
        ),
        (
            {
                "score": "high-norm-in-density",
                "scores": (0.0, 0.6, 0.03),
                "density": (2, 60, 3),
                "diversity": (0, 0, 0),
            },
            "gradient outside the typical region (density percentile 2)",
        ),
        (
            {"score": "low-norm", "detrend": ("response_length",)},
            "no near-duplicate kept (nearest kept row at 0.20), although its gradient is large "
            "for its length (magnitude percentile 90)",
        ),
        ({"gradient": (0, 0, 0)}, "no near-duplicate kept (nearest kept row at 0.20)"),
        (
            {"penalty": (0.6, 0, 0), "cosine": (0.97, 0.97, 0.4)},
            None,
        ),
    ],
)
def test_why_a_row_was_kept(case, expected):
    if expected is None:
        expected = (
            "kept (rank 1 of 2) to fill the budget: gain -0.2, "
            "too close to kept row b (similarity 0.97)"
        )
    else:
        expected = f"kept (rank 1 of 2): {expected}"
    assert reason_of_row(0, **case) == expected


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            {},
            "gradient less typical than most (density percentile 3, last kept row 60); "
            "gain 0.11 < cut 0.25",
        ),
        (
            {"score": "high-norm"},
            "gradient not large enough (magnitude percentile 20, last kept row 70); "
            "gain 0.11 < cut 0.25",
        ),
        (
            {"score": "low-norm", "detrend": ("response_length",)},
            "gradient not small enough for its length (magnitude percentile 20, last kept row 70); "
            "gain 0.11 < cut 0.25",
        ),
        (
            {"score": "prompt-gain"},
            "prompt does not help enough (more than in 3 % of the rows, last kept row 60 %); "
            "gain 0.11 < cut 0.25",
        ),
        (
            {"score": "high-norm-in-density", "scores": (0.8, 0.6, 0.0)},
            "gradient outside the typical region (density percentile 3); gain 0.11 < cut 0.25",
        ),
        (
            {"gradient": (0.3, 0.2, 0.195)},
            "its content is covered by kept rows (would add 0.01, the last kept row 0.05); "
            "gain 0.205 < cut 0.25",
        ),
        (
            {"penalty": (0, 0, 0.3), "cosine": (0.2, 0.2, 0.97)},
            "too close to kept row a (similarity 0.97); gain -0.19 < cut 0.25",
        ),
        (
            {"gradient": (0.3, 0.2, 0.2), "diversity": (0.1, 0.05, 0.05)},
            "budget spent, kept row b is worth as much; gain 0.25, as the last kept row",
        ),
        (
            {"gradient": (0.3, 0.2, 0.2), "diversity": (0.1, 0.05, 0.0499999)},
            "its content is covered by kept rows (would add 0.05, the last kept row 0.05); "
            "gain 0.2499999 < cut 0.25",
        ),
    ],
)
def test_why_a_row_was_not_kept_under_rows(case, expected):
    assert reason_of_row(2, **case) == f"not kept: {expected}"


TOKENS = ResolvedBudget("tokens", 25, 2.5)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            {"penalty": (0, 0, 0.3), "cosine": (0.2, 0.2, 0.97)},
            "adding it would lower the objective by 0.19, "
            "too close to kept row a (similarity 0.97)",
        ),
        (
            {"gradient": (0.3, 0.2, 0.6), "costs": (10, 10, 12)},
            "its 12 tokens do not fit the 5 that are left",
        ),
        (
            {"gradient": (0.3, 0.2, 0.3), "costs": (10, 10, 40)},
            "40 tokens are many for what it adds; gain per token 0.00775 < cut 0.025",
        ),
        (
            {"costs": (10, 10, 20)},
            "gradient less typical than most (density percentile 3, last kept row 60); "
            "gain per token 0.0055 < cut 0.025",
        ),
    ],
)
def test_why_a_row_was_not_kept_under_tokens(case, expected):
    assert reason_of_row(2, budget=TOKENS, **case) == f"not kept: {expected}"


def test_a_random_draw_says_so():
    evidence = Evidence(["a", "b"], *[np.zeros(2)] * 5, None)
    constraints = Constraints(np.ones(2), ResolvedBudget("rows", 1, 1.0))
    assert write_reasons(Choice(np.array([1])), evidence, SelectionConfig(seed=7), constraints) == [
        "not drawn (seed 7)",
        "drawn at random (seed 7)",
    ]


@pytest.mark.parametrize(
    ("low_first", "budget", "expected"),
    [
        (
            False,
            ResolvedBudget("rows", 1, 1.0),
            ["not kept: loss 2, last kept row 3", "kept (rank 1 of 1): loss 3, high first"],
        ),
        (
            False,
            ResolvedBudget("tokens", 7, 1.0),
            ["not kept: loss 2, last kept row 3", "kept (rank 1 of 1): loss 3, high first"],
        ),
        (
            True,
            ResolvedBudget("tokens", 7, 1.0),
            [
                "not kept: its 5 tokens did not fit what was left (loss 2)",
                "kept (rank 1 of 1): loss 3, low first",
            ],
        ),
    ],
)
def test_a_measure_is_told_with_the_cut(low_first, budget, expected):
    evidence = Evidence(["a", "b", "c"], *[np.zeros(3)] * 5, None)
    choice = Choice(np.array([1]), None, "loss", np.array([2.0, 3.0, np.nan]), low_first)
    found = write_reasons(choice, evidence, SelectionConfig(), Constraints(np.full(3, 5), budget))
    assert found == [*expected, "not kept: no loss could be computed"]
