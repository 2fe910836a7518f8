"""Capture: pool → instances → preliminary epoch → gradient store."""

from __future__ import annotations

import json
import logging
import random
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from gradsift.config import CaptureConfig, ModelConfig, takes
from gradsift.config_files import CONFIG_NAME, save_config
from gradsift.data.pool import Pool
from gradsift.data.tokenization import NOTES, Instance, Instances
from gradsift.errors import GradsiftError
from gradsift.gradients.sketch import SketchSpec
from gradsift.progress import Progress, no_progress
from gradsift.provenance import about_pool, about_stack, dropped_row, instance_row
from gradsift.run_folder import Run
from gradsift.store.manifest import MANIFEST_NAME, Manifest, load_manifest, require_same_identity
from gradsift.store.reader import GradientStore
from gradsift.store.tables import write_pool_table
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, LM_HEAD
from gradsift.training.adapters import training_of
from gradsift.training.batches import BATCHINGS
from gradsift.training.cost import Estimate, estimate_cost
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.model import (
    load_model,
    model_fingerprint,
    require_adapters,
    tokenizer_fingerprint,
    without_progress_bars,
)
from gradsift.training.quantized import BITSANDBYTES, weights_of
from gradsift.training.record_writer import score
from gradsift.training.sharding import (
    ONE_PROCESS_CHECK,
    divides_weights,
    require_supported,
    uses_deepspeed,
)
from gradsift.training.trainer_settings import TrainerSettings, require_settings, sft_config
from gradsift.utils import short_sha256

CHECKPOINTS = "checkpoints"
NO_ESTIMATE = "under FSDP and DeepSpeed no step can be timed before training begins"
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
            **{key: manifest.about[key] for key in ("self_check", "estimate", "seconds")},
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        return (
            f"{self.store.manifest.n_instances} instances recorded in {self.store.folder}\n"
            f"next: gradsift select {shlex.quote(str(self.store.folder))} --budget 50%"
        )


@dataclass(frozen=True)
class DryRunResult:
    """What a capture would take, as the command line tells of it."""

    estimate: Estimate

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"estimate": vars(self.estimate)}

    def text(self) -> str:
        """Return what a person wants to know."""
        return f"estimate: {self.estimate.sentence()}"


@takes(ModelConfig, CaptureConfig)
def capture(
    model: str | Path,
    pool: Pool,
    *,
    out: str | Path,
    progress: Progress = no_progress,
    **settings: Any,
) -> GradientStore:
    """Run the preliminary epoch over a pool and record each instance's gradient.

    Called again with the same arguments it resumes; a complete capture is only read.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        pool: The rows, from `load_pool`.
        out: The run folder.
        progress: Called with rows done, rows in all, tokens done, tokens in all.
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
    out = run.folder
    if (out / CONFIG_NAME).exists() and not (out / MANIFEST_NAME).exists():
        raise GradsiftError(
            f"{out} holds a {CONFIG_NAME} but no run: it would be overwritten. Use another `out`."
        )
    with without_progress_bars():
        instances = _usable_instances(run)
        identity = _identity(run, instances)
        existing = load_manifest(out)
        if existing is not None:
            require_same_identity(out, existing.identity, identity)
            if existing.complete:
                logger.info(f"{out}: the capture is complete; nothing to do")
                # A kill between the last part and the tidying up leaves them.
                shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
                return run.store
        epoch = _epoch(run, instances, out / CHECKPOINTS)
        _, about = _check_and_estimate(epoch, run.config, instances)
        with _writer(run, epoch, instances, identity, about) as writer:
            if writer.rank == 0:
                # The settings are saved once it is sure that this folder is theirs.
                save_config(run.config, out)
                write_pool_table(out, _pool_rows(run.pool, instances))
            if run.config.scores_after:
                _record_after(epoch, writer, run.config, instances, progress)
            else:
                _record_during(epoch, writer, run.config, progress)
    return run.store


def estimate_run(run: Run) -> DryRunResult:
    """Say what a capture would take, from a few timed steps; nothing is written.

    Args:
        run: Its settings and its pool.

    Returns:
        The estimate.

    Raises:
        GradsiftError: If a step cannot be timed before training begins (FSDP, DeepSpeed).
    """
    with without_progress_bars():
        instances = _usable_instances(run)
        with tempfile.TemporaryDirectory() as nowhere:
            epoch = _epoch(run, instances, Path(nowhere))
            estimate, _ = _check_and_estimate(epoch, run.config, instances)
    if estimate is None:
        raise GradsiftError(f"`dry_run`: no estimate; {NO_ESTIMATE}.")
    return DryRunResult(estimate)


def _usable_instances(run: Run) -> Instances:
    lora = run.config.lora_settings()
    require_adapters(run.model, run.model_config, has_adapters=lora is not None)
    require_settings(TrainerSettings(run.config.sft, lora, run.config.seed))
    instances, pool = run.tokenized(), run.pool
    if not instances.items:
        reason, detail = next(iter(instances.dropped.values()))
        raise GradsiftError(
            f"{pool.source.name}: none of the {len(pool.rows)} rows can be trained on; "
            f"the first one: {reason}: {detail}"
        )
    for name, n in instances.notes.items():
        if n:
            logger.info(f"{n} {NOTES[name]}")
    reasons = Counter(reason for reason, _ in instances.dropped.values())
    for reason, n in reasons.items():
        at, detail = next((i, d) for i, (r, d) in instances.dropped.items() if r == reason)
        logger.info(f"{n} rows dropped, {reason}; the first, {at}: {detail}")
    return instances


def _epoch(run: Run, instances: Instances, work_dir: Path) -> PreliminaryEpoch:
    config, lora = run.config, run.config.lora_settings()
    settings = TrainerSettings(config.sft, lora, config.seed, batching=config.batching)
    # While this exists, transformers loads weights for FSDP or ZeRO-3 in parts.
    parts = sft_config(settings, work_dir)
    model = load_model(run.model)
    epoch = PreliminaryEpoch(
        model,
        run.tokenizer,
        _trained_on(instances.items, config),
        settings,
        SketchSpec(config.sketch_size, config.seed),
        work_dir,
    )
    del parts
    require_supported(
        epoch.trainer.accelerator,
        wants_fsdp=bool(epoch.trainer.args.fsdp),
        trains=config.warmup_fraction > 0,
    )
    return epoch


def _trained_on(items: Sequence[Instance], config: CaptureConfig) -> Sequence[Instance]:
    if config.warmup_fraction in (0, 1):
        return items
    n_trained = max(1, round(config.warmup_fraction * len(items)))
    chosen = sorted(random.Random(config.seed).sample(range(len(items)), n_trained))
    return [items[i] for i in chosen]


def _check_and_estimate(
    epoch: PreliminaryEpoch, config: CaptureConfig, instances: Instances
) -> tuple[Estimate | None, dict[str, object]]:
    accelerator = epoch.trainer.accelerator
    training = _training(epoch, config)
    logger.info(f"training: {training}")
    check = epoch.check(method=config.recording, backward=config.backward)
    for method, why in check.tried.items():
        logger.info(f"not recording {method}: {why}")
    logger.info(f"self-check: {check.sentence()}")
    if check.n_rows == 0:
        logger.info(ONE_PROCESS_CHECK)
    logger.info(f"batching: {BATCHINGS[epoch.trainer.batching]}")
    if check.warning:
        logger.warning(check.warning)
    about = {
        "training": training,
        "self_check": asdict(check),
        "batching": epoch.trainer.batching,
    }
    if divides_weights(accelerator) or uses_deepspeed(accelerator):
        logger.info(f"estimate: none; {NO_ESTIMATE}")
        return None, {**about, "estimate": None}
    estimate = estimate_cost(epoch, instances.items, config)
    logger.info(f"estimate: {estimate.sentence()}")
    return estimate, {**about, "estimate": asdict(estimate)}


def _training(epoch: PreliminaryEpoch, config: CaptureConfig) -> str:
    model = epoch.trainer.model
    trained = "nothing, as `warmup_fraction` 0 says"
    if config.warmup_fraction > 0:
        trained = training_of(model, counted=not divides_weights(epoch.trainer.accelerator))
    return f"{trained}; weights {weights_of(model)}"


def _writer(
    run: Run,
    epoch: PreliminaryEpoch,
    instances: Instances,
    identity: dict[str, object],
    about: dict[str, object],
) -> StoreWriter:
    weights = weights_of(epoch.trainer.model)
    about = {
        **about_stack((*STACK, BITSANDBYTES) if BITSANDBYTES in weights else STACK),
        **about_pool(run.pool),
        "model": run.model.name,
        "weights": weights,
        "notes": dict(instances.notes),
        **about,
    }
    layers, args = LAYERS if run.config.backward else (LM_HEAD,), epoch.trainer.args
    return StoreWriter(
        run.folder,
        Manifest(identity, about, len(instances.items), layers),
        content_width=epoch.content_width,
        sketch_size=run.config.sketch_size,
        rank=args.process_index,
        gather=lambda value: gather_object([value]) if args.world_size > 1 else [value],
    )


def _record_during(
    epoch: PreliminaryEpoch, writer: StoreWriter, config: CaptureConfig, progress: Progress
) -> None:
    result = epoch.run(writer, save_steps=config.save_steps, progress=progress)
    if result.resumed_at_step:
        logger.info(f"resumed after {result.resumed_at_step} optimizer steps")
    if result.n_non_finite:
        logger.warning(
            f"{result.n_non_finite} rows have a gradient that is not finite: they are excluded "
            f"from selection, and {result.n_steps_skipped} optimizer steps were left out"
        )


def _record_after(
    epoch: PreliminaryEpoch,
    writer: StoreWriter,
    config: CaptureConfig,
    instances: Instances,
    progress: Progress,
) -> None:
    if config.warmup_fraction > 0:
        n_trained = len(epoch.instances)
        logger.info(f"training on {n_trained} of {len(instances.items)} instances")
        epoch.train(save_steps=config.save_steps, progress=progress)
        logger.info("scoring all instances")
    n_non_finite = score(
        epoch.trainer,
        epoch.recorder,
        instances.items,
        writer,
        backward=config.backward,
        progress=progress,
    )
    epoch.clean_up()
    if n_non_finite:
        logger.warning(
            f"{n_non_finite} rows have a gradient that is not finite: they are excluded from "
            "selection"
        )


def _identity(run: Run, instances: Instances) -> dict[str, object]:
    rows = ([item.instance_id, item.input_ids, item.labels] for item in instances.items)
    source = run.model
    return {
        "model": model_fingerprint(source, run.model_config),
        "dtype": source.dtype,
        # Stores from before there was this setting stay what they are.
        **({} if source.load_in is None else {"load_in": source.load_in}),
        "tokenizer": tokenizer_fingerprint(run.tokenizer),
        "data": f"sha256 {run.pool.sha256[:16]}",
        "instances": f"sha256 {short_sha256(map(json.dumps, rows))}",
        **json.loads(json.dumps(run.config.identity, sort_keys=True, default=str)),
    }


def _pool_rows(pool: Pool, instances: Instances) -> list[dict[str, object]]:
    by_id = {instance.instance_id: instance for instance in instances.items}
    rows = []
    for row in pool.rows:
        instance = by_id.get(row.instance_id) if row.example is not None else None
        if instance is None:
            reason, detail = instances.dropped.get(row.instance_id, (row.reason, row.detail))
            rows.append(dropped_row(row, reason, detail))
        else:
            rows.append(
                instance_row(
                    row,
                    n_tokens=len(instance.input_ids),
                    n_response_tokens=instance.n_response_tokens,
                    truncated=instance.truncated,
                )
            )
    return rows
