"""The stages in order; what is done is skipped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.commands.select import Files, SelectResult, select_from_store
from gradsift.config import CONFIG_NAME, RunConfig, save, validated
from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.opening import load_rows, model_and_settings, open_run
from gradsift.selection.constraints import Budget, parse_budget
from gradsift.selection.strategies.base import Need
from gradsift.stages.listener import SILENT, Listener
from gradsift.store.manifest import MANIFEST_NAME
from gradsift.store.reader import GradientStore

if TYPE_CHECKING:
    from gradsift.commands.check import ModelCheck
    from gradsift.commands.reference_losses import LossesResult
    from gradsift.training.cost import Estimate
    from gradsift.training.memory_plan import MemoryPlan


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


def capture(
    model: str,
    pool: Pool,
    *,
    out: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    load_in: str | None = None,
    max_length: int = 1024,
    truncation: str = "keep_start",
    sft: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    sketch_size: int = 1024,
    signal: str | None = None,
    when: str | None = None,
    preliminary: float = 1.0,
    recording: str = "auto",
    save_steps: int | None = None,
    batching: str = "auto",
    listener: Listener = SILENT,
) -> GradientStore:
    """Run the preliminary epoch over a pool and record each instance's gradient.

    Called again with the same arguments it resumes; a complete capture is only read.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        pool: The rows, from `load_pool`.
        out: The run folder.
        revision: Of a hub model.
        dtype: Of the weights: float32, bfloat16 or float16.
        trust_remote_code: Whether code that comes with the model may run.
        load_in: Quantise the weights to 4bit or 8bit while loading; needs LoRA. None leaves them.
        max_length: Tokens after which an instance is truncated.
        truncation: keep_start, keep_end, or drop.
        sft: SelectionConfig for trl's SFTConfig.
        lora: SelectionConfig for peft's LoraConfig; None trains all parameters.
        seed: Of the data order and everything drawn.
        sketch_size: Numbers of a gradient sketch, a power of two up to 2,048.
        signal: full (both layers) or head (no backward pass); None: head when scoring.
        when: during the preliminary epoch, or after it in a scoring pass; None: after if `signal`
            or `preliminary` ask for it.
        preliminary: Fraction of the pool that the preliminary epoch trains on; 0 for none.
        recording: auto, fused, fused-intercepted, hooked or intercepted.
        save_steps: Optimizer updates between two parts of the store; None makes about eight.
        batching: How rows are put into micro-batches: packed, by_length, random (padded), or auto:
            packed if the model keeps packed rows apart, else by length.
        listener: Is told what happens.

    Returns:
        The complete store.

    Raises:
        ValueError: For settings that cannot be, a store of another make, or a failed self-check.
    """
    config = validated(
        {
            "data": pool.source.name,
            **pool.read_as,
            "model": str(model),
            "out": str(out),
            "revision": revision,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "load_in": load_in,
            "max_length": max_length,
            "truncation": truncation,
            "sft": dict(sft or {}),
            "lora": False if lora is None else lora,
            "seed": seed,
            "sketch_size": sketch_size,
            "signal": signal,
            "record_at": when,
            "warmup_fraction": preliminary,
            "recording": recording,
            "save_steps": save_steps,
            "batching": batching,
        }
    )
    return _capture(config, pool, listener)


def check(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    load_in: str | None = None,
    sft: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | bool = False,
    recording: str = "auto",
) -> ModelCheck:
    """Compare two recorded rows with autograd on a model, in the trainer's own configuration.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        revision: Of a hub model.
        dtype: Of the weights: float32, bfloat16 or float16.
        trust_remote_code: Whether code that comes with the model may run.
        load_in: Quantise the weights to 4bit or 8bit while loading; needs LoRA. None leaves them.
        sft: SelectionConfig for trl's SFTConfig.
        lora: SelectionConfig for peft's LoraConfig, or True for its defaults; False trains all parameters.
        recording: auto, fused, fused-intercepted, hooked or intercepted.

    Returns:
        Which way of recording is exact, and the worst relative errors.

    Raises:
        ValueError: If none is.
    """
    from gradsift.commands.check import check_model
    from gradsift.training.model import find_model, without_progress_bars
    from gradsift.training.trainer_settings import TrainerSettings

    source = find_model(model, revision, dtype, trust_remote_code, load_in)
    settings = TrainerSettings(
        sft or {}, None if lora is False else {} if lora is True else lora, 0
    )
    with without_progress_bars():
        return check_model(source, settings, recording=recording)


def plan(
    model: str,
    *,
    lora: bool | None = None,
    load_in: str | None = None,
    revision: str | None = None,
    dtype: str = "bfloat16",
    trust_remote_code: bool = False,
    **settings: Any,
) -> MemoryPlan:
    """Count what a capture would take on each GPU, from a model's configuration alone.

    Args:
        model: A hub id or a folder with config.json.
        lora: True for LoRA only, False for all parameters only, None for all ways.
        load_in: 4bit or 8bit, for QLoRA only.
        revision: Of a hub model.
        dtype: Of the weights: float32, bfloat16 or float16.
        trust_remote_code: Whether code that comes with the model may run.
        settings: Of `PlanSettings`: gpus, gpu_memory, batch_size, max_length, lora_rank.

    Returns:
        What fits where; planned, not measured.

    Raises:
        ValueError: For a configuration that cannot be read, or settings that cannot be.
    """
    from gradsift.training.memory_plan import TRAININGS, PlanSettings, plan_memory
    from gradsift.training.model import DTYPES, find_model, load_config

    trainings = TRAININGS if lora is None else ("LoRA",) if lora else ("full",)
    if load_in is not None:
        if lora is False:
            raise GradsiftError("`full` trains all parameters, `load_in` freezes them: give one.")
        trainings, settings = ("QLoRA",), {**settings, "load_in": load_in}
    source = find_model(model, revision, dtype, trust_remote_code)
    settings["weight_bytes"] = DTYPES[dtype].itemsize
    planned = PlanSettings(trainings, **settings)
    return plan_memory(model, load_config(source), planned)


def losses(run: str | Path, listener: Listener = SILENT) -> LossesResult:
    """Make the further pass that perplexity-middle, ifd-loss and ifd-perplexity need.

    Two forward passes over every row with the untrained model. Called again it resumes.

    Args:
        run: A run folder that `capture` made.
        listener: Is told what happens.

    Returns:
        What was computed.

    Raises:
        ValueError: If it is no such folder, or rows or model changed since.
    """
    # Heavy, and only needed here.
    from gradsift.commands.reference_losses import compute_losses
    from gradsift.training.model import without_progress_bars

    store, config = open_run(run)
    pool = load_rows(config)
    with without_progress_bars():
        source, settings = model_and_settings(config, listener)
        return compute_losses(store, pool, source, settings, listener)


def run_stages(
    config: RunConfig, listener: Listener = SILENT, *, selecting: bool = True, dry_run: bool = False
) -> CaptureResult | DryRunResult | SelectResult:
    """Do what a configuration says: load the pool, capture, select.

    Args:
        config: The settings.
        listener: Is told what happens.
        selecting: Whether to select after capturing.
        dry_run: Stop after the cost estimate.

    Returns:
        The result of the last stage.

    Raises:
        ValueError: For whatever is wrong with the data, the settings or the run folder.
    """
    budget = None
    if config.budget is not None:
        budget = parse_budget(config.budget)
    elif selecting and not dry_run:
        raise GradsiftError("'budget' is missing: give `budget` 50%, 500 or 20000tok.")
    pool = load_rows(config)
    for line in pool.notes():
        listener.note(line)
    if budget is not None and budget.kind != "tokens":
        # Rows that tokenizing drops are not known yet; what is too much for all is too much.
        budget.resolve(sum(row.example is not None for row in pool.rows), 0)
    if dry_run:
        return DryRunResult(_estimate(config, pool, listener))
    store = _capture(config, pool, listener)
    if budget is None or not selecting:
        return CaptureResult(store)
    result = _select_with_losses(config, budget, store, listener)
    save(config, store.folder)
    return result


def _select_with_losses(
    config: RunConfig, budget: Budget, store: GradientStore, listener: Listener
) -> SelectResult:
    settings = config.selection_settings()
    if Need.LOSSES in settings.needs:
        listener.note("this selection needs a further pass over all rows, forward only")
        save(config, store.folder)
        losses(store.folder, listener)
    files = Files(config.anchor, config.target, config.keep, config.drop)
    return select_from_store(
        store, budget, settings, files, name=config.name, weights=config.weights
    )


def _capture(config: RunConfig, pool: Pool, listener: Listener) -> GradientStore:
    # Heavy, and only needed here.
    from gradsift.commands.capture import capture_pool
    from gradsift.training.model import without_progress_bars

    out = Path(config.out)
    if (out / CONFIG_NAME).exists() and not (out / MANIFEST_NAME).exists():
        raise GradsiftError(
            f"{out} holds a {CONFIG_NAME} but no run: it would be overwritten. Use another `out`."
        )
    with without_progress_bars():
        source, settings = model_and_settings(config, listener)
        # The settings are saved once it is sure that this folder is theirs.
        return capture_pool(
            pool, source, settings, out, listener, on_start=lambda: save(config, out)
        )


def _estimate(config: RunConfig, pool: Pool, listener: Listener) -> Estimate:
    from gradsift.commands.capture import estimate_capture
    from gradsift.training.model import without_progress_bars

    with without_progress_bars():
        return estimate_capture(pool, *model_and_settings(config, listener), listener)
