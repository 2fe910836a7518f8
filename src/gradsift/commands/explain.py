"""Why a row was kept or not, and what would have to change, from what a run folder holds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.data.pool import place
from gradsift.decided import (
    AGAIN,
    DECISIONS,
    SELECTIONS,
    find_row,
    read_decisions,
    telling_of,
    whole_selections,
)
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import migrated
from gradsift.selection.counterfactuals import counterfactual
from gradsift.selection.gate import in_words
from gradsift.store.reader import GradientStore
from gradsift.store.tables import DROPPED
from gradsift.terms import LAYERS
from gradsift.wording import columns_of_terminal, in_line, joined, short

_SHOWN = 5
_MARGIN = " " * len("  prompt  ")
# Of a text that are shown.
_MOST_LINES = 12


@dataclass(frozen=True)
class Explanation:
    """What is known about one row.

    Attributes:
        row: Its line of pool.parquet.
        decisions: Selection → the row's line of its decisions.parquet, with `what_if` (what would
            have to change), `repeats` (the kept row that one that was not kept repeats, if any) and
            `near_duplicates` (id, similarity, whether it is kept).
        texts: Prompt and response of the row and of the kept rows that it repeats, by id.
    """

    row: dict[str, Any]
    decisions: dict[str, dict[str, Any]]
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        said = [
            f"{name}: {'selected' if decision['selected'] else 'not selected'}"
            for name, decision in self.decisions.items()
        ]
        shown = ", ".join([*said[:3], *(["…"] if len(said) > 3 else [])])
        row_id = short(self.row["instance_id"], 60)
        return in_line(f"Explanation({row_id!r} in {len(said)} selections; {shown})")

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        texts = {
            instance_id: {"prompt": prompt, "response": response}
            for instance_id, (prompt, response) in self.texts.items()
        }
        return {**self.row, "selections": self.decisions, "texts": texts}

    def text(self) -> str:
        """Return what a person wants to know."""
        row = self.row
        where = place(row["row"], row["line"], row["file"], row["index_in_file"])
        lines = [f"{row['instance_id']} ({where})"]
        if row["status"] == DROPPED:
            dropped = f"dropped: {row['reason']}: {row['detail']}"
            return joined([*lines, dropped, *self._said(row["instance_id"])])
        cut = ", truncated" if row["truncated"] else ""
        lines.append(f"{row['n_tokens']} tokens, {row['n_response_tokens']} of the response{cut}")
        lines += self._said(row["instance_id"])
        if row["instance_id"] not in self.texts:
            lines.append("  (what it says is not in the run folder: gradsift select puts it there)")
        for name, decision in self.decisions.items():
            lines += ["", f"{name}: {decision['reason']}", *_numbers(decision)]
        for other in self.texts:
            if other != row["instance_id"]:
                of = ", ".join(
                    n for n, one in self.decisions.items() if one.get("repeats") == other
                )
                lines += ["", f"the kept row of {of} that it repeats, {other}:", *self._said(other)]
        if not self.decisions:
            lines.append("no selection was made yet: gradsift select RUN --budget 50%")
        return joined(lines)

    def _said(self, instance_id: str) -> list[str]:
        prompt, response = self.texts.get(instance_id, ("", ""))
        return [*_paragraph("prompt", prompt), *_paragraph("answer", response)]


def _paragraph(title: str, text: str) -> list[str]:
    """Return a text as a terminal shows it: its lines wrapped, and no more than a few of them."""
    # No more is looked at than could be shown: a text may be as long as a file.
    width = columns_of_terminal() - len(_MARGIN)
    beginning = text[: _MOST_LINES * width]
    wrapped = [
        line
        for paragraph in beginning.splitlines()
        for line in textwrap.wrap(in_line(paragraph), width)
    ]
    shown = wrapped[:_MOST_LINES]
    if len(wrapped) > len(shown) or len(text) > len(beginning):
        shown.append(f"… ({len(text)} characters in all; --json shows them)")
    return [f"{f'  {title}  ' if at == 0 else _MARGIN}{line}" for at, line in enumerate(shown)]


def explain(
    run: str | Path | GradientStore | Run, row_id: str, name: str | None = None
) -> Explanation:
    """Collect what is known about one row.

    Args:
        run: A run folder, or its store.
        row_id: An instance id; if no row has it, "line:N" for a line of the input file (from 1), or
            "row:N" (from 0).
        name: Of one selection; None takes all.

    Returns:
        The explanation.

    Raises:
        GradsiftError: If there is no such row or no such selection, or several rows share the line.
    """
    run = Run.of(run)
    row, decisions = find_row(run, row_id), {}
    for selection in whole_selections(run, name):
        decisions[selection] = _decision(run, selection, str(row["instance_id"]))
    repeated = [line.get("repeats") for line in decisions.values()]
    wanted = [str(row["instance_id"]), *(one for one in repeated if one is not None)]
    return Explanation(row, decisions, _texts(run, wanted))


def _texts(run: Run, ids: list[str]) -> dict[str, tuple[str, str]]:
    """Return prompt and response of some rows, as far as they are known."""
    texts = run.stored_texts
    if texts is None:
        return {}
    wanted = texts.filter(pc.is_in(texts["instance_id"], value_set=pa.array(ids, pa.string())))
    found = {
        line["instance_id"]: (line["prompt"], line["response"])
        for line in wanted.to_pylist()
        if line["prompt"] is not None and line["response"] is not None
    }
    return {one: found[one] for one in ids if one in found}


def _decision(run: Run, selection: str, instance_id: str) -> dict[str, object]:
    path = run.folder / SELECTIONS / selection / DECISIONS
    table, summary = read_decisions(run, selection)
    lines = table.filter(pc.equal(table["instance_id"], instance_id)).to_pylist()
    if len(lines) != 1:
        raise GradsiftError(f"{path}: has {len(lines)} lines for row {instance_id!r}. {AGAIN}")
    # What it says is said once, not with each selection.
    said = ("prompt", "response")
    line = {key: value for key, value in lines[0].items() if key not in said} | {"what_if": None}
    if line["decision"] == "dropped":
        return line
    with telling_of(path.parent):
        settings = migrated(summary["settings"])
        threshold = float(settings["similarity_threshold"])
        line["what_if"] = counterfactual(
            line,
            table,
            strategy=str(summary["strategy"]),
            by_tokens=str(summary["budget"]).endswith("tok"),
            gain_per_score=_gain_per_score(summary, float(settings["alpha"])),
            has_quota=bool(settings.get("quota")),
        )
        near = _near(run, instance_id, threshold)
        if not line["selected"] and (line["nearest_similarity"] or 0.0) > threshold:
            line["repeats"] = line["nearest_selected"]
        # What is said of a row needs these numbers, which a stranger's table may not have.
        _numbers(line)
    kept = set(table.filter(table["selected"])["instance_id"].to_pylist())
    line["near_duplicates"] = [
        {"instance_id": other, "similarity": cosine, "selected": other in kept}
        for other, cosine in near
    ]
    return line


def _gain_per_score(summary: dict[str, Any], alpha: float) -> float:
    if "scale" not in summary:  # An earlier gradsift divided by the rows of the budget.
        return alpha / float(summary["expected_rows"])
    scale = 0.0 if summary["scale"] is None else float(summary["scale"]["gradient"])
    return alpha / scale if scale > 0 else 0.0


def _near(run: Run, instance_id: str, threshold: float) -> list[tuple[str, float]]:
    """Return near-duplicates of a row that can be selected, the nearest first."""
    store, (neighbours, _) = run.store, run.content
    ids = [i for i, ok in zip(store.instance_ids, store.finite.tolist(), strict=True) if ok]
    row = ids.index(instance_id)
    rows, cosines = neighbours.of(row)
    chosen = np.flatnonzero((cosines > threshold) & (rows != row))
    order = chosen[np.lexsort((rows[chosen], -cosines[chosen]))]
    return [(ids[rows[at]], float(cosines[at])) for at in order]


def _numbers(decision: dict[str, object]) -> list[str]:
    lines = []
    if decision["decision"] == "dropped":
        return lines
    if decision.get("gate_p") is not None:
        lines.append(f"  {in_words(decision['prompt_advantage'], decision['gate_p'])}")
    if decision["marginal_gain"] is not None:
        lines.append(
            f"  gain {decision['marginal_gain']:.4g} = gradient {decision['gradient_gain']:.4g} "
            f"+ diversity {decision['diversity_gain']:.4g} "
            f"- similarity {decision['similarity_penalty']:.4g}"
        )
    percentiles = [
        f"{layer} norm {decision[f'{layer}_l2_norm_pct']:.0f}"
        for layer in LAYERS
        if f"{layer}_l2_norm_pct" in decision
    ]
    percentiles = [f"density {decision['density_pct']:.0f}", *percentiles]
    lines.append(f"  percentiles: {', '.join(percentiles)}")
    if decision["nearest_selected"] is not None:
        lines.append(
            f"  nearest kept row: {decision['nearest_selected']} "
            f"(similarity {decision['nearest_similarity']:.2f})"
        )
    near = decision.get("near_duplicates") or []
    if near:
        shown = ", ".join(
            f"{duplicate['instance_id']} ({duplicate['similarity']:.2f}, "
            f"{'kept' if duplicate['selected'] else 'not kept'})"
            for duplicate in near[:_SHOWN]
        )
        more = f", and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
        lines.append(f"  near-duplicates: {shown}{more}")
    if decision["what_if"] is not None:
        lines.append(f"  {decision['what_if']}")
    return lines
