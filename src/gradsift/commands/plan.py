"""Plan: what fits on which GPUs, from a model's configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradsift.config import PlanConfig, takes, validated
from gradsift.errors import GradsiftError
from gradsift.training.memory_plan import TRAININGS, MemoryPlan, plan_memory
from gradsift.training.model import DTYPES, find_model, load_config


@takes(PlanConfig)
def plan(
    model: str | Path,
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
        lora: True for LoRA only, False for all parameters only, None for all ways of training.
        load_in: 4bit or 8bit, for QLoRA only.
        revision: Of a hub model.
        dtype: Of the weights: float32, bfloat16 or float16.
        trust_remote_code: Whether code that comes with the model may run.
        **settings: For which machine and which rows; see Settings.

    Returns:
        What fits where; planned, not measured.

    Raises:
        GradsiftError: For a configuration that cannot be read, or settings that cannot be.
    """
    config = validated(PlanConfig, settings)
    trainings = TRAININGS if lora is None else ("LoRA",) if lora else ("full",)
    if load_in is not None:
        if lora is False:
            raise GradsiftError(
                "`lora` false trains all parameters, `load_in` freezes them: give one."
            )
        trainings = ("QLoRA",)
    source = find_model(str(model), revision, dtype, trust_remote_code)
    return plan_memory(
        str(model),
        load_config(source),
        config,
        trainings=trainings,
        load_in=load_in or "4bit",
        weight_bytes=DTYPES[dtype].itemsize,
    )
