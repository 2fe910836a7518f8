"""Capture: pool → instances → preliminary epoch → gradient store."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.config import CaptureConfig, ModelConfig, without_reports
from gradsift.config_files import CONFIG_NAME, with_absolute_files
from gradsift.console import shows_progress
from gradsift.data.containers.sources import Source, require_same_files
from gradsift.data.tokenization import Instances
from gradsift.errors import GradsiftError
from gradsift.progress import Progress, is_first_process, no_progress
from gradsift.provenance import (
    about_pool,
    about_stack,
    identity_of,
    pool_rows,
    save_pool,
    signed,
    with_rows_named,
)
from gradsift.run_folder import MENDS_CONFIG, Run
from gradsift.schema import takes
from gradsift.seals import DamagedError
from gradsift.store.manifest import (
    PARTS_FOLDER,
    Manifest,
    load_manifest,
    require_no_others,
    require_same_identity,
)
from gradsift.store.reader import GradientStore, fault_of
from gradsift.store.tables import POOL_NAME, digest_of_pool, pool_table, read_pool_table
from gradsift.training.checkpoint import remove_checkpoints
from gradsift.training.cost import CostEstimate
from gradsift.training.loss_curve import first_and_last
from gradsift.training.model import (
    require_adapters,
    without_progress_bars,
)
from gradsift.training.positions import require_positions
from gradsift.training.preliminary import NO_ESTIMATE, check_and_estimate, prepare, train_and_record
from gradsift.training.quantized import BITSANDBYTES
from gradsift.training.settings.tokenizer import require_eos_in_rows
from gradsift.training.settings.trainer import TrainerSettings, require_settings
from gradsift.wording import joined

CHECKPOINTS = "checkpoints"
STACK = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pyarrow")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureResult:
    """A complete capture, as the command line tells of it."""

    store: GradientStore

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        manifest = self.store.manifest
        return {
            "run": str(self.store.folder),
            "n_instances": manifest.n_instances,
            "n_non_finite": int((~self.store.finite).sum()),
            **{key: self.store.about(key) for key in ("self_check", "estimate", "seconds")},
            # Nothing is trained where `warmup_fraction` is 0.
            "training_loss": first_and_last(manifest.about.get("loss_curve", ())),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        folder = self.store.folder
        return joined(
            [
                f"{self.store.manifest.n_instances} instances recorded in {folder}",
                f"next: gradsift select {shlex.quote(str(folder))} --budget 50%",
            ]
        )


@dataclass(frozen=True)
class DryRunResult:
    """What a capture would take, as the command line tells of it."""

    estimate: CostEstimate

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"estimate": vars(self.estimate)}

    def text(self) -> str:
        """Return what a person wants to know."""
        return f"estimate: {self.estimate.sentence()}"


@takes(ModelConfig, CaptureConfig)
@shows_progress
def capture(
    model: str | Path,
    pool: Any,
    *,
    out: str | Path,
    progress: Progress | bool = True,
    **settings: Any,
) -> GradientStore:
    """Run the preliminary epoch over a pool and record each instance's gradient.

    Called again with the same arguments it resumes; a complete capture is only read.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        pool: The rows, from `load_pool`; or what it takes, such as a datasets.Dataset.
        out: The run folder.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: Which weights, and how to capture; see Settings.

    Returns:
        The complete store.

    Raises:
        GradsiftError: For settings that cannot be, a store made with other settings, or a failed
            self-check.
    """
    return capture_run(Run.new(model, pool, out=out, **settings), progress)


def capture_run(run: Run, progress: Progress = no_progress) -> GradientStore:
    """Capture the pool of a run, or what is left of it.

    Args:
        run: Its settings and its pool.
        progress: As for `capture`.

    Returns:
        The complete store.

    Raises:
        GradsiftError: As for `capture`.
    """
    _require_settings(run)
    out, config, pool = run.folder, run.config, run.pool
    require_no_others(out)
    with without_progress_bars():
        instances = _usable_instances(run)
        identity = identity_of(run.model, run.model_config, run.tokenizer, pool, instances, config)
        existing = load_manifest(out)
        if existing is not None:
            if existing.identity.get("data") != identity["data"] and "data" in existing.about:
                require_same_files(Source.of(existing.about["data"]))
            # An earlier gradsift kept the names of files as they were given.
            sft = without_reports(with_absolute_files(existing.identity.get("sft") or {}))
            require_same_identity(out, existing.identity | {"sft": sft}, identity)
            if existing.complete and _is_whole(run, existing):
                logger.info(f"{out}: the capture is complete; nothing to do")
                if is_first_process():
                    # A kill between the last part and the tidying up leaves them.
                    remove_checkpoints(out / CHECKPOINTS)
                    rows = pool_rows(pool, instances)
                    _keep_as_own(run, existing, rows)
                    _mend(run, rows)
                return run.store
        epoch = prepare(run.model, run.tokenizer, instances.items, config, out / CHECKPOINTS)
        _, about = check_and_estimate(epoch, instances.items, config)
        packages = (*STACK, BITSANDBYTES) if BITSANDBYTES in about["weights"] else STACK
        about |= {**about_stack(packages), **about_pool(pool, out)}
        about |= {"model": run.model.name, "notes": dict(instances.notes)}
        rows = pool_rows(pool, instances)
        manifest = Manifest(identity, about, len(instances.items), config.layers_recorded)
        manifest = signed(manifest, rows)
        with epoch.writer(out, manifest, config.sketch_size) as writer:
            if writer.rank == 0:
                # The settings are saved once it is sure that this folder is theirs.
                run.save_config()
                save_pool(out, pool, rows)
            train_and_record(epoch, instances.items, config, writer, progress)
            if writer.rank == 0:
                _keep_as_own(run, writer.manifest, rows)
    return run.store


def _is_whole(run: Run, manifest: Manifest) -> bool:
    """Return whether the parts of a complete capture are those that were written."""
    faults = {part.file: fault_of(run.folder, part) for part in manifest.parts}
    for file, fault in faults.items():
        if fault is not None:
            logger.warning(f"{run.folder / PARTS_FOLDER / file} {fault}: it is recorded again")
    return not any(faults.values())


def _mend(run: Run, rows: Sequence[dict[str, object]]) -> None:
    """Write again what a complete capture keeps beside the gradients, where it is not whole."""
    if _needs_mending(run.folder / CONFIG_NAME, lambda _: Run(run.folder).config):
        run.save_config()

    def read_pool(path: Path) -> None:
        if digest_of_pool(read_pool_table(run.folder)) != digest_of_pool(pool_table(rows)):
            raise DamagedError(path, "does not say what became of these rows")

    if _needs_mending(run.folder / POOL_NAME, read_pool):
        save_pool(run.folder, run.pool, rows)


def _needs_mending(path: Path, read: Callable[[Path], object]) -> bool:
    if not path.exists():
        logger.warning(f"{path}: is missing. It is made again.")
        return True
    try:
        read(path)
    except DamagedError as error:
        logger.warning(f"{error.found} It is made again.")
    except GradsiftError as error:
        found = getattr(error.__cause__, "found", str(error).removesuffix(MENDS_CONFIG).rstrip())
        logger.warning(f"{found} It is made again.")
    else:
        return False
    return True


def _keep_as_own(run: Run, manifest: Manifest, rows: Sequence[dict[str, object]]) -> None:
    """Make a capture that was begun elsewhere the user's own, who named the same rows."""
    own = with_rows_named(manifest, run.pool, run.folder, rows)
    if own == manifest:
        return
    try:
        own.save(run.folder)
        run.save_config()
    except GradsiftError as error:
        logger.warning(f"{error} Until then other commands will ask for `data`.")


def estimate_run(run: Run) -> DryRunResult:
    """Say what a capture would take, from a few timed steps; nothing is written.

    Args:
        run: Its settings and its pool.

    Returns:
        The estimate.

    Raises:
        GradsiftError: If a step cannot be timed before training begins (FSDP, DeepSpeed).
    """
    _require_settings(run)
    with without_progress_bars(), tempfile.TemporaryDirectory() as nowhere:
        items = _usable_instances(run).items
        epoch = prepare(run.model, run.tokenizer, items, run.config, Path(nowhere))
        estimate, _ = check_and_estimate(epoch, items, run.config)
    if estimate is None:
        raise GradsiftError(f"`dry_run`: no estimate; {NO_ESTIMATE}.")
    return DryRunResult(estimate)


def _require_settings(run: Run) -> None:
    """Refuse what cannot be before the rows are read."""
    lora = run.config.lora_settings()
    require_settings(TrainerSettings(run.config.sft, lora, run.config.seed))
    with without_progress_bars():
        require_adapters(run.model, run.model_config, has_adapters=lora is not None)


def _usable_instances(run: Run) -> Instances:
    instances, pool = run.tokenized(), run.pool
    if not instances.items:
        reason, detail = next(iter(instances.dropped.values()))
        raise GradsiftError(
            f"{pool.source.name}: none of the {len(pool.rows)} rows can be trained on; "
            f"the first one: {reason}: {detail}"
        )
    require_eos_in_rows(run.tokenizer, run.config.sft, instances.items)
    require_positions(run.model.name, run.model_config, instances.items, run.config.max_length)
    for line in instances.lines():
        logger.info(line)
    return instances
