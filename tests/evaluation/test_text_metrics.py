from __future__ import annotations

import pytest
from sacrebleu.metrics import BLEU, CHRF

from gradsift.evaluation import text_metrics
from gradsift.evaluation.metrics import METRICS, replicate
from gradsift.evaluation.text_metrics import WITHOUT, Synonyms, find_synonyms, meteor, score_texts

ANSWERS = ["the cat sat on the mat", "it is raining cats and dogs today", "", "completely wrong"]
REFERENCES = ["the cat sat on a mat", "it rains cats and dogs", "something", "nothing in common"]


class TinyWordNet:
    """Two groups of words that mean the same."""

    GROUPS = (("doctor", "physician"), ("car", "automobile"), ("bought", "purchased"))

    class Synset:
        def __init__(self, words):
            self.words = words

        def lemmas(self):
            return [type("Lemma", (), {"name": lambda _, w=word: w})() for word in self.words]

    def synsets(self, word):
        return [self.Synset(words) for words in self.GROUPS if word in words]


def test_counts_give_the_corpus_metrics_of_sacrebleu():
    found = score_texts(ANSWERS, REFERENCES, WITHOUT)
    bleu = BLEU().corpus_score(ANSWERS, [REFERENCES]).score
    chrf = CHRF().corpus_score(ANSWERS, [REFERENCES]).score
    assert bleu > 5
    assert value("bleu", found.bleu) == pytest.approx(bleu)
    assert value("chrf", found.chrf) == pytest.approx(chrf)


def test_counts_of_some_items_give_the_metric_of_those():
    found = score_texts(ANSWERS, REFERENCES, WITHOUT)
    expected = BLEU().corpus_score(ANSWERS[:2], [REFERENCES[:2]]).score
    assert value("bleu", found.bleu[:2]) == pytest.approx(expected)
    assert value("bleu", found.bleu[:2]) != pytest.approx(value("bleu", found.bleu))


def test_signatures_say_how():
    found = score_texts(ANSWERS, REFERENCES, WITHOUT)
    assert "tok:13a" in found.signatures["bleu"]
    assert "version:" in found.signatures["chrf"]
    assert found.signatures["meteor"].endswith("synonyms:none")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # The examples in the documentation of nltk.translate.meteor_score.
        (
            "It is a guide to action which ensures that the military always obeys the commands of "
            "the party",
            "It is a guide to action that ensures that the military will forever heed Party "
            "commands",
            0.6944,
        ),
        ("this is a cat", "non matching hypothesis", 0.0),
        ("the doctor bought a car", "the physician purchased an automobile", 0.1),
        ("", "something", 0.0),
    ],
)
def test_meteor_without_synonyms(answer, reference, expected):
    assert meteor(answer, reference, WITHOUT) == pytest.approx(expected, abs=5e-5)


def test_meteor_counts_synonyms():
    known = Synonyms("tiny", TinyWordNet())
    found = meteor("the doctor bought a car", "the physician purchased an automobile", known)
    # What nltk gives with WordNet 3.0.
    assert found == pytest.approx(0.375)


def test_rouge_l_is_the_longest_common_subsequence():
    found = score_texts(["a b c d"], ["a c d e"], WITHOUT)
    assert found.rouge_l == [pytest.approx(0.75)]
    assert score_texts(["it helps"], ["it helped"], WITHOUT).rouge_l == [1.0]
    # Precision 1, recall 1/2.
    assert score_texts(["a b"], ["a b c d"], WITHOUT).rouge_l == [pytest.approx(2 / 3)]


def test_doing_without_wordnet_is_said(monkeypatch, caplog):
    monkeypatch.setattr(text_metrics, "_installed", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_synonyms() is WITHOUT
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gradsift.evaluation.text_metrics", "WARNING")
    assert "without synonyms" in record.message


def test_a_failed_download_is_not_fatal(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(text_metrics, "_installed", lambda: False)
    monkeypatch.setattr(text_metrics.nltk, "download", no_network)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert find_synonyms() is WITHOUT


def value(name, items):
    import numpy as np

    items = np.array(items, float)
    return replicate(METRICS[name], {"a": items}, {"a": np.ones((2, len(items)))}).value
