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
from gradsift.reporting.charts import Chart
from gradsift.reporting.groups import names_of_groups
from gradsift.reporting.row_charts import row_charts
from gradsift.reporting.rows import Rows
from gradsift.reporting.run_charts import comparison_of, curve_chart, overlap_chart
from gradsift.reporting.wording import n_rows, percent
from gradsift.run_folder import Run
from gradsift.schema import migrated, validated
from gradsift.selection.strategies.catalogue import STRATEGIES

# Mean losses nearer to each other than this part are called alike.
_ALIKE = 0.05
_HARDEST = 0.1


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
        details: What is behind it.
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
    return validated(SelectionConfig, known)


def _decision(rows: Rows) -> str:
    n_kept = int(rows.kept_N.sum())
    kept = f"{n_kept:,} of {n_rows(len(rows))} kept ({percent(n_kept / len(rows))})"
    loss = _pair(rows, "loss")
    if loss is None:
        return f"{kept}."
    pool, subset = loss
    if abs(subset - pool) < _ALIKE * pool:
        return f"{kept}: about as hard for this model as the pool."
    easier = "easier" if subset < pool else "harder"
    return f"{kept}: rows that are {easier} for this model than the pool."


def _details(rows: Rows, config: SelectionConfig) -> list[str]:
    details, n_dropped = [], int(rows.dropped_N.sum())
    loss, hardest = _pair(rows, "loss"), _pair(rows, "high_loss_share")
    if loss is not None and hardest is not None:
        hard = "none" if hardest[1] == 0 else percent(hardest[1])
        details.append(
            f"Mean loss {loss[1]:.2f}, pool {loss[0]:.2f}; {hard} of them among the pool's hardest "
            "tenth."
        )
    how = f"Strategy {config.strategy}: {STRATEGIES[config.strategy].summary}"
    score = f" (score {config.score})" if config.strategy == "grads" else ""
    gate = ", after the gate had dropped rows that it calls faulty" if config.gate else ""
    details.append(f"{how}{score}, budget {rows.summary.get('budget')}{gate}.")
    if n_dropped:
        details.append(f"{n_rows(n_dropped)} dropped: unusable, or called faulty.")
    return details


def _pair(rows: Rows, key: str) -> tuple[float, float] | None:
    """Return a figure of (pool, subset) from the summary's audit, if it is there."""
    found = (rows.summary.get("audit") or {}).get(key) or {}
    pair = found.get("pool"), found.get("subset")
    return pair if all(isinstance(one, int | float) for one in pair) else None


def _figures(run: Run, rows: Rows) -> list[Figure]:
    figures = [Figure("rows", f"{int(rows.kept_N.sum()):,}", f"{len(rows):,}")]
    n_tokens, in_all = rows.summary.get("n_tokens"), pc.sum(run.pool_table["n_tokens"]).as_py()
    if isinstance(n_tokens, int) and in_all:
        figures.append(Figure("tokens", f"{n_tokens:,}", f"{in_all:,}"))
    for name, key, form in (
        ("mean loss", "loss", "{:.2f}"),
        ("among the hardest tenth", "high_loss_share", None),
        ("median answer, tokens", "response_tokens", "{:.0f}"),
        ("repeats of other rows", "duplicate_share", None),
    ):
        pair = _pair(rows, key)
        if pair is not None:
            pool, kept = (percent(one) if form is None else form.format(one) for one in pair)
            figures.append(Figure(name, kept, pool))
    cluster_N = rows.numbers("cluster")
    there_N = np.isfinite(cluster_N)
    if there_N.any():
        kept, pool = (len(np.unique(cluster_N[n])) for n in (there_N & rows.kept_N, there_N))
        figures.append(Figure("groups of content", str(kept), str(pool)))
    return figures


def _examples(rows: Rows) -> tuple[Examples, Examples]:
    """Return the first, middle and last of the kept rows, and of the others by how near to it."""
    rank_N = rows.numbers("rank")
    kept_R = np.flatnonzero(rows.kept_N)
    kept_R = kept_R[np.argsort(rank_N[kept_R], kind="stable")]
    others_R = np.flatnonzero(~rows.kept_N & ~rows.dropped_N)
    value_R = rows.value_N[others_R]
    if np.isfinite(value_R).any() and len(kept_R):
        distance_R = np.abs(value_R - rows.value_N[kept_R[-1]])
        others_R = others_R[np.argsort(distance_R, kind="stable")]
        title = "Not kept: nearest to the cut, in the middle, farthest"
    else:
        title = "Not kept: three of them"
    return (
        Examples("Kept: the first, the middle and the last taken", _ends_and_middle(kept_R)),
        Examples(title, _ends_and_middle(others_R)),
    )


def _ends_and_middle(rows_R: np.ndarray) -> list[int]:
    if len(rows_R) == 0:
        return []
    return list(dict.fromkeys(rows_R[[0, len(rows_R) // 2, -1]].tolist()))
