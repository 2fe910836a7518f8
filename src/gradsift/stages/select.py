"""Gradient store → selection: a file of the user's own rows, and a decision on each."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.data.containers import fingerprint, write_rows
from gradsift.data.formats import Columns
from gradsift.data.source import Source
from gradsift.data.stanzas import write_stanzas
from gradsift.selection.candidates import Candidates, Settings
from gradsift.selection.decision import Selection, select_rows
from gradsift.store.files import write_json, write_parquet
from gradsift.store.pool_table import DROPPED, INSTANCE, read_pool_table
from gradsift.store.reader import GradientStore

SELECTIONS = "selections"
DECISIONS = "decisions.parquet"
SUMMARY = "selection.json"
NON_FINITE = "non_finite_gradient"


@dataclass(frozen=True)
class SelectResult:
    """A selection that was written.

    Attributes:
        folder: Where it is.
        selected_file: The selected rows.
        selection: The decisions.
        counts: selected + rejected + dropped = input, and dropped by reason.
        written: Further files, such as stanzas for trainers.
    """

    folder: Path
    selected_file: Path
    selection: Selection
    counts: dict[str, object]
    written: tuple[Path, ...]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        selection = self.selection
        return {
            "selection": str(self.folder),
            "selected_file": str(self.selected_file),
            "strategy": selection.settings.strategy,
            "budget": str(selection.settings.budget),
            "n_tokens": selection.n_tokens,
            **self.counts,
            "losses": {name: asdict(losses) for name, losses in selection.losses.items()},
            "score_length_correlation": selection.length_correlation,
            "score_step_correlation": selection.step_correlation,
            "also_written": [str(path) for path in self.written],
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        counts, selection = self.counts, self.selection
        dropped = ", ".join(f"{k} {v}" for k, v in counts["dropped_by_reason"].items())
        lines = [
            f"{counts['selected']} selected + {counts['rejected']} rejected + "
            f"{counts['dropped']} dropped = {counts['input']} rows of the input"
            + (f" (dropped: {dropped})" if dropped else ""),
            f"{selection.n_tokens} tokens in {self.selected_file}",
            "",
            f"{'loss (lower is better)':24}{'subset':>10}{'pool':>10}{'random':>10}",
        ]
        for name in ("density", "content_diversity", "similarity"):
            values = [getattr(selection.losses[who], name) for who in ("subset", "pool", "random")]
            lines.append(f"{name:24}" + "".join(f"{value:10.4f}" for value in values))
        if selection.length_correlation is not None:
            lines.append(
                "rank correlation of the gradient score with response length "
                f"{selection.length_correlation:+.2f}"
            )
        names = "".join(f", {path.name}" for path in self.written)
        lines += ["", f"beside it: {DECISIONS} (why each row), {SUMMARY}{names}"]
        return "\n".join(lines)


def select_from_store(
    store: GradientStore, settings: Settings, *, name: str | None = None, weights: bool = False
) -> SelectResult:
    """Select rows of a captured run and write them.

    Args:
        store: A complete gradient store.
        settings: How to select.
        name: Of the selection's folder; made from strategy and budget if None.
        weights: Whether decisions.parquet gets a `weight` for each selected row: its gradient
            score divided by the mean over the subset.

    Returns:
        What was written.

    Raises:
        ValueError: If a setting does not fit, the input file changed since, or a selection of that
            name was made with other settings.
    """
    table = read_pool_table(store.folder)
    source, row_format, columns = source_of(store)
    _require_unchanged(store, source)
    selection = select_rows(_candidates(store, table), settings)
    folder = _folder(store, settings, name)
    chosen = set(selection.ids)
    rows = [row for row in table.to_pylist() if row["instance_id"] in chosen]
    places = [(row["row"], row["start"], row["end"]) for row in rows]
    selected_file = write_rows(source, places, folder)
    decisions = _decisions(table, store, selection)
    if weights:
        decisions = decisions.append_column("weight", _weights(decisions))
    write_parquet(folder / DECISIONS, decisions)
    if store.manifest.about["text_pairs"] and row_format == "prompt_completion":
        # Pairs of text; trainers know them as columns of a question and an answer.
        row_format, columns = "qa", Columns(prompt="prompt", response="completion")
    written = tuple(write_stanzas(selected_file, row_format, columns))
    result = SelectResult(
        folder, selected_file, selection, _counts(table, store, selection), written
    )
    made_with = {"settings": _plain(settings), "capture": store.manifest.identity}
    write_json(folder / SUMMARY, {**result.summary(), **made_with})
    return result


def source_of(store: GradientStore) -> tuple[Source, str, Columns]:
    """Return where a store's rows came from.

    Args:
        store: A gradient store.

    Returns:
        The source, its row format and the names of its fields.
    """
    about = store.manifest.about
    return Source(**about["data"]), about["row_format"], Columns(**about["columns"])


def _require_unchanged(store: GradientStore, source: Source) -> None:
    if source.container != "hub" and not source.path.exists():
        raise ValueError(
            f"{source.name}: the input of this run is not there any more. Put it back; the "
            "selected rows are copied from it."
        )
    found, expected = fingerprint(source), store.manifest.about["data_sha256"]
    if found != expected:
        raise ValueError(
            f"{source.name}: changed since the capture (SHA-256 is {found[:16]}…, the store says "
            f"{expected[:16]}…). Put the old file back, or capture again into a new folder."
        )


def _candidates(store: GradientStore, table: pa.Table) -> Candidates:
    tokens = dict(zip(table["instance_id"].to_pylist(), table["n_tokens"].to_pylist(), strict=True))
    finite = store.finite
    ids = [i for i, ok in zip(store.instance_ids, finite, strict=True) if ok]
    return Candidates(
        ids=ids,
        statistics={
            layer: {name: values[finite] for name, values in by_name.items()}
            for layer, by_name in store.statistics.items()
        },
        features_ND=store.content_ND[finite],
        n_tokens=np.array([tokens[i] for i in ids], dtype=np.int64),
        n_response_tokens=store.n_response_tokens[finite],
        step=store.step[finite],
        loss=store.loss[finite],
    )


def _folder(store: GradientStore, settings: Settings, name: str | None) -> Path:
    budget = str(settings.budget).replace("%", "pct")
    name = f"{settings.strategy}-{budget}" if name is None else name
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"--name is {name!r}, expected letters, digits, '-', '_' and '.'.")
    folder = store.folder / SELECTIONS / name
    summary = folder / SUMMARY
    if summary.exists():
        before = json.loads(summary.read_text(encoding="utf-8")).get("settings")
        if before != _plain(settings):
            now = _plain(settings)
            different = [key for key in now if (before or {}).get(key) != now[key]]
            raise ValueError(
                f"{folder} holds a selection with other settings ({', '.join(different)}). Give "
                "this one another --name."
            )
    return folder


def _plain(settings: Settings) -> dict[str, object]:
    values = asdict(settings) | {"budget": str(settings.budget)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _decisions(table: pa.Table, store: GradientStore, selection: Selection) -> pa.Table:
    position = {i: at for at, i in enumerate(selection.table["instance_id"])}
    columns = [name for name in selection.table if name not in ("instance_id", "reason")]
    rows = []
    for row in table.to_pylist():
        at = position.get(row["instance_id"])
        line = {key: row[key] for key in ("row", "line", "instance_id")}
        if at is None:
            reason = row["reason"] or NON_FINITE
            detail = row["detail"] or "its gradient is not finite"
            values = dict.fromkeys(columns) | {"reason": f"dropped: {reason}: {detail}"}
            values["decision"] = "dropped"
        else:
            values = {name: selection.table[name][at] for name in (*columns, "reason")}
            values["decision"] = "selected" if values["selected"] else "rejected"
        values["selected"] = values["decision"] == "selected"
        rows.append({**line, "decision": values.pop("decision"), **values})
    return pa.Table.from_pylist(rows, schema=_decision_schema(["decision", *columns, "reason"]))


def _decision_schema(names: list[str]) -> pa.Schema:
    # Fixed types: a column without any value would else have none.
    types = {"row": pa.int64(), "line": pa.int64(), "rank": pa.int64(), "selected": pa.bool_()}
    types |= dict.fromkeys(("instance_id", "decision", "nearest_selected", "reason"), pa.string())
    return pa.schema(
        [(name, types.get(name, pa.float64())) for name in ("row", "line", "instance_id", *names)]
    )


def _weights(decisions: pa.Table) -> pa.Array:
    scores = decisions["gradient_score"].to_pylist()
    kept = decisions["selected"].to_pylist()
    mean = np.mean([score for score, ok in zip(scores, kept, strict=True) if ok])
    return pa.array(
        [float(s / mean) if ok else None for s, ok in zip(scores, kept, strict=True)], pa.float64()
    )


def _counts(table: pa.Table, store: GradientStore, selection: Selection) -> dict[str, object]:
    reasons: dict[str, int] = {}
    for status, reason in zip(
        table["status"].to_pylist(), table["reason"].to_pylist(), strict=True
    ):
        if status == DROPPED:
            reasons[reason] = reasons.get(reason, 0) + 1
    n_non_finite = int((~store.finite).sum())
    if n_non_finite:
        reasons[NON_FINITE] = n_non_finite
    n_selected = len(selection.ids)
    n_instances = sum(status == INSTANCE for status in table["status"].to_pylist())
    rejected = n_instances - n_non_finite - n_selected
    counts = {
        "input": table.num_rows,
        "selected": n_selected,
        "rejected": rejected,
        "dropped": sum(reasons.values()),
    }
    assert counts["input"] == n_selected + rejected + counts["dropped"], counts
    return {**counts, "dropped_by_reason": reasons}
