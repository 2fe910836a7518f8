"""A selection's rows as arrays, from the folder that `select` wrote.

Shapes: N rows of the input, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.decided import (
    AGAIN,
    DECISIONS,
    SELECTIONS,
    SUMMARY,
    floats,
    latest_of,
    read_decisions,
    whole_selections,
    worth_of,
)
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.seals import DamagedError, read_parquet, require_columns
from gradsift.selection.decisions import with_what_they_say
from gradsift.store.tables import POOL_NAME

DROPPED = "dropped"
_KEPT = (
    pa.field("instance_id", pa.string(), nullable=False),
    pa.field("selected", pa.bool_(), nullable=False),
)
# What is there in the decisions of today's gradsift, and is read by nobody else.
_SAID = (
    pa.field("cluster", pa.int64()),
    pa.field("source", pa.string()),
    pa.field("language", pa.string()),
)
# Rows on either side of the cut that are called borderline: this part of those kept, or so many.
_BORDER_SHARE = 0.05
_BORDER_ROWS = 5


@dataclass(frozen=True)
class Rows:
    """What was decided on each row of the input, and what the row says.

    Attributes:
        run: The run.
        name: Of the selection.
        table: Its decisions, with the rows' texts, losses, tokens, sources and clusters.
        summary: What else is noted of it.
    """

    run: Run
    name: str
    table: pa.Table
    summary: Mapping[str, Any]

    def __len__(self) -> int:
        return self.table.num_rows

    def texts(self, name: str) -> list[Any]:
        """Return a column as a list, None where there is nothing."""
        return self.table[name].to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as [N] float64, NaN where there is nothing."""
        return floats(self.table, name)

    @cached_property
    def kept_N(self) -> np.ndarray:
        """Which rows are kept."""
        return self.table["selected"].to_numpy()

    @cached_property
    def dropped_N(self) -> np.ndarray:
        """Which rows nothing could be selected from, or that the gate dropped."""
        return pc.equal(self.table["decision"], DROPPED).to_numpy()

    @cached_property
    def worth_N(self) -> np.ndarray | None:
        """What rows were chosen by, larger nearer to being kept; None of a draw."""
        by_tokens = str(self.summary.get("budget")).endswith("tok")
        return worth_of(self.run, self.table, by_tokens=by_tokens)

    @cached_property
    def borderline_N(self) -> np.ndarray:
        """Which rows are nearest to the cut: the last that were kept, the first that were not."""
        near_N = np.zeros(len(self), dtype=bool)
        if self.worth_N is not None:
            n = max(_BORDER_ROWS, round(_BORDER_SHARE * int(self.kept_N.sum())))
            near_N[self.kept_in_order[-n:]] = True
            near_N[self.others_in_order[:n]] = True
        return near_N

    @cached_property
    def kept_in_order(self) -> np.ndarray:
        """Positions of the kept rows, the first taken first."""
        kept_R = np.flatnonzero(self.kept_N)
        return kept_R[np.argsort(self.numbers("rank")[kept_R], kind="stable")]

    @cached_property
    def others_in_order(self) -> np.ndarray:
        """Positions of the rows that were not kept, the nearest to the cut first."""
        others_R = np.flatnonzero(~self.kept_N & ~self.dropped_N)
        if self.worth_N is None:
            return others_R
        return others_R[np.argsort(-self.worth_N[others_R], kind="stable")]


def selection_names(run: Run) -> list[str]:
    """Return the names of a run's whole selections, the newest last."""
    summaries = (run.folder / SELECTIONS).glob(f"[!.]*/{SUMMARY}")
    return [path.parent.name for path in sorted(summaries, key=lambda path: path.stat().st_mtime)]


def read_rows(run: Run, name: str | None) -> Rows:
    """Read a selection of a run; None for the newest.

    Raises:
        GradsiftError: If there is none, or it is not what was written, or of another run.
    """
    name = latest_of(run, whole_selections(run, name))
    table, summary = read_decisions(run, name)
    path = run.folder / SELECTIONS / name / DECISIONS
    try:
        if not table["instance_id"].equals(run.pool_table["instance_id"]):
            raise DamagedError(path, f"its rows are not those of {POOL_NAME}")
        rows = rows_of(run, name, table, summary)
        require_columns(path, rows.table, _SAID)
    except DamagedError as error:
        raise GradsiftError(f"{error.found} {AGAIN}") from error
    return rows


def rows_of(run: Run, name: str, table: pa.Table, summary: Mapping[str, Any]) -> Rows:
    """Return a selection's rows, from decisions on each row of the pool table."""
    if "prompt" not in table.column_names:  # By an earlier gradsift.
        pool, clusters = run.candidates(), run.content[1]
        table = with_what_they_say(table, pool, clusters, run.pool_table, run.texts)
    return Rows(run, name, table.combine_chunks(), summary)


def kept_ids(run: Run, name: str) -> set[str]:
    """Return the ids of the rows that a selection keeps.

    Raises:
        DamagedError: If its decisions are not what was written.
    """
    path = run.folder / SELECTIONS / name / DECISIONS
    expected = (
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("selected", pa.bool_(), nullable=False),
    )
    table = read_parquet(path, [one.name for one in expected], expected)
    return set(table.filter(table["selected"])["instance_id"].to_pylist())
