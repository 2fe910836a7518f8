"""What would have to change, tried by changing it."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from gradsift.config import SelectionConfig
from gradsift.selection.constraints import Constraints, parse_budget
from gradsift.selection.counterfactuals import counterfactual
from gradsift.selection.decisions import decision_table
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.objective import Objective
from gradsift.selection.selector import select_rows
from pools import N, context_for, make_pool


def selected(budget="20", context=None, **changes):
    """The selection, its decisions, and what is said of each row."""
    pool = make_pool()
    config = SelectionConfig(**changes)
    context = context_for(pool) if context is None else context
    selection = select_rows(pool, parse_budget(budget), config, context)
    empty = pa.nulls(N, pa.string())
    rows = pa.array(range(N))
    names = ["row", "line", "file", "instance_id", "reason", "detail"]
    table = pa.table([rows, rows, empty, pa.array(pool.ids), empty, empty], names=names)
    decisions = decision_table(table, selection)
    scale = selection.scale
    texts = [
        counterfactual(
            decision,
            decisions,
            strategy=config.strategy,
            by_tokens=False,
            gain_per_score=0.0 if not (scale and scale.gradient) else config.alpha / scale.gradient,
            has_quota=bool(config.quota),
        )
        for decision in decisions.to_pylist()
    ]
    return selection, texts


def chosen_with(selection, row, score):
    """The rows that are chosen if one row has another score."""
    pool, config = make_pool(), selection.config
    score_N = selection.signal.score_N.copy()
    score_N[row] = score
    objective = Objective(
        score_N,
        context_for(pool).neighbours,
        config.alpha,
        config.beta,
        config.gamma,
        config.similarity_threshold,
        selection.scale,
    )
    constraints = Constraints(pool.n_tokens, selection.resolved_budget)
    return set(lazy_greedy(objective, constraints)[0].tolist())


def test_with_the_score_that_is_said_a_rejected_row_is_kept():
    selection, texts = selected()
    n_tried = 0
    for row in set(range(N)) - set(selection.rows_S.tolist()):
        match = re.match(r"would be kept with a gradient score above (\S+) \(has", texts[row])
        if match is not None:
            assert row in chosen_with(selection, row, float(match[1]) + 1e-3)
            n_tried += 1
        elif selection.table["similarity_penalty"][row] == 0:
            assert texts[row] == "no gradient score would be enough"
            assert row not in chosen_with(selection, row, selection.signal.score_N[row])
    assert n_tried > 10


def test_by_the_score_alone_the_cut_is_said_to_the_digit():
    selection, texts = selected(beta=0.0, gamma=0.0)
    n_tried = 0
    for row in selection.rows_S.tolist():
        match = re.match(r"would be left out with a gradient score below about (\S+) ", texts[row])
        assert match is not None
        assert row in chosen_with(selection, row, float(match[1]) + 1e-3)
        assert row not in chosen_with(selection, row, float(match[1]) - 1e-3)
        n_tried += 1
    assert n_tried == 20


def test_other_strategies_are_told_by_their_measure():
    selection, texts = selected(strategy="loss-high")
    loss = make_pool().loss
    kept = loss[selection.rows_S]
    row = int(np.argmin(loss))
    expected = f"kept rows have {kept.min():.4g} to {kept.max():.4g}, this one {loss[row]:.4g}"
    assert texts[row] == expected
    assert texts[int(selection.rows_S[0])] is None


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"strategy": "random"}])
def test_where_no_number_decides_nothing_is_said(changes):
    assert set(selected(**changes)[1]) == {None}


def test_of_rows_that_a_list_or_a_quota_kept_out_nothing_is_said():
    context, ids = context_for(make_pool()), make_pool().ids
    assert set(selected(budget="2", context=replace(context, keep=ids[:2]))[1]) == {None}
    selection, texts = selected(context=replace(context, keep=ids[:1], drop=ids[1:30]))
    by_list = [reason.endswith(("to keep", "to drop")) for reason in selection.table["reason"]]
    assert by_list == [True] * 30 + [False] * 30
    assert [text is None for text in texts] == by_list
    # Rivals are those that could be taken: below the score that is said, one of them is.
    for strategy in ("grads", "loss-high"):
        selection, texts = selected(strategy=strategy, quota={"book": 2})
        spent = ["the quota of source" in reason for reason in selection.table["reason"]]
        assert any(spent)
        assert not any(text for text, is_spent in zip(texts, spent, strict=True) if is_spent)
    assert set(selected(quota={"book": 2})[1]) == {None}
