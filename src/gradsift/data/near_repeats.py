"""Which rows nearly say what a row of other rows says: by runs of words that they share.

A row's runs are its question's and its answer's, five words each. Half of them in one other row is
a near repeat: a few words changed, something added or left out, another name in the same sentence.
Runs that many of the rows share (a frame that all prompts stand in) tell nothing and do not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from gradsift.data.answers import words_of
from gradsift.data.example import last_exchange
from gradsift.data.pool import PoolRow

_RUN = 5
_SHARE = 0.5
# Runs in more rows than this (or than this share of them) are a frame.
_FRAME_ROWS, _FRAME_SHARE = 10, 0.01
# A row with fewer runs of its own says too little to be told from others.
_FEWEST_RUNS = 5


def near_repeats(rows: Sequence[PoolRow], others: Sequence[PoolRow]) -> dict[int, int]:
    """Return which rows nearly repeat another: position in `rows` → position in `others`.

    Rows that say the same word for word, or cannot be read, are left out.
    """
    same = {row.content_hash for row in others}
    runs = {
        at: _runs(row)
        for at, row in enumerate(rows)
        if row.example is not None and row.content_hash not in same
    }
    counts = Counter(run for found in runs.values() for run in found)
    most = max(_FRAME_ROWS, _FRAME_SHARE * len(rows))
    by_run: dict[int, list[int]] = defaultdict(list)
    of_own: Counter[int] = Counter()
    for at, found in runs.items():
        for run in found:
            if counts[run] <= most:
                by_run[run].append(at)
                of_own[at] += 1
    repeats: dict[int, int] = {}
    for other_at, other in enumerate(others):
        if other.example is None:
            continue
        shared = Counter(at for run in _runs(other) for at in by_run.get(run, ()))
        for at, n in shared.items():
            if of_own[at] >= _FEWEST_RUNS and n >= _SHARE * of_own[at]:
                repeats.setdefault(at, other_at)
    return dict(sorted(repeats.items()))


def _runs(row: PoolRow) -> set[int]:
    assert row.example is not None
    # A hash of a run takes less room than its words.
    return {
        hash(tuple(words[at : at + _RUN]))
        for text in last_exchange(row.example)
        for words in [list(words_of(text))]
        for at in range(len(words) - _RUN + 1)
    }
