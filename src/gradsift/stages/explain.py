"""Why a row was kept or not, from what a run folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradsift.stages.select import DECISIONS, SELECTIONS
from gradsift.store.pool_table import DROPPED, read_pool_table
from gradsift.terms import LAYERS


@dataclass(frozen=True)
class Explanation:
    """What is known about one row.

    Attributes:
        row: Its line of pool.parquet.
        decisions: Selection → the row's line of its decisions.parquet.
    """

    row: dict[str, object]
    decisions: dict[str, dict[str, object]]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {**self.row, "selections": self.decisions}

    def text(self) -> str:
        """Return what a person wants to know."""
        row = self.row
        place = f"row {row['row']}" if row["line"] is None else f"line {row['line']}"
        lines = [f"{row['instance_id']} ({place})"]
        if row["status"] == DROPPED:
            return "\n".join([*lines, f"dropped: {row['reason']}: {row['detail']}"])
        cut = ", truncated" if row["truncated"] else ""
        lines.append(f"{row['n_tokens']} tokens, {row['n_response_tokens']} of the response{cut}")
        for name, decision in self.decisions.items():
            lines += ["", f"{name}: {decision['reason']}", *_numbers(decision)]
        if not self.decisions:
            lines.append("no selection was made yet: gradsift select RUN --budget 50%")
        return "\n".join(lines)


def explain_row(folder: Path, row_id: str, name: str | None = None) -> Explanation:
    """Collect what is known about one row.

    Args:
        folder: The run folder.
        row_id: An instance id, "line:N" for a line of the input file (from 1), or "row:N" (from 0).
        name: Of one selection; None takes all.

    Returns:
        The explanation.

    Raises:
        ValueError: If there is no such row or no such selection, or several rows share the line.
    """
    table = read_pool_table(folder)
    column, value = _where(row_id)
    found = table.filter(pc.equal(table[column], value)).to_pylist()
    if not found:
        some = ", ".join(map(repr, table["instance_id"].slice(0, 3).to_pylist()))
        raise ValueError(
            f"{folder}: no row {row_id!r}. Ids look like {some}; line:12 takes line 12 of a file "
            "of lines, row:12 the thirteenth row."
        )
    if len(found) > 1:
        some = ", ".join(repr(row["instance_id"]) for row in found[:3])
        raise ValueError(
            f"{folder}: {len(found)} rows stand on {row_id}: give an id, such as {some}."
        )
    there = sorted(path.parent.name for path in (folder / SELECTIONS).glob(f"*/{DECISIONS}"))
    if name is not None and name not in there:
        raise ValueError(
            f"{folder}: no selection {name!r}; there are: {', '.join(there) or 'none'}."
        )
    row = found[0]
    paths = [folder / SELECTIONS / one / DECISIONS for one in there if name in (None, one)]
    decisions = {}
    for path in paths:
        lines = pq.read_table(path, filters=[("instance_id", "=", row["instance_id"])]).to_pylist()
        decisions[path.parent.name] = lines[0]
    return Explanation(row, decisions)


def _where(row_id: str) -> tuple[str, str | int]:
    kind, _, number = row_id.partition(":")
    if kind in ("line", "row") and number.isdigit():
        return kind, int(number)
    return "instance_id", row_id


def _numbers(decision: dict[str, object]) -> list[str]:
    lines = []
    if decision["decision"] == "dropped":
        return lines
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
    return lines
