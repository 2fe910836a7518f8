"""Scores of answers in several languages, what is said of them, and whose trainings are alike."""

import re
from pathlib import Path

import numpy as np
import pytest

from gradsift.comparison.arms import parse_arms
from gradsift.comparison.results import EvaluatedModel, Scoreboard, caveats_of, questions_of
from gradsift.comparison.tables import Comparison
from gradsift.errors import GradsiftError
from gradsift.evaluation.conclusions import decide
from gradsift.evaluation.text_metrics import WITHOUT, score_texts

ZH = "今天天气很不错,我们去公园散步吧。"
EN = "The weather is fine today, let us go for a walk in the park."


def scores_of(answers, references):
    texts = score_texts(answers, references, WITHOUT)
    n = len(answers)
    answers = {**vars(texts), "language": texts.languages, "source": ["all"] * n}
    # As JSON has it.
    answers["meteor"] = [None if value != value else value for value in texts.meteor]
    return {
        "rows": {"source": ["all"] * n, "loss": [1.0] * n},
        "answers": answers,
        "tasks": {},
        "texts": {},
    }


def board_of(*pairs):
    arms = parse_arms(("base", "full:seeds=1"), (), 1)
    models = [
        EvaluatedModel(arm, 0, 0, None, scores_of(*pair))
        for arm, pair in zip(arms, pairs, strict=False)
    ]
    return Scoreboard(models)


def test_a_mixed_set_is_scored_together_and_apart():
    references = [ZH, EN, EN]
    board = board_of(([ZH, "No.", EN], references))
    assert board.languages == {"en": 2, "zh": 1}
    assert board.sizes == {"rows": 3, "answers": 3, "answers in English": 2}
    apart = board.by_language("base")
    assert apart["zh"] == {"n": 1, "bleu": pytest.approx(100), "rouge_l": 100.0, "chrf": 100.0}
    assert apart["en"]["n"] == 2
    assert 45 < apart["en"]["meteor"] < 55
    assert board.level("base", "meteor").value == apart["en"]["meteor"]
    assert apart["en"]["bleu"] < board.level("base", "bleu").value < 100
    assert board.by_source("base")["all"]["n"] == 3
    notes = "\n".join(caveats_of(board))
    assert "METEOR is of the 2 answers of 3 whose reference is in English" in notes
    assert "several languages (2 en, 1 zh)" in notes


@pytest.mark.parametrize(
    ("references", "said"), [([ZH, ZH, EN], "(2 zh, 1 en)"), ([ZH, ZH], "(2 zh)")]
)
def test_meteor_is_left_out_where_it_says_little(references, said):
    board = board_of((references, references))
    assert board.metrics == ["loss", "bleu", "rouge_l", "chrf"]
    (note,) = (note for note in caveats_of(board) if "METEOR" in note)
    assert note.endswith(said)


def test_of_english_answers_nothing_is_said():
    board = board_of(([EN] * 20, [EN] * 20), (["No."] * 20, [EN] * 20))
    assert "meteor" in board.metrics
    assert [note for note in caveats_of(board) if "trained once" not in note] == []


def test_scores_under_two_tokenizers_are_not_compared():
    with pytest.raises(GradsiftError, match=r"different ways.*tok:zh.*tok:13a"):
        board_of(([ZH], [ZH]), ([EN], [EN]))


def test_bleu_is_left_out_where_no_reference_has_its_longest_ngram():
    board = board_of((["yes", "no no no"], ["yes", "no no no"]))
    assert board.metrics == ["loss", "meteor", "rouge_l", "chrf"]
    assert any(note.startswith("no BLEU") for note in caveats_of(board))
    longer = board_of((["yes", "no"], ["yes", "no no no no"]))
    assert "bleu" in longer.metrics


COST = {"n_steps": 9, "seconds": 1.0, "n_tokens": 9}


def board_with(*texts, loss=None, training=None, tasks=None):
    """A board of arms whose held-out losses are drawn, each training's shifted by chance."""
    rng = np.random.default_rng(0)

    def scores(arm, index):
        shift = 0.0 if arm.name == "base" else rng.normal(0, 0.1)
        lost = {} if tasks is None else {"t": {"scores": tasks(arm, rng)}}
        losses = rng.normal(2 + shift, 0.3, 60) if loss is None else loss(arm, index)
        rows = {"source": ["all"] * 60, "loss": losses}
        return {"rows": rows, "tasks": lost, "texts": {}, "seconds": 1.0}

    models = [
        EvaluatedModel(
            arm,
            index,
            {"full-equal-steps": 100, "base": 0}.get(arm.name, 50),
            None if arm.name == "base" else {**COST, **(training or {}).get(arm.name, {})},
            scores(arm, index),
        )
        for arm in parse_arms(texts, (), 3)
        for index in range(arm.n_seeds)
    ]
    return Scoreboard(models)


def test_arms_borrow_from_those_whose_rows_vary_as_theirs_do():
    texts = ("base", "full", "grads@50%:seeds=1", "random@50%", "k-means@50%", "random@5%")
    board = board_with(*texts)
    fixed, drawn = ["full", "grads 50%"], ["random 50%", "k-means 50%", "random 5%"]
    assert board.lenders("full") == [["full"], fixed, [*fixed, *drawn]]
    assert board.lenders("grads 50%") == [["grads 50%"], fixed, [*fixed, *drawn]]
    # Few rows vary more than many.
    assert board.lenders("random 50%") == [drawn[:2], drawn]
    assert board.lenders("random 5%") == [["random 5%"], drawn]

    def dfs(*arms):
        parts = board.difference(*arms, "loss").uncertainty.seeds
        return [part.df for part in parts]

    assert dfs("grads 50%", "full") == [2]
    assert dfs("grads 50%", "random 50%") == [2, 4]
    assert dfs("grads 50%", "base") == [2]
    assert dfs("random 5%", "random 50%") == [2, 4]
    assert board.level("base", "loss").uncertainty.seeds == []


def test_arms_borrow_only_from_those_with_as_much_replay():
    arms = ("full", "full:replay=0.01", "grads@50%:replay=0.5:seeds=1", "random@50%:replay=0.5")
    board = board_with(*arms)
    assert board.lenders("full") == [["full"], ["full"], ["full"]]
    low, high, drawn = list(board.arms)[1:]
    assert board.lenders(low) == [[low], [low], [low]]
    assert board.lenders(high) == [[high], [high], [high, drawn]]
    # Nothing says how it differs: that of arms without replay is not taken.
    board = board_with("full", "full:replay=0.5:seeds=1")
    assert not board.knows_spread(list(board.arms)[1])


def test_a_spread_from_arms_on_other_numbers_of_rows_is_told():
    board = board_with("base", "full", "loss-low@5%:seeds=1", "grads@5%:seeds=1", "random@50%")
    (note,) = (note for note in caveats_of(board) if "too narrow" in note)
    assert note == (
        "loss-low 5%, grads 5%: how trainings differ is taken from arms on other numbers of rows "
        "(full); if it differs more, intervals are too narrow"
    )
    board = board_with("base", "full", "loss-low@5%", "grads@5%:seeds=1", "random@50%")
    assert not any("too narrow" in note for note in caveats_of(board))


def test_with_replay_steps_are_equal_to_within_one():
    texts = ("full-equal-steps@50%:replay=0.1", "grads@50%:replay=0.1")
    steps = {"full-equal-steps": {"n_steps": 8}}
    steps_arm, subset = parse_arms(texts, (), 3)
    for n, is_as_large in ((7, True), (9, True), (10, False)):
        board = board_with(*texts, training={**steps, "grads": {"n_steps": n}})
        assert board.is_as_large(subset.label, steps_arm.label) is is_as_large
    notes = caveats_of(board)
    assert any("no full-equal-steps arm with as much replay has as many steps" in n for n in notes)


def test_an_arm_of_many_trainings_needs_no_others():
    texts = ("loss-low@50%", "grads@50%:seeds=5", "random@50%:seeds=2", "random@5%")
    board = board_with(*texts)
    assert board.lenders("grads 50%")[0] == ["grads 50%"]
    parts = board.difference("grads 50%", "loss-low 50%", "loss").uncertainty.seeds
    assert [part.df for part in parts] == [4, 6]
    # One degree of freedom is too few, where others have more.
    (seeds,) = board.level("random 50%", "loss").uncertainty.seeds
    assert seeds.df == 3


@pytest.mark.parametrize(("seen", "draws"), [(40, True), (100, False), (98, False), (None, False)])
def test_all_rows_in_less_than_a_pass_are_a_draw(seen, draws):
    training = {"full-equal-steps": {} if seen is None else {"n_instances": seen}}
    board = board_with("full", "full-equal-steps@5%", "random@5%", training=training)
    _, alike, *_ = board.lenders("full-equal-steps 5%")
    steps = "full-equal-steps 5%"
    assert alike == ([steps, "random 5%"] if draws else ["full", steps])


def test_an_arm_whose_spread_nothing_shows_is_noted():
    board = board_with("base", "full", "random@50%:seeds=1")
    (note,) = (note for note in caveats_of(board) if "trained once" in note)
    assert note.startswith("random 50%: trained once")
    assert [
        part.df for part in board.difference("full", "random 50%", "loss").uncertainty.seeds
    ] == [2]
    # Drawn rows differ more than fixed ones: too wide an interval, which is better than none.
    board = board_with("base", "full:seeds=1", "random@50%")
    assert not any("trained once" in note for note in caveats_of(board))
    (seeds,) = board.level("full", "loss").uncertainty.seeds
    assert seeds.df == 2


def test_one_training_of_each_arm_decides_nothing():
    def far_apart(arm, index):
        return np.random.default_rng(3).normal(
            {"base": 3, "full": 2, "grads": 1}[arm.name], 0.3, 60
        )

    def share(arm, rng):
        return (rng.random(400) < {"base": 0.9, "full": 0.5, "grads": 0.7}[arm.name]).astype(float)

    once = board_with("base", "full:seeds=1", "grads@50%:seeds=1", loss=far_apart, tasks=share)
    verdicts = decide(questions_of(once))
    assert {verdict.answer for verdict in verdicts} == {"cannot tell"}
    assert all(verdict.question.of_unknown_spread for verdict in verdicts)
    assert once.relative_to_full("grads 50%") is None
    twice = board_with("base", "full", "grads@50%:seeds=1", tasks=share)
    assert not any(verdict.question.of_unknown_spread for verdict in decide(questions_of(twice)))


def test_forgetting_relative_to_full_has_an_interval_or_is_not_there():
    def tasks_where(lost):
        share = {"base": 0.9, "full": 0.9 - lost, "grads": 0.9 - lost / 2}
        return lambda arm, rng: (rng.random(400) < share[arm.name]).astype(float)

    arms = ("base", "full", "grads@50%")
    found = board_with(*arms, tasks=tasks_where(0.4)).relative_to_full("grads 50%")
    assert found.low < found.value < found.high < 0
    assert found.low > -1
    board = board_with(*arms, tasks=tasks_where(0.0))
    assert board.relative_to_full("grads 50%") is None
    assert board.relative_to_full("full") is None
    assert board_with(*arms).relative_to_full("grads 50%") is None


def test_the_tables_show_the_share_of_fulls_forgetting_with_its_interval():
    share = {"base": 0.9, "full": 0.5, "grads": 0.7}
    board = board_with(
        "base",
        "full",
        "grads@50%",
        tasks=lambda arm, rng: (rng.random(400) < share[arm.name]).astype(float),
    )
    comparison = Comparison(Path("run"), board, [], 0.0, 0, {})
    found = comparison.summary()["arms"]
    shown = found["grads 50%"]["forgotten_relative_to_full"]
    assert shown["low"] < shown["value"] < shown["high"]
    assert shown["value"] == pytest.approx(-50, abs=15)
    assert found["full"]["forgotten_relative_to_full"] is None
    head, *rows = comparison.forgetting_table()
    cells = {row[0]: row[head.index("relative to full")] for row in rows}
    assert cells["full"] == ""
    assert re.fullmatch(r"-\d\d% \[-\d\d, -\d\d\]", cells["grads 50%"])
