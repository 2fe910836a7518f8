"""decisions.parquet: what became of every row of the input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.data.example import DROP_REASONS, NON_FINITE
from gradsift.selection.candidates import Candidates
from gradsift.selection.selector import DROPPED_BY, Selection


def decision_table(table: pa.Table, selection: Selection) -> pa.Table:
    """Put the decisions in the order of the pool table, dropped rows among them."""
    return decided_on(table, selection.table)


def decided_on(table: pa.Table, decided: Mapping[str, np.ndarray | list]) -> pa.Table:
    """Put what was decided, column → one value for each instance, in the order of a pool table."""
    ids = table["instance_id"].combine_chunks()
    at = pc.index_in(ids, value_set=pa.array(decided["instance_id"], pa.string()))
    chosen = pa.table(
        {
            name: _column(values)
            for name, values in decided.items()
            if name not in ("instance_id", "reason", "selected")
        }
    ).take(at)
    selected = pc.fill_null(pa.array(decided["selected"]).take(at), False)
    no_instance = pc.is_null(at)
    dropped = no_instance
    if DROPPED_BY in chosen.column_names:
        dropped = pc.or_(no_instance, pc.is_valid(chosen[DROPPED_BY].combine_chunks()))
    reason, detail = (
        pc.fill_null(table[name].combine_chunks(), other)
        for name, other in (("reason", NON_FINITE), ("detail", DROP_REASONS[NON_FINITE]))
    )
    why_dropped = pc.binary_join_element_wise("dropped", reason, detail, ": ")
    columns = {
        "row": table["row"],
        "line": table["line"],
        "file": table["file"],
        "instance_id": ids,
        "decision": pc.if_else(dropped, "dropped", pc.if_else(selected, "selected", "rejected")),
        "selected": selected,
        **{name: chosen[name] for name in chosen.column_names},
        "reason": pc.if_else(
            no_instance, why_dropped, pa.array(decided["reason"], pa.string()).take(at)
        ),
    }
    return pa.table(columns)


def with_what_they_say(
    decisions: pa.Table, pool: Candidates, cluster_N: np.ndarray, table: pa.Table, texts: pa.Table
) -> pa.Table:
    """Append what people want to see of the rows beside the decisions.

    Args:
        decisions: As from `decision_table`.
        pool: The instances that could be selected.
        cluster_N: Cluster of content of each of them.
        table: The pool table.
        texts: Of its rows: `own_id`, `prompt`, `response`.
    """
    at = pc.index_in(table["instance_id"].combine_chunks(), value_set=pa.array(pool.ids))
    columns = {
        "loss": pa.array(pool.loss, pa.float64()).take(at),
        # Rows that are no instance for another reason may have some all the same.
        "n_response_tokens": pc.coalesce(
            pa.array(pool.n_response_tokens, pa.int64()).take(at),
            table["n_response_tokens"].combine_chunks().cast(pa.int64()),
        ),
        "cluster": pa.array(cluster_N, pa.int64()).take(at),
        "source": table["source"],
        "language": table["language"],
        "own_id": texts["own_id"],
        "prompt": texts["prompt"],
        "response": texts["response"],
    }
    for name, values in columns.items():
        decisions = decisions.append_column(name, values)
    return decisions


def counts_of(table: pa.Table, decisions: pa.Table) -> dict[str, object]:
    """Count selected + rejected + dropped = input, and the dropped by reason.

    `table` is the pool table, `decisions` what became of the same rows.
    """
    numbers = dict.fromkeys(("selected", "rejected", "dropped"), 0)
    for group in pc.value_counts(decisions["decision"]).to_pylist():
        numbers[group["values"]] = group["counts"]
    reasons = pc.fill_null(table["reason"], NON_FINITE)
    if DROPPED_BY in decisions.column_names:
        reasons = pc.coalesce(decisions[DROPPED_BY], reasons)
    reasons = reasons.filter(pc.equal(decisions["decision"], "dropped"))
    by_reason = {group["values"]: group["counts"] for group in pc.value_counts(reasons).to_pylist()}
    return {"input": table.num_rows, **numbers, "dropped_by_reason": by_reason}


def _column(values: np.ndarray | list) -> pa.Array:
    """Return a column; NaN, rank 0 and None are null."""
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if np.issubdtype(values.dtype, np.integer):
        return pa.array(values, pa.int64(), mask=values == 0)
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def weight_column(decisions: pa.Table) -> pa.Array:
    """Compute a weight for each selected row: its gradient score over the mean of the subset.

    Null for rows that are not selected; `decisions` are as from `decision_table`.
    """
    score, kept = decisions["gradient_score"], decisions["selected"]
    mean = pc.mean(pc.filter(score, kept)).as_py()
    # A subset of scores of 0 is weighted alike.
    weight = pc.divide(score, mean) if mean > 0 else pc.add(pc.multiply(score, 0.0), 1.0)
    return pc.if_else(kept, weight, pa.scalar(None, pa.float64()))
