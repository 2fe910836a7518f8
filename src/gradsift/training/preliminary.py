"""A capture's training: prepared, checked, estimated, and recorded during the epoch or after it."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gradsift.config import CaptureConfig
from gradsift.data.tokenization import Instance
from gradsift.gradients.sketch import SketchSpec
from gradsift.progress import Progress, stage
from gradsift.store.writer import StoreWriter
from gradsift.training.adapters import training_of
from gradsift.training.batches import BATCHINGS
from gradsift.training.cost import CostEstimate, estimate_cost
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.loss_curve import first_and_last, loss_sentence
from gradsift.training.model import ModelSource, load_model
from gradsift.training.quantized import weights_of
from gradsift.training.reports import run_name
from gradsift.training.scoring import record_with_frozen_weights
from gradsift.training.settings.trainer import TrainerSettings, sft_config
from gradsift.training.sharding import (
    ONE_PROCESS_CHECK,
    require_supported,
    shards_weights,
    uses_deepspeed,
)

NO_ESTIMATE = "under FSDP and DeepSpeed no step can be timed before training begins"

logger = logging.getLogger(__name__)


def prepare(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    instances: Sequence[Instance],
    config: CaptureConfig,
    work_dir: Path,
) -> PreliminaryEpoch:
    """Load the model and set the trainer up, on as much of the pool as it is trained on."""
    lora = config.lora_settings()
    settings = TrainerSettings(config.sft, lora, config.seed, batching=config.batching)
    # While this exists, transformers loads weights for FSDP or ZeRO-3 in parts.
    parts = sft_config(settings, work_dir)
    epoch = PreliminaryEpoch(
        load_model(source),
        tokenizer,
        _trained_on(instances, config),
        settings,
        SketchSpec(config.sketch_size, config.seed),
        work_dir,
        called=run_name(config.sft, work_dir.parent.name, "preliminary epoch"),
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


def check_and_estimate(
    epoch: PreliminaryEpoch, instances: Sequence[Instance], config: CaptureConfig
) -> tuple[CostEstimate | None, dict[str, object]]:
    """Find the recording method that is exact, and time a few steps.

    Returns:
        The estimate, None where no step can be timed; and what the manifest says of all this.
    """
    trainer = epoch.trainer
    training = _training_description(epoch, config)
    logger.info(f"training: {training}")
    check = epoch.check(method=config.recording, backward=config.backward)
    for method, why in check.tried.items():
        logger.info(f"not recording {method}: {why}")
    logger.info(f"self-check: {check.sentence()}")
    if check.n_rows == 0:
        logger.info(ONE_PROCESS_CHECK)
    logger.info(f"batching: {BATCHINGS[trainer.batching]}")
    if check.warning:
        logger.warning(check.warning)
    estimate = None
    if shards_weights(trainer.accelerator) or uses_deepspeed(trainer.accelerator):
        logger.info(f"estimate: none; {NO_ESTIMATE}")
    else:
        estimate = estimate_cost(epoch, instances, config)
        logger.info(f"estimate: {estimate.sentence()}")
    weights = weights_of(trainer.model)
    return estimate, {
        "weights": weights,
        "training": training,
        "self_check": asdict(check),
        "batching": trainer.batching,
        "estimate": None if estimate is None else asdict(estimate),
    }


def _training_description(epoch: PreliminaryEpoch, config: CaptureConfig) -> str:
    model = epoch.trainer.model
    trained = "nothing, as `warmup_fraction: 0` says"
    if config.warmup_fraction > 0:
        trained = training_of(model, counted=not shards_weights(epoch.trainer.accelerator))
    return f"{trained}; weights {weights_of(model)}"


def train_and_record(
    epoch: PreliminaryEpoch,
    instances: Sequence[Instance],
    config: CaptureConfig,
    writer: StoreWriter,
    progress: Progress,
) -> None:
    """Train and record: during the epoch, or every instance in a scoring pass afterwards."""
    if config.scores_after:
        n_non_finite, consequence = _train_and_score(epoch, instances, config, writer, progress), ""
    else:
        result = epoch.run(writer, save_steps=config.save_steps, progress=progress)
        logger.info(loss_sentence(first_and_last(result.loss_curve)))
        n_non_finite = result.n_non_finite
        consequence = f", and {result.n_steps_skipped} optimizer steps were left out"
    if n_non_finite:
        logger.warning(
            f"{n_non_finite} rows have a gradient that is not finite: they are excluded from "
            f"selection{consequence}"
        )


def _train_and_score(
    epoch: PreliminaryEpoch,
    instances: Sequence[Instance],
    config: CaptureConfig,
    writer: StoreWriter,
    progress: Progress,
) -> int:
    about: dict[str, object] = {}
    if config.warmup_fraction > 0:
        logger.info(f"training on {len(epoch.instances)} of {len(instances)} instances")
        key = writer.manifest.key
        done = epoch.train(made_with=key, save_steps=config.save_steps, progress=progress)
        about["loss_curve"] = done.loss_curve
        logger.info(loss_sentence(first_and_last(done.loss_curve)))
        logger.info("scoring all instances")
    n_non_finite = record_with_frozen_weights(
        epoch.trainer,
        epoch.recorder,
        instances,
        writer,
        backward=config.backward,
        about=about,
        progress=stage(progress, "scored"),
    )
    epoch.clean_up()
    return n_non_finite
