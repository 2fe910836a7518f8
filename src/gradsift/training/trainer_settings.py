"""The user's settings for trl's SFTConfig and peft's LoraConfig, checked before any work."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer, get_scheduler
from trl import SFTConfig

from gradsift.config import CaptureConfig
from gradsift.errors import GradsiftError
from gradsift.schema import misspelt
from gradsift.training.lora_settings import lora_config

# What gradsift decides itself, and why the user's value is refused.
RESERVED = {
    "output_dir": "the run folder is used",
    "num_train_epochs": "the preliminary epoch is one epoch; an arm has `epochs`",
    "max_steps": "the preliminary epoch is one epoch; an arm has `epochs`",
    "max_length": "use `max_length`",
    "truncation_mode": "use `truncation`",
    "seed": "use `seed`",
    "save_strategy": "use `save_steps`",
    "save_steps": "use `save_steps`",
    "save_total_limit": "use `save_steps`",
    "resume_from_checkpoint": "running the same command again resumes",
    "model_init_kwargs": "the model is loaded before: use `load_in`, `dtype` and `revision`",
    "packing": "use `batching`",
    "padding_free": "use `batching`",
    "group_by_length": "use `batching`",
    "train_sampling_strategy": "use `batching`",
    "loss_type": "the instance loss is the negative log-likelihood",
    "label_smoothing_factor": "the instance loss is the negative log-likelihood",
    "neftune_noise_alpha": "its noise would be in the recorded gradients",
    "remove_unused_columns": "instances carry an index",
    "dataset_kwargs": "instances are tokenized already",
    "assistant_only_loss": "the response mask is made already",
    "completion_only_loss": "the response mask is made already",
    "report_to": "nothing is sent anywhere",
    "push_to_hub": "nothing is sent anywhere",
}

MAPPINGS = (
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
)
# Optimizers that are made for a model's own layers.
MODEL_OPTIMIZERS = ("galore", "apollo", "lomo")
STEP_SETTINGS = (
    "optim",
    "optim_args",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
)
AT_LEAST_ONE = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class TrainerSettings:
    """How a training goes: the preliminary epoch, or that of an arm.

    Attributes:
        sft: The user's own settings for trl's SFTConfig.
        lora: For peft's LoraConfig; None for full-parameter training.
        max_steps: Optimizer updates, whatever `epochs` says; None for what it says.
        batching: A `config.Batching`, or auto.
    """

    sft: Mapping[str, object]
    lora: Mapping[str, object] | None
    seed: int
    epochs: float = 1
    max_steps: int | None = None
    batching: str = CaptureConfig.model_fields["batching"].default


def sft_config(settings: TrainerSettings, output_dir: Path) -> SFTConfig:
    """Build trl's configuration from the user's settings.

    On a CPU two of trl's defaults are changed, unless the user sets them: bf16 is several times
    slower than float32 there, and gradient checkpointing buys memory that is not short.
    """
    _require_values(settings)
    on_cpu = not torch.accelerator.is_available()
    defaults = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True} if on_cpu else {}
    with warnings.catch_warnings():
        # trl's own default sets a name that transformers deprecates; the user can do nothing.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        try:
            config = SFTConfig(
                **{**defaults, "logging_steps": 1, "disable_tqdm": True, **settings.sft},
                output_dir=str(output_dir),
                num_train_epochs=settings.epochs,
                max_steps=settings.max_steps or -1,
                max_length=None,
                seed=settings.seed,
                save_strategy="no",
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to="none",
            )
        except (TypeError, ValueError, ImportError) as error:
            raise GradsiftError(f"sft settings: {error}") from error
    if config.activation_offloading and on_cpu:
        raise GradsiftError(
            "sft setting activation_offloading: there is no accelerator whose memory it would "
            "save; take it out."
        )
    _require_steps(config, settings)
    return config


def require_settings(settings: TrainerSettings) -> None:
    """Refuse the user's settings that cannot be, before anything is loaded."""
    sft_config(settings, Path("."))
    lora_config(settings.lora)


def _require_steps(config: SFTConfig, settings: TrainerSettings) -> None:
    """Try optimizer and schedule on a parameter of no consequence: they check their own values."""
    if any(name in str(getattr(config.optim, "value", config.optim)) for name in MODEL_OPTIMIZERS):
        return
    values = [f"{key}: {settings.sft[key]!r}" for key in STEP_SETTINGS if key in settings.sft]
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(2),
            num_training_steps=2,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    # Each optimizer and schedule refuses in its own way.
    except Exception as error:
        shown = ", ".join(values) or "all defaults"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GradsiftError(f"sft settings ({shown}): {reason}") from error


def _require_values(settings: TrainerSettings) -> None:
    reserved = sorted(settings.sft.keys() & RESERVED.keys())
    if reserved:
        reasons = "; ".join(f"{key}: {RESERVED[key]}" for key in reserved)
        raise GradsiftError(f"sft settings that gradsift decides itself: {reasons}.")
    unknown = sorted(settings.sft.keys() - SFTConfig.__dataclass_fields__.keys())
    if unknown:
        raise GradsiftError(
            "sft settings that trl's SFTConfig does not know: "
            f"{misspelt(unknown, SFTConfig.__dataclass_fields__)}."
        )
    for key, value in settings.sft.items():
        _require_type(key, value)


def _require_type(key: str, value: object) -> None:
    field = SFTConfig.__dataclass_fields__[key]
    # Where a share of all steps may stand for their number, the default is 0, the type float.
    kind = float if field.type is float else type(field.default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and abs(value) <= sys.float_info.max
    fits = {
        bool: isinstance(value, bool),
        int: finite and value == int(value),
        float: finite,
    }.get(kind, True)
    if key in MAPPINGS and value is not None:
        kind, fits = dict, isinstance(value, dict)
    elif key == "optim_args" and value is not None:
        pairs = value.split(",") if isinstance(value, str) else [""]
        if not all(pair.count("=") == 1 for pair in pairs):
            raise GradsiftError(f"sft setting {key} is {value!r}, expected name=value,name=value.")
    if not fits:
        raise GradsiftError(
            f"sft setting {key} is {value!r}, expected a value of type {kind.__name__}."
        )
    if key in AT_LEAST_ONE and value < 1:
        raise GradsiftError(f"sft setting {key} is {value!r}, expected at least 1.")
