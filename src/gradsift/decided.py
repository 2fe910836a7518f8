"""What selections decided, read from a run folder: which there are, and each row's line."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import migrated
from gradsift.seals import DamagedError, read_json, read_parquet, require_columns, sha256_of
from gradsift.wording import few, first_line, short

SELECTIONS = "selections"
DECISIONS = "decisions.parquet"
SUMMARY = "selection.json"
CURVE = "curve.parquet"
_EXPECTED = (
    pa.field("row", pa.int64(), nullable=False),
    pa.field("line", pa.int64()),
    pa.field("file", pa.string()),
    pa.field("instance_id", pa.string(), nullable=False),
    pa.field("decision", pa.string(), nullable=False),
    pa.field("selected", pa.bool_(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
)
# Of some strategies, or of later gradsifts.
_MORE = (
    *(pa.field(name, pa.int64()) for name in ("rank", "n_response_tokens")),
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
            "loss",
        )
    ),
    pa.field("nearest_selected", pa.string()),
    *(pa.field(name, pa.large_string()) for name in ("prompt", "response")),
)
AGAIN = "Remove that folder and select again, with the same settings."

logger = logging.getLogger(__name__)


def find_row(run: Run, row_id: str) -> dict[str, Any]:
    """Return the line of the pool table of a row, named by its id, "line:N" or "row:N".

    Raises:
        GradsiftError: If there is no such row, or several rows share the line.
    """
    if not isinstance(row_id, str):
        raise GradsiftError(
            f"the row is {short(repr(row_id), 60)}, expected a text: an id, 'line:12' or 'row:12'."
        )
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
    return rows[0]


def _where(row_id: str) -> tuple[str, int] | None:
    kind, _, number = row_id.partition(":")
    # Numbers of more digits than Arrow's are no place.
    place_is_said = kind in ("line", "row") and number.isdecimal() and len(number) < 19
    return (kind, int(number)) if place_is_said else None


def whole_selections(run: Run, name: str | None) -> list[str]:
    """Return the names of the selections that are whole; one that is not is told.

    Args:
        run: The run.
        name: Of the one that is asked for; None for all.

    Raises:
        GradsiftError: If there is none of that name.
    """
    folder = run.folder
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
    return selections if name is None else [name]


def read_decisions(run: Run, selection: str) -> tuple[pa.Table, dict[str, Any]]:
    """Read the decisions and the summary of a selection.

    Raises:
        GradsiftError: If they are not what was written, or of another selection or run.
    """
    path = run.folder / SELECTIONS / selection / DECISIONS
    if not path.exists():
        raise GradsiftError(f"{path}: is missing. {AGAIN}")
    try:
        table = read_parquet(path, expected=_EXPECTED)
        require_columns(path, table, [one for one in _MORE if one.name in table.column_names])
        summary = read_json(path.with_name(SUMMARY))
        _require_its_own(run, path, summary)
    except DamagedError as error:
        raise GradsiftError(f"{error.found} {AGAIN}") from error
    return table, summary


@contextmanager
def telling_of(folder: Path) -> Generator[None, None, None]:
    """Blame a selection's files for what goes wrong over what they say, as a stranger's may.

    Raises:
        GradsiftError: In the place of what such values raise; one of another file as it is.
    """
    try:
        yield
    except GradsiftError:
        raise
    except (
        TypeError, AttributeError, ValueError, ArithmeticError, LookupError, pa.ArrowException
    ) as error:  # fmt: skip
        raise GradsiftError(
            f"{folder}: {DECISIONS} and {SUMMARY} do not hold what a selection says "
            f"({type(error).__name__}: {first_line(error)}). {AGAIN}"
        ) from error


def _require_its_own(run: Run, decisions: Path, summary: dict[str, Any]) -> None:
    """Refuse what belongs to another selection, or to one of another run."""
    # An earlier gradsift noted no digests.
    expected = summary.get("files", {}).get(DECISIONS)
    if expected is not None and sha256_of(decisions) != expected:
        raise DamagedError(decisions, f"it is not that of {SUMMARY} beside it")
    captured = summary.get("capture")
    if captured is not None and migrated(captured) != run.store.manifest.identity:
        raise DamagedError(decisions.with_name(SUMMARY), "it is a selection of another run")


def latest_of(run: Run, names: list[str]) -> str:
    """Return the selection that was written last.

    Raises:
        GradsiftError: If there is none.
    """
    if not names:
        raise GradsiftError(
            f"{run.folder}: no selection was made yet: gradsift select {run.folder} --budget 50%"
        )
    return max(names, key=lambda one: (run.folder / SELECTIONS / one / SUMMARY).stat().st_mtime_ns)


def worth_of(run: Run, table: pa.Table, *, by_tokens: bool) -> np.ndarray | None:
    """Return what the strategy went by, larger nearer to being kept; None where rows were drawn."""
    gain_N, measure_N = floats(table, "marginal_gain"), floats(table, "measure")
    if not np.isnan(gain_N).all():
        return gain_N / _costs(run, table) if by_tokens else gain_N
    if np.isnan(measure_N).all():
        return None
    kept_N = table["selected"].to_numpy()
    with np.errstate(invalid="ignore"):
        low_first = np.nanmean(measure_N[kept_N]) < np.nanmean(measure_N)
    return -measure_N if low_first else measure_N


def _costs(run: Run, table: pa.Table) -> np.ndarray:
    pool = run.pool_table
    at = pc.index_in(table["instance_id"], value_set=pool["instance_id"].combine_chunks())
    return pc.fill_null(pool["n_tokens"].take(at).cast(pa.float64()), np.nan).to_numpy()


def floats(table: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where there is no value, or no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return pc.fill_null(table[name].cast(pa.float64()), np.nan).to_numpy()
