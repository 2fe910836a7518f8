"""Scores as a setting names them: one, or several joined by the lower rank; ranks in clusters.

Scores that are blind to different faults, joined by a sum, let a fault pass that one of them sees
and the other admires. Joined by the lower of their ranks, each has a veto.

Shapes: N instances of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.schema import nearest, renamed_value
from gradsift.selection.candidates import Need
from gradsift.selection.scores import SCORES, ScoredRow, ScoreInput, percentile_rank, ranks

# Between the names of scores that are joined.
JOIN = "+"


def score_parts(config: SelectionConfig) -> list[str]:
    """Return the names of the scores that a setting joins; mostly one."""
    return config.score.split(JOIN)


def require_known_score(config: SelectionConfig, where: str = "") -> None:
    """Refuse a gradient score that there is none of, and one that is named twice."""
    names = score_parts(config)
    for name in names:
        if name not in SCORES:
            today = renamed_value("score", name)
            hint = f"it is now called {today}" if today else nearest(name, SCORES, len(SCORES))
            of_several = f", in which {name!r}" if len(names) > 1 else ", which"
            raise GradsiftError(
                f"{where}`score` is {config.score!r}{of_several} is unknown: {hint}."
            )
        if names.count(name) > 1:
            raise GradsiftError(f"{where}`score` is {config.score!r}, which names {name} twice.")


def needs_of_score(config: SelectionConfig) -> set[Need]:
    """Return what a score needs beyond the statistics."""
    needs = {need for name in score_parts(config) for need in SCORES[name].needs}
    return needs | ({Need.CLUSTERS} if config.rank_within == "cluster" else set())


def score_pool(
    config: SelectionConfig, of_pool: ScoreInput
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the score of each instance, in [0, 1], and the scores that it was joined from.

    Joined is the lowest of an instance's scores, ranked again, so that a joined score is spread
    like any other. Within clusters of content each score is ranked among the rows of a cluster, so
    that a budget takes about the same share of all: where the level of a score is that of the
    subject, the pool's mix would change. There are no parts of a single score of the whole pool.
    """
    parts = {name: SCORES[name].function(of_pool) for name in score_parts(config)}
    if config.rank_within == "cluster":
        assert of_pool.cluster_N is not None
        rank = partial(rank_in_groups, group_N=of_pool.cluster_N)
        parts = {name: rank(score_N) for name, score_N in parts.items()}
    elif len(parts) == 1:
        return next(iter(parts.values())), {}
    else:
        rank = percentile_rank
    return rank(np.min(list(parts.values()), axis=0)), parts


def rank_in_groups(x_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Rank values within each group, scaled to (0, 1): (rank − ½) / rows of the group.

    Of groups of any size, the same share lies above a threshold.
    """
    ranked_N = np.empty(len(x_N))
    for group in np.unique(group_N):
        here_N = group_N == group
        ranked_N[here_N] = (ranks(x_N[here_N]) - 0.5) / here_N.sum()
    return ranked_N


def cuts_tail(config: SelectionConfig) -> bool:
    """Say whether everything outside the typical region comes last."""
    return any(SCORES[name].typical_only for name in score_parts(config))


def words_of(
    config: SelectionConfig,
) -> tuple[Callable[[ScoredRow], str], Callable[[ScoredRow, ScoredRow], str]]:
    """Return what writes why a row's score kept it, and why it was not enough."""
    within = config.rank_within == "cluster"
    names = score_parts(config)
    if len(names) == 1 and not within:
        return SCORES[names[0]].kept_because, SCORES[names[0]].rejected_because
    among = "rows of its cluster" if within else "rows"

    def kept(row: ScoredRow) -> str:
        name, value = _weakest(row.parts)
        least = "" if len(names) == 1 else ", the lowest of its scores"
        return f"{name} above that of {100 * value:.0f} % of the {among}{least}"

    def rejected(row: ScoredRow, last: ScoredRow) -> str:
        (name, value), (others, cut) = _weakest(row.parts), _weakest(last.parts)
        of_last = f"{100 * cut:.0f} %" + (f", {others}" if others != name else "")
        above = f"{name} above that of only {100 * value:.0f} % of the {among}"
        return f"{above} (last kept row {of_last})"

    return kept, rejected


def _weakest(parts: Mapping[str, float]) -> tuple[str, float]:
    return min(parts.items(), key=lambda part: part[1])
