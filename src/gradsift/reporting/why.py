"""Reasons of single rows, taken together: how many rows were kept, or not, for the same one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_HEAD = re.compile(r"^(?:kept(?: \(rank \d+ of \d+\))?(?: to fill the budget)?|not kept|dropped): ")
# What is said of one row alone: its nearest row, numbers, what follows on a comma.
_ROW = re.compile(r"\bkept row .*", re.DOTALL)
_CUT = re.compile(r" \(|; |, |: | above that of ")
_NUMBER = re.compile(r" -?[\d.]+(?:e-?\d+)?\b| nan\b")
_LAST_KEPT = ", last kept row "


def kinds_of(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Count reasons that differ only in their numbers and rows: the most frequent first."""
    counts = Counter(map(kind_of, reasons))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def kind_of(reason: str) -> str:
    """Return the first clause of a reason, without what is of one row alone."""
    said = _HEAD.sub("", reason, count=1)
    if reason.startswith("dropped: "):
        return f"dropped: {said.partition(': ')[0].replace('_', ' ')}"
    if said.endswith((", low first", ", high first")):
        return _NUMBER.sub("", said)
    if _LAST_KEPT in said and said.index(_LAST_KEPT) == _CUT.search(said).start():
        return f"{_NUMBER.sub('', said[: said.index(_LAST_KEPT)])} behind that of the last kept row"
    said = _ROW.sub("a kept row", said) if _CUT.split(said, 1)[0].count("kept row") else said
    return _NUMBER.sub(" …", _CUT.split(said, 1)[0])
