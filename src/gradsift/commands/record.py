"""Record: per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import Trainer

from gradsift.data.pool import Pool
from gradsift.gradients.sketch import SketchSpec
from gradsift.recording.recording import Recording


def record(
    loop: nn.Module | Trainer,
    *,
    out: str | Path,
    ids: str | None = None,
    pool: Pool | None = None,
    sketch_size: int = 1024,
    seed: int = 0,
    recording: str = "auto",
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
        sketch_size: Numbers of a gradient sketch, a power of two up to 2,048.
        seed: Of the sketch.
        recording: hidden, hidden-intercepted, hooked, intercepted, or auto: the first of them that
            is exact.

    Returns:
        A context manager; after the block its `store` is the gradient store.

    Raises:
        GradsiftError: If the model has no layers that can be watched, or the trainer does not
            fine-tune on responses.
    """
    sketch = SketchSpec(sketch_size, seed)
    return Recording(loop, Path(out), ids=ids, pool=pool, sketch=sketch, recording=recording)
