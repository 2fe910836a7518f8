"""Plan: what fits on which GPUs, from a model's configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradsift.config import PlanConfig
from gradsift.schema import takes, validated
from gradsift.training.memory_plan import MemoryPlan, plan_memory
from gradsift.training.model import find_model, load_config


@takes(PlanConfig)
def plan(model: str | Path, **settings: Any) -> MemoryPlan:
    """Count what a capture would take on each GPU, from a model's configuration alone.

    Args:
        model: A hub id or a folder with config.json.
        **settings: For which training, machine and rows; see Settings.

    Returns:
        What fits where; planned, not measured.

    Raises:
        GradsiftError: For a configuration that cannot be read, or settings that cannot be.
    """
    config = validated(PlanConfig, {"model": model, **settings})
    # What is loaded quantised is planned; the weights themselves are not read.
    source = find_model(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return plan_memory(load_config(source), config)
