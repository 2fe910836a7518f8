"""What a page tells of a selection: the decision, the figures beside the pool, and its charts.

Shapes: N rows of the input, R rows that are drawn as points.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.report import charts, comparison_charts
from gradsift.report.charts import Chart
from gradsift.report.content_map import plane_of
from gradsift.report.rows import CURVE, SELECTIONS, Rows, kept_ids, selection_names
from gradsift.report.sampling import stratified
from gradsift.report.words import telling_words
from gradsift.run_folder import Run
from gradsift.schema import migrated, validated
from gradsift.seals import DamagedError, read_json, read_parquet
from gradsift.selection.scores import rank_correlation
from gradsift.selection.strategies.catalogue import STRATEGIES, uses_score
from gradsift.wording import short

logger = logging.getLogger(__name__)

# Points of a chart; kept rows are at least this part of them, if there are so many.
MOST_POINTS = 1_500
_KEPT_POINTS = 1 / 3
# Rows whose texts name the groups.
_READ_ROWS = 4_000
_READ_CHARACTERS = 1_500
MOST_GROUPS = 16
_NAMED_ON_MAP = 7
MOST_SELECTIONS = 10
# Rank correlations below this are called none.
_CORRELATED = 0.2
PROMPT_SHOWN = 90


@dataclass(frozen=True)
class Figure:
    """A number of the kept rows beside that of the pool, both as they are shown."""

    name: str
    kept: str
    pool: str


@dataclass(frozen=True)
class Story:
    """What stands above the table.

    Attributes:
        decision: In one sentence.
        kind: What kind of rows were kept, in one sentence; None where that cannot be told.
        warnings: What ought to worry the user.
        figures: Kept rows beside the pool.
        charts: In the order shown.
        compared: Sentences of a comparison, if there is one.
        group_names: What the groups of content are called.
    """

    decision: str
    kind: str | None
    warnings: Sequence[str]
    figures: Sequence[Figure]
    charts: Sequence[Chart]
    compared: Sequence[str]
    group_names: Mapping[int, str]


def story_of(run: Run, rows: Rows) -> Story:
    """Tell a selection, from its rows and from what else lies in the run folder."""
    config = validated_settings(rows.summary)
    group_names = _group_names(rows)
    comparison, compared = _comparison(run)
    return Story(
        decision=_decision(rows, config),
        kind=_kind(rows),
        warnings=list(rows.summary.get("warnings") or ()),
        figures=_figures(rows),
        charts=[*_charts(run, rows, config, group_names), *comparison],
        compared=compared,
        group_names=group_names,
    )


def validated_settings(summary: Mapping[str, Any]) -> SelectionConfig:
    """Return the settings of a selection.

    Raises:
        GradsiftError: If they are none.
    """
    settings = migrated(dict(summary.get("settings") or {}))
    known = {k: v for k, v in settings.items() if k in SelectionConfig.model_fields}
    return validated(SelectionConfig, known)


def _decision(rows: Rows, config: SelectionConfig) -> str:
    n_kept, n_dropped = int(rows.kept_N.sum()), int(rows.dropped_N.sum())
    dropped = f" {_rows(n_dropped)} could not be used or were dropped." if n_dropped else ""
    summary = STRATEGIES[config.strategy].summary
    gate = " Rows that the gate calls faulty were dropped first." if config.gate else ""
    return (
        f"{n_kept:,} of {_rows(len(rows))} are kept ({_percent(n_kept / len(rows))}), by the "
        f"strategy {config.strategy}: {summary}.{gate}{dropped}"
    )


def _kind(rows: Rows) -> str | None:
    loss_N, kept_N = rows.numbers("loss"), rows.kept_N
    there_N = np.isfinite(loss_N)
    if not (kept_N & there_N).any():
        return None
    pool, kept = loss_N[there_N].mean(), loss_N[there_N & kept_N].mean()
    hardest_N = loss_N >= np.quantile(loss_N[there_N], 0.9)
    hard = (hardest_N & kept_N).sum() / (kept_N & there_N).sum()
    how = "about as hard as" if abs(kept - pool) < 0.05 * pool else (
        "easier than" if kept < pool else "harder than"
    )  # fmt: skip
    return (
        f"The kept rows are {how} the pool for this model (mean loss {kept:.2f}, pool "
        f"{pool:.2f}); {_percent(hard)} of them are of the pool's hardest tenth."
    )


def _figures(rows: Rows) -> list[Figure]:
    audit = rows.summary.get("audit") or {}
    n_kept = int(rows.kept_N.sum())
    figures = [Figure("rows", f"{n_kept:,}", f"{len(rows):,}")]
    n_tokens = rows.summary.get("n_tokens")
    if isinstance(n_tokens, int):
        figures.append(Figure("tokens", f"{n_tokens:,}", ""))

    def pair(name: str, key: str, form: str) -> None:
        pool, subset = ((audit.get(key) or {}).get(who) for who in ("pool", "subset"))
        if isinstance(pool, int | float) and isinstance(subset, int | float):
            figures.append(Figure(name, form.format(subset), form.format(pool)))

    pair("mean loss", "loss", "{:.2f}")
    pair("of the hardest tenth", "high_loss_share", "{:.0%}")
    pair("median answer, tokens", "response_tokens", "{:.0f}")
    pair("repeats of another row", "duplicate_share", "{:.0%}")
    cluster_N = rows.numbers("cluster")
    there_N = np.isfinite(cluster_N)
    if there_N.any():
        kept, pool = (len(np.unique(cluster_N[n])) for n in (there_N & rows.kept_N, there_N))
        figures.append(Figure("groups of content", str(kept), str(pool)))
    return figures


def _charts(
    run: Run, rows: Rows, config: SelectionConfig, group_names: Mapping[int, str]
) -> list[Chart]:
    points_R = _points(rows)
    drawn = _drawn_note(rows, points_R)
    found = [
        _score(rows, config),
        _loss(rows),
        _score_against_loss(rows, points_R, drawn),
        _length(rows),
        _map(run, rows, points_R, drawn, group_names),
        _groups(rows, group_names),
        *(_named(rows, name) for name in ("source", "language")),
        _curve(run, rows),
        _overlap(run, rows),
    ]
    return [chart for chart in found if chart is not None]


def _score(rows: Rows, config: SelectionConfig) -> Chart | None:
    score_N = rows.numbers("gradient_score")
    if not np.isfinite(score_N).any():
        return None
    pool, kept = np.nanmean(score_N), np.nanmean(score_N[rows.kept_N])
    title = f"Kept rows score {kept:.2f} on average, all rows {pool:.2f}"
    if not uses_score(config):
        title = f"The score was not used here (kept {kept:.2f}, all {pool:.2f})"
    note = f"Gradient score {config.score}: 1 is the row it likes best. Dashed lines: means."
    return Chart("score", title, note,
                 (charts.histogram(score_N, rows.kept_N, "gradient score, 0 to 1", 2),))  # fmt: skip


def _loss(rows: Rows) -> Chart | None:
    loss_N = rows.numbers("loss")
    if not np.isfinite(loss_N).any():
        return None
    pool, kept = np.nanmean(loss_N), np.nanmean(loss_N[rows.kept_N])
    way = "below" if kept < pool else "above"
    title = f"Loss of kept rows is {kept:.2f} on average, {way} the pool's {pool:.2f}"
    note = "Low: the model knows the answer already. High: new to it, or wrong."
    return Chart("loss", title, note, (
        charts.histogram(loss_N, rows.kept_N, "loss of the answer, nats a token", 2, clipped=True),
    ))  # fmt: skip


def _length(rows: Rows) -> Chart | None:
    tokens_N = rows.numbers("n_response_tokens")
    if not np.isfinite(tokens_N).any():
        return None
    pool, kept = np.nanmedian(tokens_N), np.nanmedian(tokens_N[rows.kept_N])
    title = f"Kept answers have {kept:,.0f} tokens in the median, all answers {pool:,.0f}"
    note = "Dashed lines: means."
    return Chart("length", title, note, (
        charts.histogram(tokens_N, rows.kept_N, "tokens of the answer", 0, clipped=True),
    ))  # fmt: skip


def _score_against_loss(rows: Rows, points_R: np.ndarray, drawn: str) -> Chart | None:
    loss_N, score_N = rows.numbers("loss"), rows.numbers("gradient_score")
    both_N = np.isfinite(loss_N) & np.isfinite(score_N)
    if both_N.sum() < 3:
        return None
    rho = rank_correlation(score_N[both_N], loss_N[both_N])
    here_R = points_R[both_N[points_R]]
    if rho is None or abs(rho) < _CORRELATED:
        title = "The score says little about the loss"
    elif rho < 0:
        title = "The score likes rows that the model already finds easy"
    else:
        title = "The score likes rows that the model finds hard"
    figure = "" if rho is None else f"Rank correlation {rho:+.2f}. "
    points = _with(_as_points(rows, here_R), x=loss_N[here_R], y=score_N[here_R])
    note = f"{figure}{drawn}Click a point to read its row."
    return Chart("score-loss", title, note, (
        charts.scatter(points, "loss of the answer, nats a token", "gradient score, 0 to 1"),
    ))  # fmt: skip


def _map(
    run: Run, rows: Rows, points_R: np.ndarray, drawn: str, group_names: Mapping[int, str]
) -> Chart | None:
    store = run.store
    at = {one: n for n, one in enumerate(store.instance_ids)}
    ids = rows.table["instance_id"]
    finite_N = store.finite
    found = [(row, at.get(ids[row].as_py(), -1)) for row in points_R.tolist()]
    found = [(row, place) for row, place in found if place >= 0 and finite_N[place]]
    if len(found) < 3:
        return None
    rows_R, places_R = (np.array(side) for side in zip(*found, strict=True))
    xy_R2, share = plane_of(store.content_ND[places_R], store.step[places_R])
    cluster_N = rows.numbers("cluster")
    cluster_R = cluster_N[rows_R]
    points = _with(_as_points(rows, rows_R), x=xy_R2[:, 0], y=xy_R2[:, 1])
    for point, cluster in zip(points, cluster_R.tolist(), strict=True):
        point["group"] = group_names.get(int(cluster), "") if np.isfinite(cluster) else ""
    groups, counts = np.unique(cluster_R[np.isfinite(cluster_R)].astype(int), return_counts=True)
    largest = groups[np.argsort(-counts, kind="stable")][:_NAMED_ON_MAP]
    names = [
        {
            "name": " · ".join(group_names[group].split(" · ")[:2]),
            **dict(zip("xy", np.median(xy_R2[cluster_R == group], axis=0).tolist(), strict=True)),
        }
        for group in largest.tolist()
        if group_names.get(group)
    ]
    there_N = np.isfinite(cluster_N)
    kept, pool = (len(np.unique(cluster_N[n])) for n in (there_N & rows.kept_N, there_N))
    title = f"Kept rows stand in {kept} of the {pool} groups of content"
    note = (
        f"A map by what rows say: near means alike, but two directions hold only "
        f"{_percent(share)} of the differences. {drawn}Named by their telling words: the largest "
        "groups."
    )
    return Chart("map", title, note, (charts.plane(points, names),), wide=True)


def _groups(rows: Rows, group_names: Mapping[int, str]) -> Chart | None:
    cluster_N = rows.numbers("cluster")
    there_N = np.isfinite(cluster_N)
    labels = [group_names[int(one)] if np.isfinite(one) else None for one in cluster_N.tolist()]
    if len(np.unique(cluster_N[there_N])) < 2:
        return None
    return _by_group(
        rows, labels, "groups", "group of content",
        "Groups of content",
        "Groups are found in the model's own picture of each row (k-means); "
        "their names are the words that tell them from the others.",
    )  # fmt: skip


def _named(rows: Rows, column: str) -> Chart | None:
    labels = rows.texts(column)
    if len({one for one in labels if one is not None}) < 2:
        return None
    plural = {"source": "Sources", "language": "Languages"}[column]
    return _by_group(rows, labels, f"{column}s", column, plural, "")


def _by_group(
    rows: Rows, labels: Sequence[str | None], key: str, what: str, plural: str, note: str
) -> Chart:
    counts: dict[str, list[int]] = {}
    kept_N = rows.kept_N.tolist()
    for label, kept in zip(labels, kept_N, strict=True):
        if label is not None:
            count = counts.setdefault(label, [0, 0])
            count[0] += 1
            count[1] += kept
    ordered = sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))
    groups = [
        {"name": short(name, 60), "pool": pool, "kept": kept}
        for name, (pool, kept) in ordered[:MOST_GROUPS]
    ]
    share = sum(kept_N) / len(rows)
    rest = ordered[MOST_GROUPS:]
    more = ""
    if rest:
        pool, kept = (sum(count[at] for _, count in rest) for at in (0, 1))
        more = f"{len(rest)} smaller ones together: {kept:,} of {pool:,}. "
    empty = sum(kept == 0 for _, (pool, kept) in ordered)
    title = (
        f"{plural}: {empty} of {len(ordered)} have no kept row"
        if empty
        else f"{plural}: each of the {len(ordered)} has kept rows"
    )
    note = f"Dashed line: {_percent(share)}, the share of all rows. {more}{note}".strip()
    return Chart(key, title, note, (charts.kept_by_group(groups, share, what),))


def _curve(run: Run, rows: Rows) -> Chart | None:
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
    note = "What each further row adds, the most useful first; the bend is where `auto` stops."
    return Chart("curve", title, note, (charts.gain_curve(gain_S, n_kept),))


def _overlap(run: Run, rows: Rows) -> Chart | None:
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
        f"{_percent(overlap_KK[0, nearest])} of the rows in either"
    )
    note = (
        f"Rows in both, of those in either, for the selections of this run. Two random draws of "
        f"{_percent(share)} would share {_percent(share / (2 - share))}."
    )
    return Chart("overlap", title, note, (charts.heatmap(list(kept), overlap_KK),))


def _comparison(run: Run) -> tuple[list[Chart], list[str]]:
    """Return the charts and the sentences of the newest comparison in the run folder."""
    for path in _newest_first(run.folder.glob("*.json")):
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


def _newest_first(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda path: -path.stat().st_mtime)


def _points(rows: Rows) -> np.ndarray:
    """Return the positions of rows that are drawn as points: kept ones are not lost among them."""
    usable_N = ~rows.dropped_N
    kept_R, others_R = np.flatnonzero(rows.kept_N), np.flatnonzero(usable_N & ~rows.kept_N)
    if len(kept_R) + len(others_R) <= MOST_POINTS:
        return np.sort(np.concatenate([kept_R, others_R]))
    share = len(kept_R) / (len(kept_R) + len(others_R))
    n_kept = min(len(kept_R), round(MOST_POINTS * max(share, _KEPT_POINTS)))
    drawn = []
    for rows_R, n in ((kept_R, n_kept), (others_R, MOST_POINTS - n_kept)):
        group_R = np.nan_to_num(rows.numbers("cluster")[rows_R], nan=-1)
        drawn.append(rows_R[stratified(group_R, n)])
    return np.sort(np.concatenate(drawn))


def _drawn_note(rows: Rows, points_R: np.ndarray) -> str:
    n = int((~rows.dropped_N).sum())
    if len(points_R) == n:
        return ""
    kept = int(rows.kept_N[points_R].sum())
    return (
        f"Drawn are {kept:,} of {int(rows.kept_N.sum()):,} kept rows and "
        f"{len(points_R) - kept:,} of {n - int(rows.kept_N.sum()):,} others. "
    )


def _as_points(rows: Rows, rows_R: np.ndarray) -> list[dict[str, Any]]:
    table = rows.table.select(["instance_id", "prompt"]).take(rows_R)
    return [
        {"id": one, "kept": kept, "text": short(prompt or "", PROMPT_SHOWN)}
        for one, prompt, kept in zip(
            table["instance_id"].to_pylist(), table["prompt"].to_pylist(),
            rows.kept_N[rows_R].tolist(), strict=True,
        )
    ]  # fmt: skip


def _with(points: list[dict[str, Any]], **values: np.ndarray) -> list[dict[str, Any]]:
    for name, value_R in values.items():
        for point, value in zip(points, value_R.tolist(), strict=True):
            point[name] = float(f"{value:.4g}")
    return points


def _group_names(rows: Rows) -> dict[int, str]:
    """Name each group of content by its telling words; by its number where it has none."""
    cluster_N = rows.numbers("cluster")
    there_R = np.flatnonzero(np.isfinite(cluster_N))
    groups = np.unique(cluster_N[there_R]).astype(int).tolist()
    read_R = there_R[stratified(cluster_N[there_R], _READ_ROWS)]
    table = rows.table.select(["prompt", "response"]).take(read_R)
    texts = [
        " ".join((one or "")[:_READ_CHARACTERS] for one in pair)
        for pair in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    ]
    words = telling_words(texts, cluster_N[read_R].astype(int)) if groups else {}
    names = {group: " · ".join(words.get(group, ())) or f"group {group}" for group in groups}
    # Two groups of one name would be one in a chart.
    seen: dict[str, int] = {}
    for group, name in names.items():
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[group] = f"{name} ({seen[name]})"
    return names


def _rows(n: int) -> str:
    return f"{n:,} row" + "s" * (n != 1)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"
