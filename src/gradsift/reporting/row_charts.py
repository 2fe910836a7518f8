"""Charts of a selection's rows, each with the sentence that it says.

Shapes: N rows of the input, R rows that are drawn as points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.data.language import NO_LANGUAGE, TOO_SHORT
from gradsift.reporting import charts
from gradsift.reporting.charts import Chart
from gradsift.reporting.content_map import plane_of
from gradsift.reporting.rows import Rows
from gradsift.reporting.sampling import stratified
from gradsift.reporting.why import kinds_of
from gradsift.reporting.wording import n_rows, percent
from gradsift.run_folder import Run
from gradsift.selection.scores import rank_correlation
from gradsift.selection.strategies.catalogue import uses_score
from gradsift.wording import short

# Points of a chart; kept rows are at least this part of them, if there are so many.
MOST_POINTS = 1_500
_KEPT_POINTS = 1 / 3
MOST_GROUPS = 16
MOST_KINDS = 7
# Of the map's width and height: names of groups are not nearer than that to each other.
_ROOM = (0.2, 0.07)
_NAMED_ON_MAP = 9
# Rank correlations below this are called none.
_CORRELATED = 0.2
PROMPT_SHOWN = 90
_SCORE = "gradient score (0 to 1)"
_LOSS = "loss of the answer (nats per token)"


def row_charts(
    run: Run, rows: Rows, config: SelectionConfig, group_names: Mapping[int, str]
) -> list[Chart]:
    """Draw the rows of a selection; what nothing is known of is left out."""
    points_R = _points(rows)
    drawn = _drawn_note(rows, points_R)
    found = [
        _why(rows),
        _score_against_loss(rows, points_R, drawn),
        _score(rows, config),
        _loss(rows),
        _map(run, rows, points_R, drawn, group_names),
        _groups(rows, group_names),
        _length(rows),
        *(_named(rows, name) for name in ("source", "language")),
    ]
    return [chart for chart in found if chart is not None]


def _why(rows: Rows) -> Chart | None:
    reasons = rows.texts("reason")
    kept, others = (
        kinds_of(reason for reason, is_kept in zip(reasons, rows.kept_N.tolist(), strict=True)
                 if is_kept is wanted)
        for wanted in (True, False)
    )  # fmt: skip
    if not kept or not others:
        return None
    (name, n), n_others = others[0], sum(n for _, n in others)
    title = f"Most frequent reason not to keep a row: {short(name, 60)} ({percent(n / n_others)})"
    note = "Blue: why rows were kept. Grey: why others were not. Each row's own reason is below."
    of_kept = charts.counted(_shortened(kept), charts.KEPT)
    return Chart("why", title, note, (of_kept, charts.counted(_shortened(others), charts.REST)))


def _shortened(kinds: list[tuple[str, int]]) -> list[tuple[str, int]]:
    rest = kinds[MOST_KINDS:]
    more = [(f"{len(rest)} other reasons", sum(n for _, n in rest))] if rest else []
    return [(short(name, 60), n) for name, n in kinds[:MOST_KINDS]] + more


def _score(rows: Rows, config: SelectionConfig) -> Chart | None:
    score_N = rows.numbers("gradient_score")
    if not np.isfinite(score_N).any():
        return None
    pool, kept = np.nanmean(score_N), np.nanmean(score_N[rows.kept_N])
    title = f"Kept rows score {kept:.2f} on average, all rows {pool:.2f}"
    if not uses_score(config):
        title = f"The score was not used here (kept {kept:.2f}, all {pool:.2f})"
    note = f"Gradient score {config.score}: 1 is the row it likes best. Lines: means."
    return Chart("score", title, note, (charts.histogram(score_N, rows.kept_N, _SCORE, 2),))


def _loss(rows: Rows) -> Chart | None:
    loss_N = rows.numbers("loss")
    if not np.isfinite(loss_N).any():
        return None
    pool, kept = np.nanmedian(loss_N), np.nanmedian(loss_N[rows.kept_N])
    title = f"Half of the kept rows have a loss below {kept:.2f}, half of all rows below {pool:.2f}"
    note = "Low: the model knows the answer already. High: new to it, or wrong. Lines: medians."
    spec = charts.histogram(loss_N, rows.kept_N, _LOSS, 2, middle="median", clipped=True)
    return Chart("loss", title, note, (spec,))


def _length(rows: Rows) -> Chart | None:
    tokens_N = rows.numbers("n_response_tokens")
    if not np.isfinite(tokens_N).any():
        return None
    pool, kept = np.nanmedian(tokens_N), np.nanmedian(tokens_N[rows.kept_N])
    title = f"Kept answers have {kept:,.0f} tokens in the median, all answers {pool:,.0f}"
    spec = charts.histogram(
        tokens_N, rows.kept_N, "tokens of the answer", 0, middle="median", clipped=True
    )
    return Chart("length", title, "Lines: medians.", (spec,))


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
    return Chart("score-loss", title, note, (charts.scatter(points, _LOSS, _SCORE),))


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
    names = _names_on_map(xy_R2, cluster_R, group_names)
    there_N = np.isfinite(cluster_N)
    kept, pool = (len(np.unique(cluster_N[n])) for n in (there_N & rows.kept_N, there_N))
    title = f"Kept rows stand in {kept} of the {pool} groups of content"
    note = (
        f"A map by what rows say: near means alike, but two directions hold only "
        f"{percent(share)} of the differences. {drawn}Named by their telling words: the largest "
        "groups."
    )
    return Chart("map", title, note, (charts.plane(points, names),), wide=True)


def _names_on_map(
    xy_R2: np.ndarray, cluster_R: np.ndarray, group_names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Place the names of the largest groups at their middles, where there is room."""
    low, high = xy_R2.min(axis=0), xy_R2.max(axis=0)
    groups, counts = np.unique(cluster_R[np.isfinite(cluster_R)].astype(int), return_counts=True)
    placed: list[dict[str, Any]] = []
    for group in groups[np.argsort(-counts, kind="stable")].tolist():
        middle = np.median(xy_R2[cluster_R == group], axis=0)
        at = (middle - low) / np.where(high > low, high - low, 1)
        if any((np.abs(at - one["at"]) < _ROOM).all() for one in placed):
            continue
        words = " · ".join(group_names[group].split(" · ")[:2])
        placed.append({"at": at, "name": words, "x": float(middle[0]), "y": float(middle[1])})
    return [{key: one[key] for key in ("name", "x", "y")} for one in placed[:_NAMED_ON_MAP]]


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
    labels, note = rows.texts(column), ""
    if column == "language":
        n = sum(one in (TOO_SHORT, NO_LANGUAGE) for one in labels)
        labels = [None if one in (TOO_SHORT, NO_LANGUAGE) else one for one in labels]
        note = f"Of {n_rows(n)} it cannot be told: too short, or no words." if n else ""
    n_named = sum(one is not None for one in labels)
    # Nor of names that most rows have for themselves.
    if not 2 <= len({one for one in labels if one is not None}) <= max(2, n_named // 2):
        return None
    plural = {"source": "Sources", "language": "Languages"}[column]
    return _by_group(rows, labels, f"{column}s", column, plural, note)


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
    note = f"Line: {percent(share)}, the share of all rows. {more}{note}".strip()
    return Chart(key, title, note, (charts.kept_by_group(groups, share, what),))


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
