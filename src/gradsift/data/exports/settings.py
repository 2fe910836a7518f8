"""The run's settings for trl and peft in another trainer's words, and what has no word there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradsift.config import RunConfig

# What a capture takes where nobody says it, and other trainers take otherwise.
TRL_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "optim": "adamw_torch_fused",
    "max_grad_norm": 1.0,
}
PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
# Of peft's settings, values that change nothing.
OFF: tuple[Any, ...] = (None, False, [], {}, "", "none")
# What says how the tokenizer is set up.
TOKENIZER = ("chat_template_path", "eos_token", "pad_token")


def same(names: str) -> dict[str, str]:
    """Return names, with spaces between them, as words that are the same there."""
    return {name: name for name in names.split()}


def in_words(
    config: RunConfig, sft_words: Mapping[str, str], lora_words: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Say the run's `sft` and `lora` in a trainer's words.

    Args:
        config: Of the run.
        sft_words: Keys of trl's SFTConfig → what they are called there.
        lora_words: Keys of peft's LoraConfig → what they are called there.

    Returns:
        The settings, trl's and peft's defaults among them; and the names of those without a word.
    """
    sft = TRL_DEFAULTS | {key: value for key, value in config.sft.items() if value is not None}
    words = {sft_words[key]: value for key, value in sft.items() if key in sft_words}
    missing = [f"sft.{key}" for key in sft if key not in sft_words and key not in TOKENIZER]
    steps = words.get("warmup_steps")
    if isinstance(steps, float) and 0 < steps < 1:  # A share of all steps.
        words["warmup_ratio"] = words.pop("warmup_steps")
    if (given := config.lora_settings()) is not None:
        lora = PEFT_DEFAULTS | given
        words |= {lora_words[key]: value for key, value in lora.items() if key in lora_words}
        missing += [
            f"lora.{key}"
            for key, value in lora.items()
            if key not in (*lora_words, "task_type") and value not in OFF
        ]
    return words, missing


def without_words(names: Sequence[str]) -> list[str]:
    """Return the note on settings that have no place in a configuration; none without any."""
    if not names:
        return []
    return [f"its configuration has no place for these settings of the run: {', '.join(names)}"]
