"""Training without recording, resumed from the last whole checkpoint.

Fine-tune a model on a subset, as trl does, and leave it ready for evaluation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.files import writing
from gradsift.progress import Progress, no_progress, stage, tell_kept
from gradsift.training.checkpoint import SaveEvery, resume_from
from gradsift.training.model import ModelSource, load_model
from gradsift.training.quantized import is_quantized
from gradsift.training.settings.trainer import TrainerSettings, sft_config
from gradsift.training.trainer import RecordingSFTTrainer
from gradsift.wording import first_line

N_CHECKPOINTS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did, earlier sessions included.

    Attributes:
        loss_curve: (step, training loss) as the trainer logged them.
        n_steps: Optimizer updates.
        n_instances: Instances seen, as often as they were seen.
        n_tokens: Their tokens, without padding.
        seconds: Of training, without loading.
        resumed_at_step: Optimizer updates already made when this session began.
    """

    loss_curve: tuple[tuple[int, float], ...]
    n_steps: int
    n_instances: int
    n_tokens: int
    seconds: float
    resumed_at_step: int


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model and what its training did.

    Attributes:
        model: In evaluation mode; adapters (LoRA) are merged into the weights, unless those are
            quantised: they would be rounded anew.
    """

    model: PreTrainedModel
    training: TrainingSummary


def train_without_recording(
    trainer: RecordingSFTTrainer,
    *,
    made_with: str,
    passes: float,
    n_steps: int,
    steps_between: int,
    progress: Progress = no_progress,
) -> TrainingSummary:
    """Train to the end; resumes from the last whole checkpoint of an earlier session.

    The last checkpoint stays, so that whatever comes after training can be interrupted, too.
    """
    checkpoint = resume_from(Path(trainer.args.output_dir), made_with=made_with)
    before = {} if checkpoint is None else checkpoint.about
    done = {key: int(before.get(key, 0)) for key in ("n_instances", "n_tokens")}
    seconds_before, started = before.get("seconds", 0.0), time.perf_counter()
    all_rows = max(1, round(passes * len(trainer.lengths)))
    all_tokens = round(passes * sum(trainer.lengths))
    progress = stage(progress, "trained on")

    def report() -> None:
        n_rows, n_tokens = done.values()
        progress(min(n_rows, all_rows), all_rows, min(n_tokens, all_tokens), all_tokens)

    def count(indices: list[int]) -> None:
        done["n_instances"] += len(indices)
        done["n_tokens"] += sum(trainer.lengths[i] for i in indices)
        report()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started

    trainer.on_rows(count)
    trainer.add_callback(
        SaveEvery(
            steps_between,
            lambda _: tell_kept(progress),
            made_with=made_with,
            last_too=True,
            about=lambda: {**done, "seconds": seconds()},
        )
    )
    if checkpoint is not None:
        n_rows = min(done["n_instances"], all_rows)
        logger.info(f"resumes: {n_rows} of {all_rows} rows are trained on")
    report()
    if checkpoint is not None and checkpoint.step >= n_steps and not trainer.saves_in_parts:
        # transformers makes one step more where the last one was not the end of a pass.
        trainer.take_up(checkpoint.path)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
    return TrainingSummary(
        tuple(loss_curve(trainer)),
        trainer.state.global_step,
        done["n_instances"],
        done["n_tokens"],
        seconds(),
        0 if checkpoint is None else checkpoint.step,
    )


def loss_curve(trainer: Trainer) -> list[tuple[int, float]]:
    """Return (step, training loss) as a trainer logged them."""
    history = trainer.state.log_history
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instances: Sequence[Instance],
    settings: TrainerSettings,
    work_dir: Path,
    *,
    save_steps: int | None = None,
    save_to: Path | None = None,
    label: str,
    called: str = "",
    made_with: str = "",
    progress: Progress = no_progress,
) -> FineTuned:
    """Train a model in place; resumes from the last whole checkpoint in `work_dir`.

    The last checkpoint stays in `work_dir`, so that an evaluation can be interrupted without
    training again: whoever calls removes it. `save_to` gets weights (of LoRA, adapters only) and
    tokenizer; `label` names the training in errors, `called` in reports; `made_with` is a digest of
    what determines it.
    """
    # Before the trainer: making a configuration resets what accelerate knows.
    n_steps = settings.max_steps or steps_of(len(instances), settings.epochs, settings)
    passes = passes_of(len(instances), settings)
    trainer = RecordingSFTTrainer(model, tokenizer, instances, settings, work_dir, called=called)
    training = train_without_recording(
        trainer,
        made_with=made_with,
        passes=passes,
        n_steps=n_steps,
        steps_between=save_steps or -(-n_steps // N_CHECKPOINTS),
        progress=progress,
    )
    _require_finite(label, trainer.model, training)
    if save_to is not None:
        with writing(save_to):
            trainer.save_model(str(save_to))
            tokenizer.save_pretrained(str(save_to))
    return FineTuned(_ready(trainer.model), training)


def load_fine_tuned(
    folder: Path, source: ModelSource, settings: TrainerSettings
) -> PreTrainedModel:
    """Load what `fine_tune` saved, as it returned it; the source is what training began with."""
    try:
        if settings.lora is None:
            place = str(folder)
            return _ready(load_model(replace(source, name=place, path=place, revision=None)))
        return _ready(PeftModel.from_pretrained(load_model(source), str(folder)))
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise GradsiftError(
            f"{folder}: the weights that were saved there cannot be loaded "
            f"({first_line(error)}). Remove that folder to train again."
        ) from error


def _ready(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    # Mixed precision belongs to the training: untrained and loaded models are evaluated without it.
    # accelerate leaves its wrapper on, and taking it off takes transformers' own off, too.
    plain_forward = vars(model).pop("_original_forward", None)
    if plain_forward is not None:
        model.forward = plain_forward
    if hasattr(model, "merge_and_unload"):
        inner = model.get_base_model()
        model = inner if is_quantized(inner) else model.merge_and_unload()
    # Training switched it off; generation is slow without.
    model.config.get_text_config().use_cache = True
    return model.eval()


def _require_finite(label: str, model: torch.nn.Module, training: TrainingSummary) -> None:
    losses = (loss for _, loss in training.loss_curve)
    if not all(map(math.isfinite, losses)) or not all(
        bool(torch.isfinite(weight).all())
        for weight in model.parameters()
        if type(weight) is nn.Parameter
    ):
        raise GradsiftError(
            f"{label}: loss or weights are not finite numbers; the training diverged. Lower "
            "learning_rate, or leave the arm out; what is done is kept."
        )


def steps_of(n_instances: int, epochs: float, settings: TrainerSettings) -> int:
    """Return the optimizer updates that some passes over instances come to, in one process."""
    args = sft_config(settings, Path("."))
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return math.ceil(epochs * -(-n_instances // rows_per_step))


def passes_of(n_instances: int, settings: TrainerSettings) -> float:
    """Return the passes over instances that a training makes; for a number of steps about."""
    if settings.max_steps is None:
        return settings.epochs
    return settings.max_steps / steps_of(n_instances, 1, settings)
