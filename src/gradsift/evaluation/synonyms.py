"""WordNet for METEOR: what is installed, else what nltk downloads, else none, and that is said."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nltk
from nltk.corpus import wordnet
from nltk.corpus.reader import WordNetCorpusReader
from platformdirs import user_cache_dir

NO_SYNONYMS = "none"


class _NoWordNet:
    """Knows no synonyms, as nltk's METEOR asks for them."""

    def synsets(self, word: str) -> list[Any]:
        return []


@dataclass(frozen=True)
class Synonyms:
    """Where METEOR looks synonyms up.

    Attributes:
        name: Of the source and its version, for METEOR's signature.
        wordnet: An object with `synsets`, as nltk's reader has.
    """

    name: str
    wordnet: Any


WITHOUT = Synonyms(NO_SYNONYMS, _NoWordNet())


def find_synonyms(tell: Callable[[str], None] = lambda line: None) -> Synonyms:
    """Find WordNet where nltk looks for it; else download it, if there is a network.

    Args:
        tell: Called with a line when METEOR has to do without.

    Returns:
        WordNet, or none.
    """
    own = str(Path(user_cache_dir("gradsift")) / "nltk_data")
    if own not in nltk.data.path:
        nltk.data.path.append(own)
    if _installed() or (_may_download() and _download(own)):
        return Synonyms(f"WordNet-{wordnet.get_version()}", wordnet)
    tell(
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
    # Answers False, or raises, where there is no network; what it prints is told in our words.
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            done = nltk.download("wordnet", download_dir=folder, quiet=True)
    except (OSError, ValueError):
        return False
    return bool(done) and _installed()
