"""Pool → instances → preliminary epoch → gradient store."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import gather_object
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from gradsift.config import CaptureConfig
from gradsift.data.pool import Pool
from gradsift.data.tokenization import NOTES, Instance, Instances
from gradsift.errors import GradsiftError
from gradsift.gradients.sketch import SketchSpec
from gradsift.stages.listener import SILENT, Listener
from gradsift.provenance import about_pool, about_stack, dropped_row, instance_row
from gradsift.stages.rows import tokenized
from gradsift.store.manifest import Manifest, load_manifest, require_same_identity
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.tables import write_pool_table
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, LM_HEAD
from gradsift.training.adapters import training_of
from gradsift.training.batches import BATCHINGS
from gradsift.training.cost import Estimate, Plan, estimate_cost
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.lora_settings import adapting
from gradsift.training.model import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    require_adapters,
    tokenizer_fingerprint,
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

CHECKPOINTS = "checkpoints"
# These change how a capture is done, not what it records.
NOT_IDENTITY = ("save_steps", "recording")
NO_ESTIMATE = "under FSDP and DeepSpeed no step can be timed before training begins"
STACK = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pyarrow")


def capture_pool(
    pool: Pool,
    source: ModelSource,
    settings: CaptureConfig,
    out: Path,
    listener: Listener = SILENT,
    *,
    on_start: Callable[[], None],
) -> GradientStore:
    """Run the preliminary epoch over a pool and store each instance's gradient statistics.

    Called again it resumes an interrupted capture, and only reads a complete one.

    Args:
        pool: The rows.
        source: The model.
        settings: How to train.
        out: The run folder.
        listener: Is told what happens.
        on_start: Called when the folder is locked for this capture, before training.

    Returns:
        The complete store.

    Raises:
        ValueError: For settings that cannot be, a store of another make, or a failed self-check.
    """
    config = load_config(source)
    require_adapters(source, config, has_adapters=settings.lora is not None)
    require_settings(TrainerSettings(settings.sft, settings.lora, settings.seed))
    tokenizer = load_tokenizer(source)
    instances = _tokenize(pool, tokenizer, config, settings, listener)
    identity = _identity(pool, source, tokenizer, config, instances, settings)
    existing = load_manifest(out)
    if existing is not None:
        require_same_identity(out, existing.identity, identity)
        if existing.complete:
            listener.note(f"{out}: the capture is complete; nothing to do")
            # A kill between the last part and the tidying up leaves them.
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            return read_store(out)
    epoch = _epoch(source, tokenizer, instances, settings, out / CHECKPOINTS)
    _, about = _check_and_estimate(epoch, instances, settings, listener)
    weights = weights_of(epoch.trainer.model)
    stack = (*STACK, BITSANDBYTES) if BITSANDBYTES in weights else STACK
    about = {
        **about_stack(stack),
        **about_pool(pool),
        "model": source.name,
        "weights": weights,
        "notes": dict(instances.notes),
        **about,
    }
    layers = LAYERS if settings.backward else (LM_HEAD,)
    args = epoch.trainer.args
    writer = StoreWriter(
        out,
        Manifest(identity, about, len(instances.items), layers),
        content_width=epoch.content_width,
        sketch_size=settings.sketch_size,
        rank=args.process_index,
        gather=lambda value: gather_object([value]) if args.world_size > 1 else [value],
    )
    with writer:
        if writer.rank == 0:
            on_start()
            write_pool_table(out, _pool_rows(pool, instances))
        if settings.record_at == "during":
            _record_during(epoch, writer, instances, settings, listener)
        else:
            _record_after(epoch, writer, instances, settings, listener)
    return read_store(out)


def estimate_capture(
    pool: Pool, source: ModelSource, settings: CaptureConfig, listener: Listener = SILENT
) -> Estimate:
    """Say what a capture would take, from a few timed steps; nothing is written.

    Args:
        pool: The rows.
        source: The model.
        settings: How to train.
        listener: Is told what happens.

    Returns:
        The estimate.

    Raises:
        ValueError: If a step cannot be timed before training begins (FSDP, DeepSpeed).
    """
    config = load_config(source)
    require_adapters(source, config, has_adapters=settings.lora is not None)
    require_settings(TrainerSettings(settings.sft, settings.lora, settings.seed))
    tokenizer = load_tokenizer(source)
    instances = _tokenize(pool, tokenizer, config, settings, listener)
    with tempfile.TemporaryDirectory() as nowhere:
        epoch = _epoch(source, tokenizer, instances, settings, Path(nowhere))
        estimate, _ = _check_and_estimate(epoch, instances, settings, listener)
    if estimate is None:
        raise GradsiftError(f"`dry_run`: no estimate; {NO_ESTIMATE}.")
    return estimate


def _tokenize(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    settings: CaptureConfig,
    listener: Listener,
) -> Instances:
    instances = tokenized(pool, tokenizer, config, settings)
    _require_instances(pool, instances)
    for line in _notes(instances):
        listener.note(line)
    return instances


def _epoch(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    instances: Instances,
    settings: CaptureConfig,
    work_dir: Path,
) -> PreliminaryEpoch:
    sft = TrainerSettings(settings.sft, settings.lora, settings.seed, batching=settings.batching)
    # While this exists, transformers loads weights for FSDP or ZeRO-3 in parts.
    config = sft_config(sft, work_dir)
    model = load_model(source)
    with adapting(model, settings.lora, weights=weights_of(model)):
        epoch = PreliminaryEpoch(
            model,
            tokenizer,
            _trained_on(instances.items, settings),
            sft,
            SketchSpec(settings.sketch_size, settings.seed),
            work_dir,
        )
    del config
    trainer = epoch.trainer
    require_supported(
        trainer.accelerator, wants_fsdp=bool(trainer.args.fsdp), trains=settings.warmup_fraction > 0
    )
    return epoch


def _trained_on(items: Sequence[Instance], settings: CaptureConfig) -> Sequence[Instance]:
    if settings.warmup_fraction in (0, 1):
        return items
    n_wanted = max(1, round(settings.warmup_fraction * len(items)))
    chosen = sorted(random.Random(settings.seed).sample(range(len(items)), n_wanted))
    return [items[i] for i in chosen]


def _check_and_estimate(
    epoch: PreliminaryEpoch, instances: Instances, settings: CaptureConfig, listener: Listener
) -> tuple[Estimate | None, dict[str, object]]:
    accelerator = epoch.trainer.accelerator
    training = _training(epoch, settings)
    listener.note(f"training: {training}")
    check = epoch.check(wanted=settings.recording, backward=settings.backward)
    for path, why in check.tried.items():
        listener.note(f"not recording {path}: {why}")
    listener.note(f"self-check: {check.sentence()}")
    if check.n_rows == 0:
        listener.note(ONE_PROCESS_CHECK)
    listener.note(f"batching: {BATCHINGS[epoch.trainer.batching]}")
    if check.warning:
        listener.note(f"warning: {check.warning}")
    about = {
        "training": training,
        "self_check": asdict(check),
        "batching": epoch.trainer.batching,
    }
    if divides_weights(accelerator) or uses_deepspeed(accelerator):
        listener.note(f"estimate: none; {NO_ESTIMATE}")
        return None, {**about, "estimate": None}
    trains = settings.warmup_fraction > 0
    trained = _trained_on(instances.items, settings) if trains else []
    n_steps = epoch.n_steps if trains else 0
    n_checkpoints = max(0, n_steps - 1) // epoch.steps_between(settings.save_steps)
    plan = Plan(
        pool_counts=[len(item.input_ids) for item in instances.items],
        trained_counts=[len(item.input_ids) for item in trained],
        n_steps=n_steps,
        n_checkpoints=n_checkpoints + (settings.record_at == "after" and trains),
        scoring=settings.record_at == "after",
        backward=settings.backward,
    )
    estimate = estimate_cost(epoch.trainer, epoch.recorder, plan, seed=settings.seed)
    listener.note(f"estimate: {estimate.sentence()}")
    return estimate, {**about, "estimate": asdict(estimate)}


def _training(epoch: PreliminaryEpoch, settings: CaptureConfig) -> str:
    model, accelerator = epoch.trainer.model, epoch.trainer.accelerator
    what = "nothing, as `preliminary` 0 says"
    if settings.warmup_fraction > 0:
        what = training_of(model, counted=not divides_weights(accelerator))
    return f"{what}; weights {weights_of(model)}"


def _record_during(
    epoch: PreliminaryEpoch,
    writer: StoreWriter,
    instances: Instances,
    settings: CaptureConfig,
    listener: Listener,
) -> None:
    tell = _tell_progress(instances.items, listener)
    result = epoch.run(writer, save_steps=settings.save_steps, on_progress=tell)
    if result.resumed_at_step:
        listener.note(f"resumed after {result.resumed_at_step} optimizer steps")
    if result.n_non_finite:
        listener.note(
            f"{result.n_non_finite} rows have a gradient that is not finite: they are excluded "
            f"from selection, and {result.n_steps_skipped} optimizer steps were left out"
        )


def _record_after(
    epoch: PreliminaryEpoch,
    writer: StoreWriter,
    instances: Instances,
    settings: CaptureConfig,
    listener: Listener,
) -> None:
    if settings.warmup_fraction > 0:
        trained = _trained_on(instances.items, settings)
        listener.note(f"training on {len(trained)} of {len(instances.items)} instances")
        epoch.train(
            save_steps=settings.save_steps,
            on_progress=_tell_progress(trained, listener),
        )
        listener.note("scoring all instances")
    n_non_finite = score(
        epoch.trainer,
        epoch.recorder,
        instances.items,
        writer,
        backward=settings.backward,
        on_progress=_tell_progress(instances.items, listener),
    )
    epoch.clean_up()
    if n_non_finite:
        listener.note(
            f"{n_non_finite} rows have a gradient that is not finite: they are excluded from "
            "selection"
        )


def _tell_progress(items: Sequence[Instance], listener: Listener) -> Callable[[int, int], None]:
    n_tokens = sum(len(item.input_ids) for item in items)
    return lambda n, tokens: listener.progress(n, len(items), tokens, n_tokens)


def _require_instances(pool: Pool, instances: Instances) -> None:
    if instances.items:
        return
    reason, detail = next(iter(instances.dropped.values()))
    raise GradsiftError(
        f"{pool.source.name}: none of the {len(pool.rows)} rows can be trained on; "
        f"the first one: {reason}: {detail}"
    )


def _notes(instances: Instances) -> list[str]:
    lines = [f"{n} {NOTES[name]}" for name, n in instances.notes.items() if n]
    reasons = Counter(reason for reason, _ in instances.dropped.values())
    for reason, n in reasons.items():
        at, detail = next((i, d) for i, (r, d) in instances.dropped.items() if r == reason)
        lines.append(f"{n} rows dropped, {reason}; the first, {at}: {detail}")
    return lines


def _identity(
    pool: Pool,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    instances: Instances,
    settings: CaptureConfig,
) -> dict[str, object]:
    content = hashlib.sha256()
    for instance in instances.items:
        row = [instance.instance_id, instance.input_ids, instance.labels]
        content.update(json.dumps(row).encode())
    choices = {key: value for key, value in asdict(settings).items() if key not in NOT_IDENTITY}
    if settings.batching == "auto":
        del choices["batching"]  # It follows from the model.
    return {
        "model": model_fingerprint(source, config),
        "dtype": source.dtype,
        # Stores from before there was this setting stay what they are.
        **({} if source.load_in is None else {"load_in": source.load_in}),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": f"sha256 {pool.sha256[:16]}",
        "instances": f"sha256 {content.hexdigest()[:16]}",
        **json.loads(json.dumps(choices, sort_keys=True, default=str)),
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
