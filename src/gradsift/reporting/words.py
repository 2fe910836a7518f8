"""Groups of texts named by the words that tell them from the others."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Letters; of scripts without spaces between words, pairs of characters.
_WORD = re.compile(r"[^\W\d_]{3,30}")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{2,}")
# A word is of a group if so many of its rows have it.
_FEWEST_ROWS = 2
# And if it is so many times as frequent in it as in all texts.
_TELLS = 1.5
# Of a stem only one word is named; what is compared is its beginning.
_STEM = 5
# How strongly a word's share in a group is drawn to its share in all texts, in rows.
_PRIOR = 3.0


def words_in(text: str) -> set[str]:
    """Return the different words of a text, in lower case."""
    text = text.lower()
    found = set(_WORD.findall(_UNSPACED.sub(" ", text)))
    for run in _UNSPACED.findall(text):
        found.update(map("".join, pairwise(run)))
    return found


def telling_words(
    texts: Sequence[str], group_N: np.ndarray, n_words: int = 3
) -> dict[int, tuple[str, ...]]:
    """Return for each group the words that are far more frequent in it than elsewhere.

    By the log-odds of a row having the word, with a prior of all texts, over their standard error
    (Monroe, Colaresi and Quinn, 2008), times how rare the word is in all texts: neither words of a
    few rows nor those that every text has come first, in any language.

    Args:
        texts: N texts.
        group_N: The group of each.
        n_words: At most so many words for a group.
    """
    by_group: dict[int, Counter[str]] = {}
    for text, group in zip(texts, group_N.tolist(), strict=True):
        by_group.setdefault(group, Counter()).update(words_in(text))
    n_rows = Counter(group_N.tolist())
    in_all: Counter[str] = Counter()
    for counts in by_group.values():
        in_all.update(counts)
    n_all = len(texts)
    named = {}
    for group, counts in by_group.items():
        n_here, scored = n_rows[group], []
        for word, here in counts.items():
            if here < _FEWEST_ROWS or here / n_here < _TELLS * in_all[word] / n_all:
                continue
            share = _PRIOR * in_all[word] / n_all
            a, b = here + share, in_all[word] - here + share
            rest_a, rest_b = n_here - here + _PRIOR, n_all - n_here - (in_all[word] - here) + _PRIOR
            odds = math.log(a / rest_a) - math.log(b / rest_b)
            rarity = math.log(n_all / in_all[word])
            scored.append((-rarity * odds / math.sqrt(1 / a + 1 / b), word))
        named[group] = _different([word for _, word in sorted(scored)], n_words)
    return named


def _different(words: list[str], n_words: int) -> tuple[str, ...]:
    stems: dict[str, str] = {}
    for word in words:
        stems.setdefault(word[:_STEM], word)
        if len(stems) == n_words:
            break
    return tuple(stems.values())
