"""Charts of what lies in a run folder beside the selection: its curve, others, a comparison.

Shapes: K selections.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.decided import CURVE, SELECTIONS
from gradsift.reporting import charts, comparison_charts
from gradsift.reporting.charts import Chart
from gradsift.reporting.rows import Rows, kept_ids, selection_names
from gradsift.reporting.wording import percent
from gradsift.run_folder import Run
from gradsift.seals import DamagedError, read_json, read_parquet

logger = logging.getLogger(__name__)

MOST_SELECTIONS = 10


def curve_chart(run: Run, rows: Rows) -> Chart | None:
    """Draw what each further row adds; None for a budget that was not found by that."""
    path = run.folder / SELECTIONS / rows.name / CURVE
    if not path.exists() or str(rows.summary.get("budget")) != "auto":
        return None
    try:
        gain_S = read_parquet(path, ["marginal_gain"])["marginal_gain"].to_numpy()
    except DamagedError as error:
        logger.warning(f"the curve is left out: {error.found}")
        return None
    n_kept = int(rows.kept_N.sum())
    title = f"The budget ends after {n_kept:,} rows, where the next ones add little"
    note = 'What each further row adds, the most useful first; the budget "auto" stops at the bend.'
    return Chart("curve", title, note, (charts.gain_curve(gain_S, n_kept),))


def overlap_chart(run: Run, rows: Rows) -> Chart | None:
    """Draw how many rows the newest selections of a run share; None if there is one only."""
    names = [name for name in selection_names(run) if name != rows.name][-MOST_SELECTIONS + 1 :]
    kept = {rows.name: set(rows.table.filter(rows.table["selected"])["instance_id"].to_pylist())}
    for name in reversed(names):
        try:
            kept[name] = kept_ids(run, name)
        except DamagedError as error:
            logger.warning(f"left out of the overlap: {error.found}")
    if len(kept) < 2:
        return None
    sets = list(kept.values())
    overlap_KK = np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])
    share = len(sets[0]) / len(rows)
    nearest = max(range(1, len(sets)), key=lambda at: overlap_KK[0, at])
    title = (
        f"This selection shares most with {list(kept)[nearest]}: "
        f"{percent(overlap_KK[0, nearest])} of the rows in either"
    )
    note = (
        f"Rows in both, of those in either, for the selections of this run. Two random draws of "
        f"{percent(share)} would share {percent(share / (2 - share))}."
    )
    return Chart("overlap", title, note, (charts.heatmap(list(kept), overlap_KK),))


def comparison_of(run: Run) -> tuple[list[Chart], list[str]]:
    """Return the charts and the sentences of the newest comparison in the run folder."""
    for path in sorted(
        filter(Path.is_file, run.folder.glob("*.json")), key=lambda path: -path.stat().st_mtime
    ):
        try:
            found = read_json(path)
        except DamagedError:
            continue
        if "verdicts" not in found or "arms" not in found:
            continue
        try:
            return _comparison_charts(found["arms"]), [
                *(str(verdict["sentence"]) for verdict in found["verdicts"]),
                *(f"note: {note}" for note in found.get("notes", ())),
            ]
        except (TypeError, AttributeError, ValueError, LookupError, StopIteration) as error:
            logger.warning(f"{path}: left out, it is no comparison ({type(error).__name__})")
    return [], []


def _comparison_charts(arms: Mapping[str, Any]) -> list[Chart]:
    found = []
    plane = comparison_charts.learning_against_forgetting(arms)
    if plane is not None:
        found.append(Chart(
            "learning-forgetting", "What was learnt, and what was forgotten",
            "Each arm is trained on its own rows; lines are 95 % intervals.", (plane,),
        ))  # fmt: skip
    panels = comparison_charts.arms_by_metric(arms)
    found.append(Chart("arms", "Each arm by each metric", "Lines are 95 % intervals; where they "
                       "overlap much, this comparison cannot tell.", tuple(panels)))  # fmt: skip
    return found
