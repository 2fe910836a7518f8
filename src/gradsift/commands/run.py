"""Run: capture, then select; from an SFT file to a smaller one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.commands.select import SelectResult, select_run
from gradsift.config import RunConfig
from gradsift.config_files import run_config
from gradsift.console import shows_progress
from gradsift.data.containers.memory import is_name
from gradsift.data.exports.write import require_form
from gradsift.data.id_lists import read_ids
from gradsift.data.pool import Pool, read_pool
from gradsift.errors import GradsiftError
from gradsift.progress import Progress, no_progress
from gradsift.run_folder import Run
from gradsift.schema import takes
from gradsift.selection.candidates import Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.strategies.catalogue import needs_of

if TYPE_CHECKING:
    from gradsift.commands.capture import CaptureResult, DryRunResult

logger = logging.getLogger(__name__)


@takes(RunConfig)
@shows_progress
def run(
    data: Any,
    *,
    model: str | Path,
    budget: str | int | float,
    out: str | Path,
    progress: Progress | bool = True,
    **settings: Any,
) -> SelectResult:
    """Capture and select: from an SFT file to a smaller one. Called again it resumes.

    Args:
        data: SFT file, folder, pattern or hub id; several of them; or rows in memory: all that
            `load_pool` takes.
        model: A hub id, a folder with safetensors, or "demo".
        budget: Of the usable rows: "50%" or 0.5, 500 (rows), "20000tok" (tokens), "auto".
        out: The run folder.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: Everything else; see Settings.

    Returns:
        What was selected and written.

    Raises:
        GradsiftError: For whatever is wrong with the data, the settings or the run folder.
    """
    values = {"budget": budget, "out": out, **settings}
    if is_name(data):
        return run_stages(run_config({"data": data, "model": model, **values}), progress)
    # What is wrong with the settings is found out before the rows are read.
    reading = run_config({"data": "rows", "model": model, **values})
    pool = read_pool(data, reading)
    run = Run.new(str(model), pool, **{**values, "split": None})
    return run_stages(run.config, progress, pool=pool)


def run_stages(
    config: RunConfig,
    progress: Progress = no_progress,
    *,
    pool: Pool | None = None,
    selecting: bool = True,
    dry_run: bool = False,
) -> CaptureResult | DryRunResult | SelectResult:
    """Do what settings say: load the pool, capture, select.

    Args:
        config: The settings.
        progress: As for `run`.
        pool: The rows, if they are in memory already.
        selecting: Whether to select after capturing.
        dry_run: Stop after the cost estimate.

    Returns:
        The result of the last stage.

    Raises:
        GradsiftError: As for `run`.
    """
    budget, needs = None, needs_of(config)  # What cannot be is found out before anything is read.
    if config.budget is not None:
        budget = parse_budget(config.budget)
    elif selecting and not dry_run:
        raise GradsiftError("`budget` is missing: give 50%, 500 (rows), 20000tok (tokens) or auto.")
    if selecting:
        # A list that cannot be read is found out before hours of training.
        for name in ("keep", "drop"):
            read_ids(getattr(config, name), name, config.id_column or "id")
    run = Run(config.out, config=config, pool=pool)
    for line in run.pool.notes():
        logger.info(line)
    if budget is not None and budget.kind != "tokens":
        # Rows that tokenizing drops are not known yet; what is too much for all is too much.
        budget.resolve(sum(row.example is not None for row in run.pool.rows), 0)
    if selecting:
        usable = (row.example for row in run.pool.rows if row.example is not None)
        require_form(config.export, usable, config)
    # Heavy; a mistake in what is above is told before.
    from gradsift.commands.capture import CaptureResult, capture_run, estimate_run
    from gradsift.commands.reference_losses import reference_losses

    if dry_run:
        return estimate_run(run)
    store = capture_run(run, progress)
    if budget is None or not selecting:
        return CaptureResult(store)
    if Need.REFERENCE_LOSSES in needs and not run.has_reference_losses:
        logger.info("this selection needs reference losses: four forward passes over all rows")
        reference_losses(run, progress=progress)
    result = select_run(
        run,
        budget,
        config,
        name=config.name,
        weights=config.weights,
        export=config.export,
        report=config.report,
        details=config.details,
    )
    run.save_config()
    return result
