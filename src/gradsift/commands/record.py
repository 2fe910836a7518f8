"""Record: per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from gradsift.config import LoopConfig
from gradsift.data.pool import Pool
from gradsift.gradients.sketch import SketchSpec
from gradsift.recording.recording import Recording
from gradsift.schema import takes, validated


@takes(LoopConfig)
def record(
    loop: nn.Module | Trainer,
    *,
    out: str | Path,
    ids: str | None = None,
    pool: Pool | None = None,
    **settings: Any,
) -> Recording:
    """Record per-sample gradients around any training loop, in a `with` block.

    On the first micro-batch two rows are compared with autograd, and after its backward pass,
    what the loop's own loss brought with what the response tokens alone bring; a mismatch stops the
    loop.

    Args:
        loop: A causal LM of transformers, perhaps wrapped (PEFT, DDP, DeepSpeed, compiled), or the
            trainer of transformers or trl that trains it. The model must be called with `labels`,
            -100 where a token is not of the response. Rows may be packed: `position_ids` that
            begin anew tell where each begins.
        out: The run folder.
        ids: Name of a batch column with an integer or text for each row; it is taken out of the
            batch before the model sees it. None finds a trainer's rows in the pool by their tokens;
            without a pool rows are named by a hash of their tokens and labels.
        pool: From `load_pool`; then `ids` are positions in it (or instance ids), and `select`
            works on the run folder.
        **settings: How gradients are recorded; see Settings.

    Returns:
        A context manager; after the block its `store` is the gradient store.

    Raises:
        GradsiftError: If the model has no layers that can be watched, or the trainer does not
            fine-tune on responses.
    """
    config = validated(LoopConfig, settings)
    sketch, method = SketchSpec(config.sketch_size, config.seed), config.recording
    return Recording(loop, Path(out), ids=ids, pool=pool, sketch=sketch, recording=method)
