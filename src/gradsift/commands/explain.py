"""Why a row was kept or not, and what would have to change, from what a run folder holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.commands.select import DECISIONS, SELECTIONS, SUMMARY
from gradsift.data.pool import place
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import migrated
from gradsift.seals import DamagedError, read_json, read_parquet, require_columns, sha256_of
from gradsift.selection.counterfactuals import counterfactual
from gradsift.selection.gate import in_words
from gradsift.store.reader import GradientStore
from gradsift.store.tables import DROPPED
from gradsift.terms import LAYERS
from gradsift.wording import few, first_line, in_line, joined, short

_SHOWN = 5
_EXPECTED = (
    pa.field("instance_id", pa.string(), nullable=False),
    pa.field("decision", pa.string(), nullable=False),
    pa.field("selected", pa.bool_(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
)
# Of some strategies, or of later gradsifts.
_NUMBERS = (
    pa.field("rank", pa.int64()),
    *(
        pa.field(name, pa.float64())
        for name in (
            "measure",
            "marginal_gain",
            "gradient_gain",
            "diversity_gain",
            "similarity_penalty",
            "gradient_score",
            "density_pct",
            "nearest_similarity",
            "prompt_advantage",
            "gate_p",
        )
    ),
    pa.field("nearest_selected", pa.string()),
)
AGAIN = "Remove that folder and select again, with the same settings."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explanation:
    """What is known about one row.

    Attributes:
        row: Its line of pool.parquet.
        decisions: Selection → the row's line of its decisions.parquet, with `what_if` (what would
            have to change) and `near_duplicates` (id, similarity, whether it is kept).
    """

    row: dict[str, object]
    decisions: dict[str, dict[str, object]]

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
        return {**self.row, "selections": self.decisions}

    def text(self) -> str:
        """Return what a person wants to know."""
        row = self.row
        where = place(row["row"], row["line"], row["file"], row["index_in_file"])
        lines = [f"{row['instance_id']} ({where})"]
        if row["status"] == DROPPED:
            return joined([*lines, f"dropped: {row['reason']}: {row['detail']}"])
        cut = ", truncated" if row["truncated"] else ""
        lines.append(f"{row['n_tokens']} tokens, {row['n_response_tokens']} of the response{cut}")
        for name, decision in self.decisions.items():
            lines += ["", f"{name}: {decision['reason']}", *_numbers(decision)]
        if not self.decisions:
            lines.append("no selection was made yet: gradsift select RUN --budget 50%")
        return joined(lines)


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
    folder, table = run.folder, run.pool_table
    # A row that is called so is meant before the one that stands there.
    rows = table.filter(pc.equal(table["instance_id"], row_id)).to_pylist()
    if not rows and (where := _where(row_id)) is not None:
        rows = table.filter(pc.equal(table[where[0]], where[1])).to_pylist()
    if not rows:
        ids = ", ".join(map(repr, table["instance_id"].slice(0, 3).to_pylist()))
        raise GradsiftError(
            f"{folder}: no row {row_id!r}. Ids look like {ids}; line:12 takes line 12 of a file "
            "of lines, row:12 the thirteenth row."
        )
    if len(rows) > 1:
        ids = ", ".join(
            f"{row['instance_id']!r}" + f" ({row['file']})" * (row["file"] is not None)
            for row in rows[:3]
        )
        raise GradsiftError(
            f"{folder}: {len(rows)} rows stand on {row_id}: give an id, such as {ids}."
        )
    selections = sorted(path.name for path in (folder / SELECTIONS).glob("[!.]*"))
    # The last thing that is written of a selection.
    unfinished = [one for one in selections if not (folder / SELECTIONS / one / SUMMARY).exists()]
    if unfinished and name in (None, *unfinished):
        logger.warning(
            f"{folder / SELECTIONS}: {few(unfinished)} without {SUMMARY}, so not whole: {AGAIN}"
        )
    selections = [one for one in selections if one not in unfinished]
    if name is not None and name not in selections:
        raise GradsiftError(
            f"{folder}: no selection {name!r}; there are: {', '.join(selections) or 'none'}."
        )
    row, decisions = rows[0], {}
    for selection in selections if name is None else [name]:
        decisions[selection] = _decision(run, selection, str(row["instance_id"]))
    return Explanation(row, decisions)


def _where(row_id: str) -> tuple[str, int] | None:
    kind, _, number = row_id.partition(":")
    # Numbers of more digits than Arrow's are no place.
    place_is_said = kind in ("line", "row") and number.isdecimal() and len(number) < 19
    return (kind, int(number)) if place_is_said else None


def _decision(run: Run, selection: str, instance_id: str) -> dict[str, object]:
    path = run.folder / SELECTIONS / selection / DECISIONS
    if not path.exists():
        raise GradsiftError(f"{path}: is missing. {AGAIN}")
    try:
        table = read_parquet(path, expected=_EXPECTED)
        require_columns(path, table, [one for one in _NUMBERS if one.name in table.column_names])
        summary = read_json(path.with_name(SUMMARY))
        _require_its_own(run, path, summary)
    except DamagedError as error:
        raise GradsiftError(f"{error.found} {AGAIN}") from error
    lines = table.filter(pc.equal(table["instance_id"], instance_id)).to_pylist()
    if len(lines) != 1:
        raise GradsiftError(f"{path}: has {len(lines)} lines for row {instance_id!r}. {AGAIN}")
    line = {**lines[0], "what_if": None}
    if line["decision"] == "dropped":
        return line
    try:
        settings = migrated(summary["settings"])
        threshold = float(settings["similarity_threshold"])
        line["what_if"] = counterfactual(
            line,
            table,
            strategy=str(summary["strategy"]),
            by_tokens=str(summary["budget"]).endswith("tok"),
            gain_per_score=_gain_per_score(summary, float(settings["alpha"])),
        )
        near = _near(run, instance_id, threshold)
        # What is said of a row needs these numbers, which a stranger's table may not have.
        _numbers(line)
    except (
        TypeError, AttributeError, ValueError, ArithmeticError, LookupError, pa.ArrowException
    ) as error:  # fmt: skip
        raise GradsiftError(
            f"{path.parent}: {DECISIONS} and {SUMMARY} do not hold what a selection says "
            f"({type(error).__name__}: {first_line(error)}). {AGAIN}"
        ) from error
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


def _require_its_own(run: Run, decisions: Path, summary: dict[str, Any]) -> None:
    """Refuse what belongs to another selection, or to one of another run."""
    # An earlier gradsift noted no digests.
    expected = summary.get("files", {}).get(DECISIONS)
    if expected is not None and sha256_of(decisions) != expected:
        raise DamagedError(decisions, f"it is not that of {SUMMARY} beside it")
    captured = summary.get("capture")
    if captured is not None and migrated(captured) != run.store.manifest.identity:
        raise DamagedError(decisions.with_name(SUMMARY), "it is a selection of another run")


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
    percentiles = ", ".join(
        f"{layer} norm {decision[f'{layer}_l2_norm_pct']:.0f}"
        for layer in LAYERS
        if f"{layer}_l2_norm_pct" in decision
    )
    lines.append(f"  percentiles: density {decision['density_pct']:.0f}, {percentiles}")
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
