"""What a page tells of a selection: the decision, the figures beside the pool, and its charts.

Shapes: N rows of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gradsift.config import SelectionConfig
from gradsift.decided import SUMMARY
from gradsift.reporting.charts import Chart
from gradsift.reporting.groups import names_of_groups
from gradsift.reporting.row_charts import row_charts
from gradsift.reporting.rows import Rows
from gradsift.reporting.run_charts import comparison_of, curve_chart, overlap_chart
from gradsift.reporting.wording import n_rows, percent
from gradsift.run_folder import Run
from gradsift.schema import migrated, validated
from gradsift.selection.strategies.catalogue import STRATEGIES, uses_score


@dataclass(frozen=True)
class Figure:
    """A number of the kept rows beside that of the pool, both as they are shown."""

    name: str
    kept: str
    pool: str


@dataclass(frozen=True)
class Examples:
    """Rows to show first, by their positions, and which they are."""

    title: str
    rows: Sequence[int]


@dataclass(frozen=True)
class Story:
    """What stands above the table.

    Attributes:
        decision: In one sentence.
        kind: Which kind of rows were kept, in a sentence; "" where that is not known.
        details: How they were chosen, in sentences.
        warnings: What ought to worry the user.
        figures: Kept rows beside the pool.
        kept: A few of the kept rows.
        rejected: A few of the others.
        charts: In the order shown.
        comparison: Charts of what models learnt, if there is a comparison.
        verdicts: Its sentences.
        group_names: What the groups of content are called.
    """

    decision: str
    kind: str
    details: Sequence[str]
    warnings: Sequence[str]
    figures: Sequence[Figure]
    kept: Examples
    rejected: Examples
    charts: Sequence[Chart]
    comparison: Sequence[Chart]
    verdicts: Sequence[str]
    group_names: Mapping[int, str]


def story_of(run: Run, rows: Rows) -> Story:
    """Tell a selection, from its rows and from what else lies in the run folder."""
    config = settings_of(rows.summary)
    group_names = names_of_groups(rows)
    comparison, verdicts = comparison_of(run)
    more = [chart for chart in (curve_chart(run, rows), overlap_chart(run, rows)) if chart]
    kept, rejected = _examples(rows)
    return Story(
        decision=_decision(rows),
        kind=_kind(rows),
        details=_details(rows, config),
        warnings=list(rows.summary.get("warnings") or ()),
        figures=_figures(run, rows),
        kept=kept,
        rejected=rejected,
        charts=[*row_charts(run, rows, config, group_names), *more],
        comparison=comparison,
        verdicts=verdicts,
        group_names=group_names,
    )


def settings_of(summary: Mapping[str, Any]) -> SelectionConfig:
    """Return the settings of a selection.

    Raises:
        GradsiftError: If they are none.
    """
    settings = migrated(dict(summary.get("settings") or {}))
    known = {k: v for k, v in settings.items() if k in SelectionConfig.model_fields}
    return validated(SelectionConfig, known, SUMMARY)


def _decision(rows: Rows) -> str:
    n_kept = int(rows.kept_N.sum())
    return f"{n_kept:,} of {n_rows(len(rows))} kept ({percent(n_kept / len(rows))})."


def _kind(rows: Rows) -> str:
    # An earlier gradsift noted none.
    kind = rows.summary.get("kind")
    return f"{kind[0].upper()}{kind[1:]}." if isinstance(kind, str) and kind else ""


def _details(rows: Rows, config: SelectionConfig) -> list[str]:
    n_dropped = int(rows.dropped_N.sum())
    how = f"Strategy {config.strategy}: {STRATEGIES[config.strategy].summary}"
    score = f" (score {config.score})" if uses_score(config) else ""
    gate = ", after the gate had dropped rows that it calls faulty" if config.gate else ""
    said = [f"{how}{score}; budget {rows.summary.get('budget')}{gate}."]
    if n_dropped:
        said.append(f"{n_rows(n_dropped)} dropped: unusable, or called faulty.")
    if not config.gate:
        said.append("Whether answers fit their prompts was not asked: gradsift audit does.")
    return said


def _figures(run: Run, rows: Rows) -> list[Figure]:
    kept_N = rows.kept_N
    figures = [Figure("rows", f"{int(kept_N.sum()):,}", f"{len(rows):,}")]
    n_tokens, in_all = rows.summary.get("n_tokens"), pc.sum(run.pool_table["n_tokens"]).as_py()
    if isinstance(n_tokens, int) and in_all:
        figures.append(Figure("tokens", f"{n_tokens:,}", f"{in_all:,}"))
    for name, column, form in (
        ("median loss", "loss", "{:.2f}"),
        ("median answer, tokens", "n_response_tokens", "{:,.0f}"),
    ):
        value_N = rows.numbers(column)
        if np.isfinite(value_N[kept_N]).any():
            kept, pool = (form.format(np.nanmedian(one)) for one in (value_N[kept_N], value_N))
            figures.append(Figure(name, kept, pool))
    for name, kind, key in (
        ("among the hardest tenth", "audit", "high_loss_share"),
        ("last answer's words that stand in its prompt", "answers", "repeats"),
        ("repeats of other rows", "audit", "duplicate_share"),
        ("last answers that refuse or cannot say", "answers", "boilerplate"),
    ):
        found = (rows.summary.get(kind) or {}).get(key) or {}
        pool, kept = found.get("pool"), found.get("subset")
        if isinstance(pool, int | float) and isinstance(kept, int | float):
            figures.append(Figure(name, percent(kept), percent(pool)))
    cluster_N = rows.numbers("cluster")
    there_N = np.isfinite(cluster_N)
    if there_N.any():
        kept, pool = (len(np.unique(cluster_N[n])) for n in (there_N & kept_N, there_N))
        figures.append(Figure("groups of content", str(kept), str(pool)))
    return figures


def _examples(rows: Rows) -> tuple[Examples, Examples]:
    """Return the first, middle and last of the kept rows, and of the others by how near to it."""
    title = "Not kept: nearest to the cut, in the middle, farthest"
    if rows.worth_N is None:
        title = "Not kept: three of them"
    if len(rows.others_in_order) == 0:
        title = "Not kept: no row that could have been"
    return (
        Examples(
            "Kept: the first, the middle and the last taken", _ends_and_middle(rows.kept_in_order)
        ),
        Examples(title, _ends_and_middle(rows.others_in_order)),
    )


def _ends_and_middle(rows_R: np.ndarray) -> list[int]:
    if len(rows_R) == 0:
        return []
    return list(dict.fromkeys(rows_R[[0, len(rows_R) // 2, -1]].tolist()))
