"""A selection's rows as arrays, from the folder that `select` wrote.

Shapes: N rows of the input, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import migrated
from gradsift.seals import DamagedError, read_json, read_parquet, require_columns, sha256_of
from gradsift.selection.decisions import with_what_they_say

SELECTIONS = "selections"
DECISIONS = "decisions.parquet"
SUMMARY = "selection.json"
CURVE = "curve.parquet"
KEPT, REJECTED, DROPPED = "selected", "rejected", "dropped"
AGAIN = "Remove that folder and select again, with the same settings."
_DECIDED = (
    pa.field("instance_id", pa.string(), nullable=False),
    pa.field("decision", pa.string(), nullable=False),
    pa.field("selected", pa.bool_(), nullable=False),
)
_SAID = (
    pa.field("reason", pa.string(), nullable=False),
    pa.field("rank", pa.int64()),
    *(
        pa.field(name, pa.float64())
        for name in ("measure", "marginal_gain", "gradient_score", "nearest_similarity", "loss")
    ),
    pa.field("nearest_selected", pa.string()),
    pa.field("n_response_tokens", pa.int64()),
    pa.field("cluster", pa.int64()),
    pa.field("source", pa.string()),
    pa.field("language", pa.string()),
    pa.field("prompt", pa.large_string()),
    pa.field("response", pa.large_string()),
)
# Rows on either side of the cut that are called borderline: this part of those kept, or so many.
_BORDER_SHARE = 0.05
_BORDER_ROWS = 5


@dataclass(frozen=True)
class Rows:
    """What was decided on each row of the input, and what the row says.

    Attributes:
        name: Of the selection.
        table: Its decisions, with the rows' texts, losses, tokens, sources and clusters.
        summary: What else is noted of it.
    """

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
        return self.table[name].cast(pa.float64()).to_numpy()

    @cached_property
    def kept_N(self) -> np.ndarray:
        """Which rows are kept."""
        return self.table["selected"].to_numpy()

    @cached_property
    def dropped_N(self) -> np.ndarray:
        """Which rows nothing could be selected from, or that the gate dropped."""
        return pc.equal(self.table["decision"], DROPPED).to_numpy()

    @cached_property
    def value_N(self) -> np.ndarray:
        """What rows were chosen by: gain or measure; NaN everywhere for a draw."""
        gain_N = self.numbers("marginal_gain")
        return gain_N if np.isfinite(gain_N).any() else self.numbers("measure")

    @cached_property
    def borderline_N(self) -> np.ndarray:
        """Which rows are nearest to the cut, on either side; none of a draw."""
        near_N, value_N = np.zeros(len(self), dtype=bool), self.value_N
        kept_R = np.flatnonzero(self.kept_N & np.isfinite(value_N))
        others_R = np.flatnonzero(~self.kept_N & ~self.dropped_N & np.isfinite(value_N))
        if not (len(kept_R) and len(others_R)):
            return near_N
        last = kept_R[np.argmax(self.numbers("rank")[kept_R])]
        n = max(_BORDER_ROWS, round(_BORDER_SHARE * len(kept_R)))
        for rows_R in (kept_R, others_R):
            distance_R = np.abs(value_N[rows_R] - value_N[last])
            near_N[rows_R[np.argsort(distance_R, kind="stable")[:n]]] = True
        return near_N


def selection_names(run: Run) -> list[str]:
    """Return the names of a run's whole selections, the newest last."""
    summaries = (run.folder / SELECTIONS).glob(f"[!.]*/{SUMMARY}")
    return [path.parent.name for path in sorted(summaries, key=lambda path: path.stat().st_mtime)]


def require_name(run: Run, name: str | None) -> str:
    """Return the name of a selection: the one that is asked for, else the newest.

    Raises:
        GradsiftError: If there is none.
    """
    names = selection_names(run)
    if not names:
        raise GradsiftError(
            f"{run.folder}: no selection was made yet: gradsift select RUN --budget 50%"
        )
    if name is not None and name not in names:
        raise GradsiftError(
            f"{run.folder}: no selection {name!r}; there are: {', '.join(sorted(names))}."
        )
    return names[-1] if name is None else name


def read_rows(run: Run, name: str) -> Rows:
    """Read a selection of a run.

    Raises:
        GradsiftError: If it is not what was written, or of another run.
    """
    folder = run.folder / SELECTIONS / name
    path = folder / DECISIONS
    if not path.exists():
        raise GradsiftError(f"{path}: is missing. {AGAIN}")
    try:
        summary = read_json(folder / SUMMARY)
        table = read_parquet(path, expected=_DECIDED)
        # An earlier gradsift noted neither.
        expected = summary.get("files", {}).get(DECISIONS)
        if expected is not None and sha256_of(path) != expected:
            raise DamagedError(path, f"it is not that of {SUMMARY} beside it")
        captured = summary.get("capture")
        if captured is not None and migrated(captured) != run.store.manifest.identity:
            raise DamagedError(folder / SUMMARY, "it is a selection of another run")
        return rows_of(run, name, table, summary, path)
    except DamagedError as error:
        raise GradsiftError(f"{error.found} {AGAIN}") from error
    except AttributeError as error:
        raise GradsiftError(f"{folder / SUMMARY}: is no selection's summary. {AGAIN}") from error


def rows_of(
    run: Run, name: str, table: pa.Table, summary: Mapping[str, Any], path: Path | None = None
) -> Rows:
    """Return a selection's rows from its decisions; `path` is where they were read, if they were.

    Raises:
        DamagedError: If they are no decisions on the rows of this run.
    """
    if path is not None and not table["instance_id"].equals(run.pool_table["instance_id"]):
        raise DamagedError(path, "its rows are not those of pool.parquet")
    if "prompt" not in table.column_names:  # By an earlier gradsift.
        pool, clusters = run.candidates(), run.content[1]
        table = with_what_they_say(table, pool, clusters, run.pool_table, run.texts)
    if path is not None:
        require_columns(path, table, _SAID)
    return Rows(name, table.combine_chunks(), summary)


def kept_ids(run: Run, name: str) -> set[str]:
    """Return the ids of the rows that a selection keeps.

    Raises:
        DamagedError: If its decisions are not what was written.
    """
    path = run.folder / SELECTIONS / name / DECISIONS
    table = read_parquet(path, ["instance_id", "decision", "selected"], _DECIDED)
    return set(table.filter(table["selected"])["instance_id"].to_pylist())
