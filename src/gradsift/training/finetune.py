"""Training without recording, resumed from the last whole checkpoint.

Fine-tune a model on a subset, as trl does, and leave it ready for evaluation.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.training.checkpoint import MARKER, SaveEvery, last_checkpoint
from gradsift.training.lora_settings import adapting
from gradsift.training.model import ModelSource, is_quantized, load_model
from gradsift.training.quantized import weights_of
from gradsift.training.trainer import RecordingSFTTrainer
from gradsift.training.trainer_settings import TrainerSettings, sft_config


@dataclass(frozen=True)
class PlainTraining:
    """What a training did, earlier sittings included.

    Attributes:
        loss_curve: (step, training loss) as the trainer logged them.
        n_steps: Optimizer updates.
        n_instances: Instances seen, as often as they were seen.
        n_tokens: Their tokens, without padding.
        seconds: Of training, without loading.
        resumed_at_step: Optimizer updates already made when this sitting began.
    """

    loss_curve: tuple[tuple[int, float], ...]
    n_steps: int
    n_instances: int
    n_tokens: int
    seconds: float
    resumed_at_step: int


def train_plainly(
    trainer: RecordingSFTTrainer,
    instances: Sequence[Instance],
    work_dir: Path,
    *,
    steps_between: int,
    on_progress: Callable[[int, int], None],
) -> PlainTraining:
    """Train to the end, from where an earlier sitting stopped.

    The last checkpoint stays, so that whatever comes after training can be interrupted, too.

    Args:
        trainer: With those instances, and `work_dir` for its output.
        instances: What is trained on.
        work_dir: Where the checkpoints are.
        steps_between: Optimizer updates between two checkpoints.
        on_progress: Called after each micro-batch with instances and tokens done so far.

    Returns:
        What was done.
    """
    checkpoint = last_checkpoint(work_dir)
    before = {} if checkpoint is None else json.loads((checkpoint / MARKER).read_text())
    done = {key: before.get(key, 0) for key in ("n_instances", "n_tokens")}
    seconds_before, started = before.get("seconds", 0.0), time.perf_counter()

    def tell(indices: list[int]) -> None:
        done["n_instances"] += len(indices)
        done["n_tokens"] += sum(len(instances[i].input_ids) for i in indices)
        on_progress(done["n_instances"], done["n_tokens"])

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started

    trainer.tell_rows(tell)
    trainer.add_callback(
        SaveEvery(steps_between, last_too=True, about=lambda: {**done, "seconds": seconds()})
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return PlainTraining(
        tuple(loss_curve(trainer)),
        trainer.state.global_step,
        done["n_instances"],
        done["n_tokens"],
        seconds(),
        before.get("step", 0),
    )


def loss_curve(trainer: RecordingSFTTrainer) -> list[tuple[int, float]]:
    """Return (step, training loss) as a trainer logged them."""
    history = trainer.state.log_history
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


N_CHECKPOINTS = 4


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model and what its training did.

    Attributes:
        model: In evaluation mode; adapters (LoRA) are merged into the weights, unless those are
            quantised: they would be rounded anew.
        training: Steps, tokens, seconds, loss curve.
    """

    model: PreTrainedModel
    training: PlainTraining


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
    on_progress: Callable[[int, int], None],
) -> FineTuned:
    """Train on instances, from where an earlier sitting stopped.

    Args:
        model: A causal LM; changed in place.
        tokenizer: Its tokenizer.
        instances: What to train on.
        settings: How to train.
        work_dir: For checkpoints. The last one stays, so that an evaluation can be interrupted
            without training again: whoever calls removes it.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        save_to: Folder for the weights as safetensors (adapters only, for LoRA) and the tokenizer;
            None saves nothing.
        label: What the training is called in errors.
        on_progress: Called after each micro-batch with instances and tokens done so far.

    Returns:
        The model and what was done.

    Raises:
        ValueError: If the adapters do not fit the model, or the training diverged.
    """
    # Before the trainer: making a configuration resets what accelerate knows.
    n_steps = settings.max_steps or steps_of(len(instances), settings.epochs, settings)
    with adapting(model, settings.lora, weights=weights_of(model)):
        trainer = RecordingSFTTrainer(model, tokenizer, instances, settings, work_dir)
    training = train_plainly(
        trainer,
        instances,
        work_dir,
        steps_between=save_steps or -(-n_steps // N_CHECKPOINTS),
        on_progress=on_progress,
    )
    _require_finite(label, trainer.model, training)
    if save_to is not None:
        trainer.save_model(str(save_to))
        tokenizer.save_pretrained(str(save_to))
    return FineTuned(_ready(trainer.model), training)


def load_fine_tuned(
    folder: Path, source: ModelSource, settings: TrainerSettings
) -> PreTrainedModel:
    """Load what `fine_tune` saved.

    Args:
        folder: With the weights.
        source: The model they started from.
        settings: How they were trained.

    Returns:
        The model as `fine_tune` returned it.

    Raises:
        ValueError: If the weights cannot be loaded.
    """
    try:
        if settings.lora is None:
            place = str(folder)
            return _ready(load_model(replace(source, name=place, path=place, revision=None)))
        return _ready(PeftModel.from_pretrained(load_model(source), str(folder)))
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise GradsiftError(
            f"{folder}: the weights that were kept there cannot be loaded ({first_line}). Remove "
            "that folder to train again."
        ) from error


def _ready(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    # Mixed precision belongs to the training: untrained and loaded models are examined without it.
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


def _require_finite(label: str, model: torch.nn.Module, training: PlainTraining) -> None:
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
    """Return the optimizer updates that some passes over instances come to, in one process.

    Args:
        n_instances: Trained on.
        epochs: Passes over them.
        settings: With batch size and accumulation.

    Returns:
        Their number.
    """
    args = sft_config(settings, Path("."))
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return math.ceil(epochs * -(-n_instances // rows_per_step))
