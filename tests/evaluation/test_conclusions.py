from __future__ import annotations

import re

import numpy as np
import pytest

from gradsift.evaluation.conclusions import Question, decide, holm, holm_multipliers
from gradsift.evaluation.intervals import Estimate
from gradsift.evaluation.metrics import GENERAL, LEARNING
from gradsift.evaluation.uncertainty import Contribution, Spread, Uncertainty, VarianceComponent


def by_items(variance, n_items=100):
    return Uncertainty(VarianceComponent(variance, max(n_items - 1, 1)), ())


def estimate(value, p):
    arms = tuple(Contribution(weight, 3, Spread(0.15, 0.0, 4)) for weight in (1.0, -1.0))
    known = Uncertainty(VarianceComponent(0.3, 99), arms)
    return Estimate(value, value - 1, value + 1, p, 100, (3, 3), known)


def learning(arm="a", **metrics):
    found = {name: estimate(*pair) for name, pair in metrics.items()}
    return Question(LEARNING, arm, "random", "random", found)


@pytest.mark.parametrize(
    ("metrics", "answer"),
    [
        ({"bleu": (2, 1e-6), "meteor": (1, 0.5)}, "yes"),
        # A loss is better when it is lower.
        ({"loss": (-0.1, 1e-6), "bleu": (0, 1.0)}, "yes"),
        ({"loss": (0.1, 1e-6), "bleu": (0, 1.0)}, "no"),
        ({"loss": (0.1, 1e-6), "bleu": (3, 1e-6)}, "mixed"),
        ({"bleu": (2, 0.3), "meteor": (1, 0.06)}, "cannot tell"),
        # 0.04 alone would do, but not as the better of two.
        ({"bleu": (2, 0.04), "meteor": (1, 0.5)}, "cannot tell"),
        ({"loss": (0, 0.9), "bleu": (0, 1.0), "chrf": (3, 1e-6)}, "yes"),
        # ROUGE-L is shown, and decides nothing.
        ({"bleu": (2, 0.4), "rouge_l": (9, 1e-9)}, "cannot tell"),
    ],
)
def test_answers(metrics, answer):
    (verdict,) = decide([learning(**metrics)])
    assert verdict.answer == answer


def test_more_arms_need_more_evidence():
    alone = decide([learning(bleu=(2, 0.02))])
    among = decide([learning(bleu=(2, 0.02)), *(learning(arm, bleu=(0, 0.9)) for arm in "bcd")])
    assert alone[0].answer == "yes"
    assert among[0].answer == "cannot tell"
    assert among[0].adjusted_p["bleu"] == pytest.approx(0.08)


def test_other_families_do_not_count():
    other = Question(LEARNING, "a", "full", "full", {"bleu": estimate(0, 0.9)})
    assert decide([learning(bleu=(2, 0.04)), other])[0].answer == "yes"


def test_forgetting_cannot_be_compared_where_there_was_none():
    kept = {"accuracy": estimate(-0.2, 0.7)}
    lost = {"accuracy": estimate(-9, 1e-6)}

    def answer(p, mine, theirs):
        differences = {"accuracy": estimate(-2, p)}
        return decide([Question(GENERAL, "a", "full", "full", differences, mine, theirs)])[0]

    assert "full did not measurably forget" in answer(0.8, lost, kept).sentence
    assert answer(0.8, lost, kept).answer == "nothing to tell"
    assert answer(0.8, lost, lost).answer == answer(0.8, None, None).answer == "cannot tell"
    # Clearly worse than a rival that improved, but nothing is lost.
    assert answer(1e-6, kept, kept).answer == "nothing to tell"
    assert "neither measurably forgot" in answer(1e-6, kept, kept).sentence
    assert answer(1e-6, lost, kept).answer == answer(1e-6, None, None).answer == "no"


def test_what_has_no_interval_was_not_kept():
    one = {"accuracy": Estimate(-9.0, -np.inf, np.inf, 1.0, 1, (1, 1), by_items(np.inf, 1))}
    (verdict,) = decide([Question(GENERAL, "a", "full", "full", one, one, one)])
    assert verdict.answer == "cannot tell"


def test_what_is_needed_counts_the_comparisons():
    found = Estimate(0.5, -1, 2, 0.3, 100, (1, 1), by_items(0.3))
    many = [Question(LEARNING, arm, "random", "random", {"bleu": found}) for arm in "abcdefgh"]
    alone, among = (
        int(re.search(r"BLEU about (\d+) more", v[0].sentence)[1])
        for v in (decide(many[:1]), decide(many))
    )
    assert among > 1.5 * alone


def test_models_that_answer_everything_alike_need_no_more_rows():
    same = Estimate(0.0, 0.0, 0.0, 1.0, 100, (1, 1), by_items(0.0))
    (verdict,) = decide([Question(LEARNING, "a", "random", "random", {"bleu": same})])
    assert verdict.answer == "nothing to tell"
    assert "both answered everything alike" in verdict.sentence
    assert "needed" not in verdict.sentence


def test_a_single_item_has_no_interval():
    one = Estimate(2.0, -np.inf, np.inf, 1.0, 1, (1, 1), by_items(np.inf, 1))
    (verdict,) = decide([Question(LEARNING, "a", "random", "random", {"bleu": one})])
    assert verdict.answer == "cannot tell"
    assert "BLEU +2.00 [no interval] (p 1.000); for BLEU more than one item" in verdict.sentence


def test_without_a_spread_of_trainings_nothing_is_decided():
    known, unknown = Spread(0.1, 0.0, 4), None

    def question(arm, *spreads):
        arms = tuple(Contribution(1.0, 1, spread) for spread in spreads)
        found = Estimate(
            9.0, 8, 10, 1e-9, 100, (1, 1), Uncertainty(VarianceComponent(0.3, 99), arms)
        )
        return Question(LEARNING, arm, "random", "random", {"bleu": found})

    one, both, told = decide(
        [
            question("a", unknown, known),
            question("b", unknown, unknown),
            question("c", known, known),
        ]
    )
    assert [one.answer, both.answer, told.answer] == ["cannot tell", "cannot tell", "yes"]
    assert one.question.of_unknown_spread == ["a"]
    assert both.question.of_unknown_spread == ["b", "random"]
    assert one.adjusted_p == both.adjusted_p == {}
    # It counts for no other question.
    assert told.adjusted_p == {"bleu": pytest.approx(1e-9)}
    assert one.sentence == (
        "Did a learn more than random? Cannot tell, as nothing says how trainings of a differ: "
        "BLEU +9.00 [+8.00, +10.00] (over items only); at least 2 trainings of each arm needed, "
        "better 3, to know how they differ."
    )


def test_a_sentence_has_figures_and_what_would_help():
    (verdict,) = decide([learning(bleu=(0.5, 0.4))])
    assert "Did a learn more than random? Cannot tell" in verdict.sentence
    assert "BLEU +0.50 [-0.50, +1.50] (p 0.400)" in verdict.sentence
    assert "needed" in verdict.sentence


def test_holm():
    # Worked by hand: sorted .01 .02 .04 times 3 2 1, made monotone.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm_multipliers([0.04, 0.01, 0.02]) == [1, 3, 2]
