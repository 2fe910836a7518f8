"""Which kind of rows a subset is of, in one plain sentence.

It claims only what a random subset of that size would show less than once in a hundred times, each
claim for itself; of four that is one in 25 sentences with a claim that chance made.

Shapes: N instances of the pool.
"""

from __future__ import annotations

import numpy as np

from gradsift.selection.answers import Answers
from gradsift.selection.candidates import Candidates
from gradsift.selection.chance import (
    RARE,
    RARE_DEVIATIONS_EITHER_SIDE,
    chance_of_so_many,
    deviations,
)
from gradsift.selection.scores import ranks

_TENTH = 0.1
# Smaller differences of the share of repeated words are nobody's concern.
_REPEATS = 0.05


def kind_of_rows(pool: Candidates, selected_S: np.ndarray, answers: Answers | None) -> str:
    """Say how a subset differs from its pool: loss, length of the answers, words of the prompt."""
    selected_N = np.zeros(len(pool), dtype=bool)
    selected_N[selected_S] = True
    if selected_N.all():
        return "every row that could be kept is kept"
    claims = [
        *_loss(pool.loss, selected_N),
        *_length(pool.n_response_tokens, selected_N),
        *_repeats(answers),
    ]
    if not claims:
        rows = "row is" if len(selected_S) == 1 else "rows are"
        return (
            f"the kept {rows} much like the pool: chance alone makes as large differences in loss "
            "and in the answers' length"
        )
    *first, last = claims
    return f"the kept rows are {', '.join(first)}{' and ' * bool(first)}{last}"


def _loss(loss_N: np.ndarray, selected_N: np.ndarray) -> list[str]:
    # Of ranks: one row of an enormous loss is no kind of rows.
    above = deviations(ranks(loss_N), selected_N)
    hardest_N = loss_N >= np.quantile(loss_N, 1 - _TENTH)
    n, n_hard = int(selected_N.sum()), int((hardest_N & selected_N).sum())
    all_hard, n_rows = int(hardest_N.sum()), len(loss_N)
    few = chance_of_so_many(n - n_hard, n, n_rows - all_hard, n_rows) < RARE
    many = chance_of_so_many(n_hard, n, all_hard, n_rows) < RARE
    tail = ""
    if few or many:
        tail = (
            "none of the hardest tenth"
            if n_hard == 0
            else f"{100 * n_hard / n:.0f} % from the hardest tenth"
        )
    if abs(above) > RARE_DEVIATIONS_EITHER_SIDE:
        # As ranks do, a median passes over how far out a row is.
        median, of_pool = np.median(loss_N[selected_N]), np.median(loss_N)
        word = "easier" if above < 0 else "harder"
        return [
            f"{word} than the pool (median loss {median:.2f} against {of_pool:.2f}"
            + f"; {tail}" * bool(tail)
            + ")"
        ]
    if tail:
        return [f"like the pool in loss, but for its hardest tenth ({tail})"]
    return []


def _length(tokens_N: np.ndarray, selected_N: np.ndarray) -> list[str]:
    above = deviations(ranks(tokens_N), selected_N)
    if abs(above) <= RARE_DEVIATIONS_EITHER_SIDE:
        return []
    median, of_pool = np.median(tokens_N[selected_N]), np.median(tokens_N)
    word = "longer" if above > 0 else "shorter"
    return [f"{word} in the answer (median {median:.0f} tokens against {of_pool:.0f})"]


def _repeats(answers: Answers | None) -> list[str]:
    if answers is None or answers.repeats is None:
        return []
    pool, subset = answers.repeats
    far = abs(answers.repeats_deviations) > RARE_DEVIATIONS_EITHER_SIDE
    if not far or abs(subset - pool) < _REPEATS:
        return []
    word = "nearer to" if subset > pool else "farther from"
    return [
        f"{word} the prompt's words ({100 * subset:.0f} % of a last answer stands in it, against "
        f"{100 * pool:.0f} %)"
    ]
