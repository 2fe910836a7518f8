"""How arms are written."""

import re

import pytest

from gradsift.comparison.arms import DRAWING, arm_settings, needs_of_arms, parse_arms
from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.selector import choose_rows
from gradsift.selection.strategies.catalogue import STRATEGIES
from pools import context_for, make_pool


def test_arms_come_once_for_each_budget():
    texts = ("base", " full ", "random", "grads@7:alpha=0:seeds=1", "grads@7:alpha=0:seeds=1")
    arms = parse_arms(texts, ("50%", 10), 3)
    assert [(arm.label, arm.n_seeds) for arm in arms] == [
        ("base", 1),
        ("full", 3),
        ("random 50%", 3),
        ("random 10", 3),
        ("grads:alpha=0 7", 1),
    ]
    assert [arm.is_strategy for arm in arms] == [False, False, True, True, True]


def test_an_arms_own_settings_lie_over_those_of_all():
    base = SelectionConfig(alpha=0.5, gamma=2.0)
    arms = parse_arms(("grads:alpha=1e-1:score=high-norm", "full-equal-steps"), ("50%",), 1)
    own, steps = (arm.selection(base) for arm in arms)
    assert (own.strategy, own.alpha, own.gamma, own.score) == ("grads", 0.1, 2.0, "high-norm")
    # Of a random subset, which says how many steps there are.
    assert (steps.strategy, steps.alpha) == ("random", 0.5)


def test_an_arm_may_have_a_preset():
    base = SelectionConfig(score="high-norm", alpha=0.5)
    texts = ("grads:preset=paper", "grads:preset=paper:score=low-norm", "grads")
    paper, mixed, plain = (arm.selection(base) for arm in parse_arms(texts, ("50%",), 1))
    assert (paper.score, paper.detrend, paper.alpha) == ("density", (), 0.5)
    assert (mixed.score, mixed.detrend) == ("low-norm", ())
    assert (plain.score, len(plain.detrend)) == ("high-norm", 3)
    with pytest.raises(GradsiftError, match="`preset` is 'papr'"):
        parse_arms(("grads:preset=papr",), ("50%",), 1)


def test_an_unknown_score_is_refused_with_the_arm_that_names_it():
    message = "arm 'grads@25%:score=midle-norm': `score` is 'midle-norm', which is unknown: "
    with pytest.raises(GradsiftError, match=re.escape(message)):
        parse_arms(("full", "grads@25%:score=midle-norm"), (), 1)
    with pytest.raises(GradsiftError, match=r"`score` is 'high-nrm', .* did you mean high-norm"):
        arm_settings({"score": "high-nrm"}, SelectionConfig)


def test_needs_are_those_of_all_arms():
    arms = parse_arms(("full", "grads:score=prompt-gain", "k-center"), ("50%",), 1)
    assert needs_of_arms(arms, SelectionConfig()) == {Need.REFERENCE_LOSSES, Need.FEATURES}
    assert needs_of_arms(arms[:1], SelectionConfig(score="prompt-gain")) == set()


def test_scores_are_joined_in_an_arm():
    text = "grads:score=prompt-gain+low-norm:rank_within=cluster:seeds=2"
    (arm,) = parse_arms((text,), ("50%",), 1)
    assert arm.label == "grads:score=prompt-gain+low-norm:rank_within=cluster 50%"
    assert needs_of_arms([arm], SelectionConfig()) == {
        Need.REFERENCE_LOSSES,
        Need.CLUSTERS,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grads:near_threshold=0.9", "'near_threshold' is now called 'similarity_threshold'"),
        ("grads:adjust=none", "'adjust' is now called 'detrend'"),
        ("grads:side=balanced", "'side' is now called 'score'"),
        ("grads:alpah=1", "did you mean alpha"),
        ("grads:budget=5", "budget is said by @BUDGET"),
    ],
)
def test_a_setting_that_is_none_is_answered_with_what_it_is_called(text, message):
    with pytest.raises(GradsiftError, match=message):
        parse_arms((text,), ("50%",), 1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_draws_its_rows_is_known(name):
    pool = make_pool()
    first, *others = (
        choose_rows(
            pool,
            parse_budget(10),
            SelectionConfig(strategy=name, seed=seed),
            context_for(pool),
        ).tolist()
        for seed in range(4)
    )
    assert any(set(other) != set(first) for other in others) == (name in DRAWING)


def test_replay_is_that_of_all_arms_or_an_arms_own():
    texts = ("base", "full", "full:replay=0", "grads:alpha=0:replay=0.125:seeds=1", "random@7")
    arms = parse_arms(texts, ("50%",), 2, replay_share=0.07)
    assert [(arm.label, arm.replay_share, arm.n_seeds) for arm in arms] == [
        ("base", 0.0, 1),
        ("full + replay 7%", 0.07, 2),
        ("full", 0.0, 2),
        ("grads:alpha=0 50% + replay 12.5%", 0.125, 1),
        ("random 7 + replay 7%", 0.07, 2),
    ]
    assert arms[3].family == "grads:alpha=0 + replay 12.5%"
    # It is none of the selection's settings.
    assert arms[3].settings == {"alpha": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full:replay=1", "replay is 1, expected a share"),
        ("full:replay=5%", "replay is '5%', expected a share"),
        ("full:replay=true", "replay is True"),
        ("base:replay=0.1", "base is not trained, so it has no replay"),
        ("full:replya=0.1", "did you mean replay"),
    ],
)
def test_a_share_that_is_none_is_refused(text, message):
    with pytest.raises(GradsiftError, match=message):
        parse_arms((text,), ("50%",), 1)
