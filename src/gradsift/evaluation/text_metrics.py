"""Answers beside references: BLEU, METEOR, ROUGE-L and chrF, item by item.

METEOR takes its synonyms from WordNet: what is installed, else what nltk downloads, else none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
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
from sacrebleu.metrics import BLEU, CHRF

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


def find_synonyms() -> Synonyms:
    """Find WordNet where nltk looks for it; else download it, if there is a network."""
    cache = str(Path(user_cache_dir("gradsift")) / "nltk_data")
    if cache not in nltk.data.path:
        nltk.data.path.append(cache)
    if _installed() or (_may_download() and _download(cache)):
        return Synonyms(f"WordNet-{wordnet.get_version()}", wordnet)
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
        meteor: METEOR of each item, 0 to 1.
        rouge_l: ROUGE-L F-measure of each item, 0 to 1.
        signatures: How each metric was computed.
    """

    bleu: list[list[int]]
    chrf: list[list[int]]
    meteor: list[float]
    rouge_l: list[float]
    signatures: dict[str, str]


def score_texts(
    answers: Sequence[str], references: Sequence[str], synonyms: Synonyms
) -> TextScores:
    """Compare answers with references, one of each for an item."""
    bleu, chrf = BLEU(), CHRF()
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = list(zip(answers, references, strict=True))
    return TextScores(
        bleu=_counts(bleu, answers, references),
        chrf=_counts(chrf, answers, references),
        meteor=[meteor(answer, reference, synonyms) for answer, reference in pairs],
        rouge_l=[rouge.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs],
        signatures={
            "bleu": _signature(bleu, answers, references),
            "chrf": _signature(chrf, answers, references),
            "meteor": f"nltk:{version('nltk')}|tok:wordpunct|synonyms:{synonyms.name}",
            "rouge_l": f"rouge-score:{version('rouge-score')}|stemmer:porter",
        },
    )


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


def _signature(metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[str]) -> str:
    metric.corpus_score(list(answers), [list(references)])
    return str(metric.get_signature())
