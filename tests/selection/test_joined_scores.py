import numpy as np
import pytest

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.joined_scores import (
    cuts_tail,
    needs_of_score,
    rank_in_groups,
    require_known_score,
    words_of,
)
from gradsift.selection.scores import ScoredRow, percentile_rank
from gradsift.selection.selector import make_signal, select_rows
from pools import context_for, make_pool


def config(score, **more):
    return SelectionConfig(score=score, **more)


def alone(pool, score, **more):
    return make_signal(pool, config(score, **more)).score_N


def test_joined_is_the_lower_rank_ranked_again_in_any_order():
    pool = make_pool()
    lower = np.minimum(alone(pool, "prompt-gain"), alone(pool, "low-norm"))
    expected = percentile_rank(lower)
    for score in ("prompt-gain+low-norm", "low-norm+prompt-gain"):
        np.testing.assert_array_equal(alone(pool, score), expected)
    three = alone(pool, "prompt-gain+low-norm+density")
    np.testing.assert_array_equal(three, percentile_rank(np.minimum(lower, alone(pool, "density"))))


def test_what_one_score_sees_no_other_makes_up_for():
    pool = make_pool()
    worst = int(np.argmin(alone(pool, "low-norm")))
    assert alone(pool, "prompt-gain+low-norm")[worst] <= 1 / (len(pool) - 1)


def test_ranks_in_groups_are_those_of_each_group():
    x, group = np.array([5.0, 1, 3, 9, 9, -2]), np.array([0, 0, 0, 2, 2, 5])
    np.testing.assert_allclose(rank_in_groups(x, group), [5 / 6, 1 / 6, 1 / 2, 1 / 2, 1 / 2, 1 / 2])


@pytest.mark.parametrize("score", ["low-norm", "prompt-gain+low-norm"])
def test_within_clusters_every_cluster_gives_its_share(score):
    pool = make_pool(300)
    found = alone(pool, score, rank_within="cluster")
    for cluster in range(3):
        assert abs((found[pool.cluster_N == cluster] > 0.5).mean() - 0.5) < 0.02
    # And within a cluster the order of the pool's own score.
    if score == "low-norm":
        here = pool.cluster_N == 1
        order = np.argsort(alone(pool, score)[here])
        assert order.tolist() == np.argsort(found[here]).tolist()


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        (config("low-norm"), set()),
        (config("prompt-gain+low-norm"), {Need.REFERENCE_LOSSES}),
        (config("low-norm", rank_within="cluster"), {Need.CLUSTERS}),
        (
            config("density+prompt-gain", rank_within="cluster"),
            {Need.CLUSTERS, Need.REFERENCE_LOSSES},
        ),
    ],
)
def test_needs_are_those_of_all_parts(given, needs):
    assert needs_of_score(given) == needs


def test_a_tail_is_cut_if_one_part_cuts_it():
    assert not cuts_tail(config("prompt-gain+low-norm"))
    assert cuts_tail(config("prompt-gain+high-norm-in-density"))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("prompt-gain+low-nrm", "in which 'low-nrm' is unknown: did you mean low-norm"),
        ("prompt-gain+", "in which '' is unknown: known are density"),
        ("low-norm+low-norm", "`score` is 'low-norm\\+low-norm', which names low-norm twice"),
        ("consistent", "`score` is 'consistent', which is unknown: it is now called low-norm"),
        ("grounded+low-norm", "in which 'grounded' is unknown: it is now called prompt-gain"),
    ],
)
def test_a_name_that_there_is_not_is_refused(score, message):
    with pytest.raises(GradsiftError, match=message):
        require_known_score(config(score))


@pytest.mark.parametrize(
    ("given", "kept", "rejected"),
    [
        (
            config("prompt-gain+low-norm"),
            "low-norm above that of 60 % of the rows, the lowest of its scores",
            "prompt-gain above that of only 12 % of the rows (last kept row 60 %, low-norm)",
        ),
        (
            config("low-norm", rank_within="cluster"),
            "low-norm above that of 60 % of the rows of its cluster",
            "low-norm above that of only 12 % of the rows of its cluster (last kept row 60 %)",
        ),
    ],
)
def test_words_name_the_score_that_decided(given, kept, rejected):
    joined = "+" in given.score
    good = {"prompt-gain": 0.9, "low-norm": 0.6} if joined else {"low-norm": 0.6}
    bad = {"prompt-gain": 0.12, "low-norm": 0.8} if joined else {"low-norm": 0.12}
    good, bad = (ScoredRow(0.5, 50, 50, True, parts) for parts in (good, bad))
    kept_because, rejected_because = words_of(given)
    assert kept_because(good) == kept
    assert rejected_because(bad, good) == rejected


@pytest.mark.parametrize("within", ["pool", "cluster"])
def test_reasons_tell_the_parts_of_each_row(within):
    pool, given = make_pool(), config("prompt-gain+low-norm", rank_within=within, beta=0, gamma=0)
    table = select_rows(pool, parse_budget("20"), given, context_for(pool)).table
    parts = make_signal(pool, given).parts
    assert set(parts) == {"prompt-gain", "low-norm"}
    for row, reason in enumerate(table["reason"]):
        name = min(parts, key=lambda part: parts[part][row])
        if "is worth as much" not in reason:
            assert f"{name} above that of" in reason
            assert f"{100 * parts[name][row]:.0f} % of the rows" in reason
