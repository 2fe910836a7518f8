"""What would have to change for the other decision, in words.

A row's gain falls or rises with its gradient score by α / R_g (see `Objective`); the rest of the
gain stays, so the score at which it would cross the cut follows. (What the score could gain, R_g,
would move a little with the score of one row; that is left aside.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gradsift.selection.reasons import NOT_BY_WORTH
from gradsift.selection.strategies.catalogue import STRATEGIES


def counterfactual(
    decision: Mapping[str, Any],
    decisions: pa.Table,
    *,
    strategy: str,
    by_tokens: bool,
    gain_per_score: float,
    has_quota: bool = False,
) -> str | None:
    """Say what would have to change for the other decision on a row that was not dropped.

    `decision` is its line of `decisions`, which are as from `decision_table`; `gain_per_score` is
    what a gradient score of 1 adds to the objective. None where nothing can be said from these
    numbers: where a list decided, or a quota that makes rows of a source stand against each other.
    """
    if decision["reason"].startswith(NOT_BY_WORTH):
        return None
    if by_tokens or not STRATEGIES[strategy].uses_coefficients:
        return _by_measure(decision, decisions)
    if has_quota or gain_per_score == 0 or decision["marginal_gain"] is None:
        return None
    if decision["selected"]:
        return _to_be_rejected(decision, decisions, gain_per_score)
    return _to_be_kept(decision, decisions, gain_per_score)


def _to_be_kept(decision: Mapping[str, Any], decisions: pa.Table, gain_per_score: float) -> str:
    last_rank = pc.max(decisions["rank"])
    cut = decisions.filter(pc.equal(decisions["rank"], last_rank))["marginal_gain"][0].as_py()
    score, gain = decision["gradient_score"], decision["marginal_gain"]
    needed = score + (cut - gain) / gain_per_score
    if needed <= 1:
        text = f"would be kept with a gradient score above {needed:.3f} (has {score:.3f})"
    else:
        text = "no gradient score would be enough"
    without_penalty = gain + decision["similarity_penalty"]
    if decision["similarity_penalty"] > 0 and without_penalty > cut:
        text += "; or without the near-duplicates that are kept"
    return text


def _to_be_rejected(
    decision: Mapping[str, Any], decisions: pa.Table, gain_per_score: float
) -> str | None:
    rejected = decisions.filter(pc.equal(decisions["decision"], "rejected"))
    # What is on the user's list is no rival.
    by_list = [one.startswith(NOT_BY_WORTH) for one in rejected["reason"].to_pylist()]
    rejected = rejected.filter(pc.invert(pa.array(by_list, pa.bool_())))
    if rejected.num_rows == 0:
        return None
    best_rejected = pc.max(rejected["marginal_gain"]).as_py()
    score = decision["gradient_score"]
    allowed = score - (decision["marginal_gain"] - best_rejected) / gain_per_score
    if allowed <= 0:
        return "would be kept with any gradient score"
    return f"would be left out with a gradient score below about {allowed:.3f} (has {score:.3f})"


def _by_measure(decision: Mapping[str, Any], decisions: pa.Table) -> str | None:
    if decision["measure"] is None or decision["selected"]:
        return None
    kept = decisions.filter(pc.equal(decisions["decision"], "selected"))["measure"]
    low, high = pc.min(kept).as_py(), pc.max(kept).as_py()
    if low is None:
        return None
    return f"kept rows have {low:.4g} to {high:.4g}, this one {decision['measure']:.4g}"
