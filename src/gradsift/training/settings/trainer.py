"""The user's settings for trl's SFTConfig and peft's LoraConfig → configurations."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from trl import SFTConfig

from gradsift.config import REPORTS, CaptureConfig
from gradsift.errors import GradsiftError
from gradsift.training.settings.checks import given, require_config, require_values, without_effect
from gradsift.training.settings.known import SFT_PASSED, TOKENIZER_SETTINGS
from gradsift.training.settings.lora import lora_config
from gradsift.wording import one_line

logger = logging.getLogger(__name__)


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
    require_values(settings.sft)
    on_cpu = not torch.accelerator.is_available()
    defaults: dict[str, object] = {"logging_steps": 1, "disable_tqdm": True}
    if on_cpu:
        defaults |= {"bf16": False, "use_cpu": True}
        if not any("checkpointing" in key for key in settings.sft):
            defaults["gradient_checkpointing"] = False
    # The tokenizer has its own already, and trl would resize the embedding for another's template.
    passed = {
        key: value
        for key, value in settings.sft.items()
        if key in SFT_PASSED and key not in (*TOKENIZER_SETTINGS, *REPORTS)
    }
    with warnings.catch_warnings():
        # trl's own default sets a name that transformers deprecates; the user can do nothing.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        try:
            config = SFTConfig(
                **{**defaults, **passed},
                output_dir=str(output_dir),
                num_train_epochs=settings.epochs,
                max_steps=settings.max_steps or -1,
                max_length=None,
                seed=settings.seed,
                save_strategy="no",
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to="none",  # See gradsift.training.reports.
            )
        # A file that a setting names may be missing, or no JSON.
        except (TypeError, ValueError, ImportError, OSError) as error:
            reason = one_line(error)
            raise GradsiftError(f"sft settings ({given(passed, passed)}): {reason}") from error
    if config.activation_offloading and on_cpu:
        raise GradsiftError(
            "sft setting activation_offloading: there is no accelerator whose memory it would "
            "save; take it out."
        )
    require_config(config, settings.sft)
    return config


def require_settings(settings: TrainerSettings) -> None:
    """Refuse the user's settings that cannot be, before anything is loaded; note idle ones."""
    config = sft_config(settings, Path("."))
    lora_config(settings.lora)
    for note in without_effect(config, settings.sft):
        logger.warning(note)
