"""Report: a selection as one HTML page, with charts and a table of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.commands.select import SelectResult
from gradsift.config import RowsConfig
from gradsift.decided import SELECTIONS, telling_of
from gradsift.errors import GradsiftError
from gradsift.files import write_text
from gradsift.reporting.page import MARK, page_of
from gradsift.reporting.rows import Rows, read_rows
from gradsift.reporting.story import story_of
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.store.reader import GradientStore
from gradsift.wording import joined

REPORT = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """A page that was written.

    Attributes:
        path: Where it is.
        selection: Of which selection.
        n_rows: Rows of the input.
        size_bytes: Of the file.
    """

    path: Path
    selection: str
    n_rows: int
    size_bytes: int

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "report": str(self.path),
            "selection": self.selection,
            "rows": self.n_rows,
            "size_bytes": self.size_bytes,
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return joined([
            f"{self.path} ({size}): selection {self.selection}, {self.n_rows} rows",
            "open it in a browser; it is one file and needs no network",
        ])  # fmt: skip


@takes(RowsConfig)
def report(
    run: str | Path | GradientStore | Run | SelectResult,
    *,
    name: str | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> ReportResult:
    """Write a selection as one HTML page: what was kept and why, charts, and all rows.

    Args:
        run: A run folder, its store, or a selection of it.
        name: Of the selection; None for the one that is given, else for the newest.
        out: The file; None for report.html in the selection's folder.
        **settings: See Settings.

    Returns:
        Where it is.

    Raises:
        GradsiftError: If there is no such selection, it is not what was written, or the file cannot
            be written.
    """
    (where,) = split_settings(settings, RowsConfig)
    if name is None and isinstance(run, SelectResult):
        name = run.folder.name
    run = Run.of(run, data=where.data)
    if where.data is not None:  # Also where what the rows say is known without them.
        run.require_unchanged_rows()
    rows = read_rows(run, name)
    path = None if out is None else Path(out).resolve()
    if path is not None and path.is_dir():
        raise GradsiftError(f"`out` {out}: is a folder; expected a file, such as {out}/{REPORT}.")
    if path is not None and path.exists() and not _is_page(path):
        raise GradsiftError(
            f"`out` {out}: is there already, and is no page of gradsift; it stays as it is. Give "
            "another name."
        )
    with telling_of(run.folder / SELECTIONS / rows.name):
        return write_report(run, rows, path)


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(1000)


def write_report(run: Run, rows: Rows, path: Path | None = None) -> ReportResult:
    """Write the page of a selection whose rows are known; None for its own folder."""
    path = run.folder / SELECTIONS / rows.name / REPORT if path is None else path
    page = page_of(run.folder.name, rows, story_of(run, rows), run.id_column)
    write_text(path, page)
    return ReportResult(path, rows.name, len(rows), path.stat().st_size)
