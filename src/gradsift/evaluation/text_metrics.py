"""Answers beside references: BLEU, METEOR, ROUGE-L and chrF, item by item.

What counts as a word depends on the language of the reference. METEOR is for English, and takes its
synonyms from WordNet: what is installed, else what nltk downloads, else none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nltk
from nltk.corpus import wordnet
from nltk.corpus.reader import WordNetCorpusReader
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from platformdirs import user_cache_dir
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from gradsift.data.language import (
    ENGLISH,
    NO_LANGUAGE,
    TOO_SHORT,
    WITHOUT_SPACES,
    is_without_spaces,
    languages_of,
)

# sacrebleu's tokenizers for languages that its usual one is not for: the first that is installed.
_PIECES = "flores200"
_TOKENIZERS = {
    **dict.fromkeys(WITHOUT_SPACES, (_PIECES, "char")),
    "zh": ("zh",),
    "ja": ("ja-mecab", _PIECES, "char"),
    "ko": ("ko-mecab", _PIECES, "char"),
}

logger = logging.getLogger(__name__)


class _NoWordNet:
    """Knows no synonyms, as nltk's METEOR asks for them."""

    def synsets(self, word: str) -> list[Any]:
        return []


@dataclass(frozen=True)
class Synonyms:
    """Where METEOR looks synonyms up.

    Attributes:
        name: Of the source and its version, for METEOR's signature.
        wordnet: nltk's reader, or what has its `synsets`.
    """

    name: str
    wordnet: Any


WITHOUT = Synonyms("none", _NoWordNet())


def find_synonyms(*, needed: bool = True) -> Synonyms:
    """Find WordNet where nltk looks for it; else, if needed, download it if there is a network."""
    cache = str(Path(user_cache_dir("gradsift")) / "nltk_data")
    if cache not in nltk.data.path:
        nltk.data.path.append(cache)
    if _installed() or (needed and _may_download() and _download(cache)):
        return Synonyms(f"WordNet-{wordnet.get_version()}", wordnet)
    if needed:
        logger.warning(
            "METEOR without synonyms: WordNet is neither installed nor can it be downloaded "
            "(python -m nltk.downloader wordnet, or NLTK_DATA=FOLDER with corpora/wordnet)"
        )
    return WITHOUT


def _installed() -> bool:
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return isinstance(wordnet, WordNetCorpusReader)


def _may_download() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0")


def _download(folder: str) -> bool:
    # Answers False, or raises, where there is no network; what it prints is said in our words.
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            done = nltk.download("wordnet", download_dir=folder, quiet=True)
    except (OSError, ValueError):
        return False
    return bool(done) and _installed()


@dataclass(frozen=True)
class TextScores:
    """What is known of each answer; from it the metrics of any set of items can be computed.

    Attributes:
        bleu: sacrebleu's counts: length of answer and reference, n-grams found, n-grams in all.
        chrf: sacrebleu's counts of character n-grams.
        meteor: METEOR of each item, 0 to 1; NaN where the reference is not in English.
        rouge_l: ROUGE-L F-measure of each item, 0 to 1.
        languages: Of each reference.
        signatures: How each metric was computed; without METEOR if no reference is in English.
    """

    bleu: list[list[int]]
    chrf: list[list[int]]
    meteor: list[float]
    rouge_l: list[float]
    languages: list[str]
    signatures: dict[str, str]


def score_texts(
    answers: Sequence[str], references: Sequence[str], synonyms: Synonyms
) -> TextScores:
    """Compare answers with references, one of each for an item."""
    languages = languages_of(references)
    bleu_of, rouge_of = _bleus_of(languages), _rouges_of(languages, references)
    bleu: list[list[int]] = [[]] * len(languages)
    for language, metric in bleu_of.items():
        positions = [at for at, other in enumerate(languages) if other == language]
        counts = _counts(
            metric, [answers[at] for at in positions], [references[at] for at in positions]
        )
        for at, item in zip(positions, counts, strict=True):
            bleu[at] = item
    items = list(zip(answers, references, languages, strict=True))
    return TextScores(
        bleu=bleu,
        chrf=_counts(CHRF(), answers, references),
        meteor=[
            meteor(answer, reference, synonyms) if is_english(language) else math.nan
            for answer, reference, language in items
        ],
        rouge_l=[
            rouge.score(reference, answer)["rougeL"].fmeasure
            for answer, reference, (_, rouge) in zip(answers, references, rouge_of, strict=True)
        ],
        languages=languages,
        signatures=_signatures(languages, bleu_of, rouge_of, synonyms),
    )


def signatures_of(references: Sequence[str], synonyms: Synonyms) -> dict[str, str]:
    """Say how answers to these references would be scored here and now, as `score_texts` does."""
    languages = languages_of(references)
    rouge_of = _rouges_of(languages, references)
    return _signatures(languages, _bleus_of(languages), rouge_of, synonyms)


def is_english(language: str) -> bool:
    """Return whether METEOR and the usual ROUGE-L are for a language of `languages_of`."""
    # A handful of short words in Latin letters may be English, and was always scored as that.
    # Of code and JSON some are said to be in no language; words are cut as for English.
    return language in (ENGLISH, TOO_SHORT, NO_LANGUAGE)


def measures_meteor(languages: Sequence[str]) -> bool:
    """Return whether METEOR says enough of references in these languages to be shown at all."""
    n_english = sum(map(is_english, languages))
    return n_english > 0 and len(languages) <= 2 * n_english


def _bleus_of(languages: Sequence[str]) -> dict[str, BLEU]:
    return {one: _bleu_for(one) for one in sorted(set(languages))}


def _bleu_for(language: str) -> BLEU:
    for name in _TOKENIZERS.get(language, ()):
        # sacrebleu would download it.
        if name == _PIECES and not _has_pieces():
            continue
        # What it raises without MeCab, with another dictionary, and without sentencepiece.
        with contextlib.suppress(RuntimeError, AssertionError, ImportError, OSError):
            return BLEU(tokenize=name)
    return BLEU()


def _has_pieces() -> bool:
    return Path(SACREBLEU_DIR, "models", Path(SPM_MODELS[_PIECES]["url"]).name).is_file()


def _rouges_of(
    languages: Sequence[str], references: Sequence[str]
) -> list[tuple[str, RougeScorer]]:
    """Return each reference's ROUGE-L: how its words are found, and the scorer.

    That is the first way to find any: rouge-score's own knows no letter or digit beyond ASCII, and
    emoji are no words at all.
    """
    ways_of = {one: _rouge_ways(one) for one in set(languages)}
    found = []
    for language, reference in zip(languages, references, strict=True):
        ways = ways_of[language]
        name, tokenizer = next((way for way in ways if way[1].tokenize(reference)), ways[0])
        found.append((name, RougeScorer(["rougeL"], tokenizer=tokenizer)))
    return found


def _rouge_ways(language: str) -> list[tuple[str, Tokenizer]]:
    by_character = language in WITHOUT_SPACES
    own = [("stemmer:porter", DefaultTokenizer(use_stemmer=True))] if is_english(language) else []
    words = _Words(by_character=by_character)
    return [*own, ("tok:character" if by_character else "tok:word", words), ("tok:sign", _Signs())]


class _Signs(Tokenizer):
    """Each character, where a text has no words."""

    def tokenize(self, text: str) -> list[str]:
        return list("".join(text.split()))


class _Words(Tokenizer):
    """Words of any script, where rouge-score's own tokenizer knows a to z and 0 to 9 alone.

    `by_character` makes each character a word whose script has no spaces.
    """

    def __init__(self, *, by_character: bool):
        self.by_character = by_character

    def tokenize(self, text: str) -> list[str]:
        return "".join(map(self._spaced, text.lower())).split()

    def _spaced(self, character: str) -> str:
        # Letters, their marks (vowels of many scripts), and numbers.
        if unicodedata.category(character)[0] not in "LMN":
            return " "
        return f" {character} " if self.by_character and is_without_spaces(character) else character


def _signatures(
    languages: Sequence[str],
    bleu_of: dict[str, BLEU],
    rouge_of: Sequence[tuple[str, RougeScorer]],
    synonyms: Synonyms,
) -> dict[str, str]:
    package = f"rouge-score:{version('rouge-score')}"
    bleu = {language: _signature(metric) for language, metric in bleu_of.items()}
    found = {
        "bleu": _each([bleu[language] for language in languages]),
        "chrf": _signature(CHRF()),
        "rouge_l": _each([f"{package}|{way}" for way, _ in rouge_of]),
    }
    n_english = sum(map(is_english, languages))
    if n_english:
        made = f"nltk:{version('nltk')}|tok:wordpunct|synonyms:{synonyms.name}"
        part = "" if n_english == len(languages) else f" ({n_english} of {len(languages)} answers)"
        found["meteor"] = made + part
    return found


def _each(signatures: Sequence[str]) -> str:
    counts = Counter(signatures).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return " + ".join(f"{signature} ({n} of {len(signatures)} answers)" for signature, n in counts)


def meteor(answer: str, reference: str, synonyms: Synonyms) -> float:
    """Return METEOR with nltk's usual parameters, 0 to 1; 0 for an empty answer."""
    answer_words, reference_words = wordpunct_tokenize(answer), wordpunct_tokenize(reference)
    if not answer_words or not reference_words:
        return 0.0
    return single_meteor_score(reference_words, answer_words, wordnet=synonyms.wordnet)


def _counts(
    metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[str]
) -> list[list[int]]:
    # sacrebleu's own significance test resamples these; a canary test pins the name.
    return metric._extract_corpus_statistics(list(answers), [list(references)])


def _signature(metric: BLEU | CHRF) -> str:
    # Only known after something was scored, one reference for each answer.
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
