"""Scores of answers in several languages, and what is said of them."""

import pytest

from gradsift.comparison.arms import parse_arms
from gradsift.comparison.results import EvaluatedModel, Scoreboard, caveats_of
from gradsift.errors import GradsiftError
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
    assert caveats_of(board) == []


def test_scores_under_two_tokenizers_are_not_compared():
    with pytest.raises(GradsiftError, match=r"different ways.*tok:zh.*tok:13a"):
        board_of(([ZH], [ZH]), ([EN], [EN]))


def test_bleu_is_left_out_where_no_reference_has_its_longest_ngram():
    board = board_of((["yes", "no no no"], ["yes", "no no no"]))
    assert board.metrics == ["loss", "meteor", "rouge_l", "chrf"]
    assert any(note.startswith("no BLEU") for note in caveats_of(board))
    longer = board_of((["yes", "no"], ["yes", "no no no no"]))
    assert "bleu" in longer.metrics
