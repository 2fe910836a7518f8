"""Run a step for its numbers only, and leave everything as it was.

Time a few steps before a run, to say what it will take.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from datasets import Dataset

from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.terms import IGNORED_LABEL
from gradsift.training.trainer import INDEX_COLUMN, TOKENS, RecordingSFTTrainer


def probe_step(
    trainer: RecordingSFTTrainer,
    indices: Sequence[int],
    recorder: Recorder | None,
    dataset: Dataset | None = None,
) -> Records | None:
    """Run forward and backward on some rows in the trainer's own configuration, without an update.

    Weights, random generators, gradients and the trainer's metrics are afterwards as before.

    Args:
        trainer: Ready to train.
        indices: The rows of the micro-batch.
        recorder: Attached during the step, or None to train plainly.
        dataset: Of the rows; the trainer's own if None.

    Returns:
        The records; None without a recorder.
    """
    seen: list[Records] = []
    batch = _collated(trainer, indices, dataset)
    n_items = (batch["labels"][:, 1:] != IGNORED_LABEL).sum().to(trainer.args.device)
    # Until training starts, accelerate has not wrapped the model's forward in autocast.
    with torch.random.fork_rng(), trainer.accelerator.autocast(), recorder or nullcontext():
        if recorder is not None:
            trainer.record_with(recorder, seen.append)
        trainer.is_probing = True
        try:
            trainer.training_step(trainer.model, batch, n_items)
        finally:
            trainer.is_probing = False
            trainer.stop_recording()
            trainer.model.zero_grad(set_to_none=True)
            trainer.forget_metrics()
    return seen[0] if seen else None


def forward_records(
    trainer: RecordingSFTTrainer,
    indices: Sequence[int],
    recorder: Recorder,
    dataset: Dataset | None = None,
) -> Records:
    """Record the LM head's part of some rows by a forward pass alone.

    Args:
        trainer: Its model, device, precision and batching are used.
        indices: The rows.
        recorder: Of the same model.
        dataset: Of the rows; the trainer's own if None.

    Returns:
        The records, without an embedding part.
    """
    batch = trainer._prepare_inputs(_collated(trainer, indices, dataset))
    indices = batch.pop(INDEX_COLUMN)  # In the order in which they were packed.
    labels_BT, tokens = batch.pop("labels"), batch.pop(TOKENS)
    fused = {} if trainer.fused is None else {"response_tokens": tokens}
    step = trainer.state.global_step
    with torch.no_grad(), trainer.accelerator.autocast(), recorder:
        recorder.begin(indices, step, batch["input_ids"], labels_BT, tokens)
        trainer.model(**batch, **fused)
        return recorder.finish(backward=False)


def _collated(
    trainer: RecordingSFTTrainer, indices: Sequence[int], dataset: Dataset | None
) -> dict[str, torch.Tensor]:
    dataset = trainer.train_dataset if dataset is None else dataset
    return trainer.data_collator([dataset[i] for i in indices])


SMALL_BATCH = 2
SECONDS_FOR_A_FULL_BATCH = 2.0
SCRATCH_ENTRIES = 8_000_000


@dataclass(frozen=True)
class Estimate:
    """What a capture will take, from a few timed steps.

    Attributes:
        n_instances: Rows of the pool.
        n_tokens: All their tokens, without padding.
        capture_seconds: Training and recording.
        full_sft_seconds: Three plain epochs of the same training, without recording.
        least_bytes: The process's peak memory so far (on an accelerator: the device's) and AdamW's
            two moments, which the first update allocates. Longer batches than the timed one and
            checkpoints take more.
        tokens_per_second: Tokens of the pool, over the capture.
    """

    n_instances: int
    n_tokens: int
    capture_seconds: float
    full_sft_seconds: float
    least_bytes: int
    tokens_per_second: float

    def sentence(self) -> str:
        """Return the estimate as one line."""
        return (
            f"about {duration(self.capture_seconds)}, at least {self.least_bytes / 1e9:.1f} GB; "
            f"full SFT for 3 epochs about {duration(self.full_sft_seconds)}"
        )


@dataclass(frozen=True)
class Plan:
    """What a capture will do.

    Attributes:
        pool_counts: Tokens of each instance of the pool.
        trained_counts: Tokens of each instance that is trained on; empty for no training.
        n_steps: Optimizer updates.
        n_checkpoints: Checkpoints on the way.
        scoring: Whether the pool is scored after training, instead of recorded while training.
        backward: Whether the recording needs a backward pass.
    """

    pool_counts: Sequence[int]
    trained_counts: Sequence[int]
    n_steps: int
    n_checkpoints: int
    scoring: bool
    backward: bool


def estimate_cost(
    trainer: RecordingSFTTrainer, recorder: Recorder, plan: Plan, *, seed: int
) -> Estimate:
    """Time a micro-batch with and without recording; nothing is changed by it.

    The self-check, which comes before, has warmed everything up.

    The optimizer's updates are counted by timing AdamW on a small scratch tensor, checkpoints by
    writing a small scratch file; both scaled to the trained parameters.

    Args:
        trainer: Ready to train.
        recorder: Ready to record; attached only while timing.
        plan: What will be done.
        seed: Chooses the rows.

    Returns:
        The estimate.
    """
    order = list(range(len(trainer.train_dataset)))
    random.Random(seed).shuffle(order)
    rows = order[:SMALL_BATCH]
    plain, recording = _plain_and_recording(trainer, rows, recorder, plan)
    if plain < SECONDS_FOR_A_FULL_BATCH:
        # A fast machine: time what it will really do. A slow one is not kept waiting.
        rows = order[: trainer.args.per_device_train_batch_size]
        plain, recording = _plain_and_recording(trainer, rows, recorder, plan)
    n_timed = sum(len(trainer.train_dataset[i]["input_ids"]) for i in rows)
    n_timed *= trainer.args.world_size
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    n_parameters = sum(p.numel() for p in trained)
    moments = sum(2 * p.nbytes for p in trained) if plan.n_steps else 0
    update = _update_seconds(n_parameters, trainer.args.device)
    n_pool, n_trained = sum(plan.pool_counts), sum(plan.trained_counts)
    seconds = plan.n_steps * update
    if plan.n_checkpoints:
        seconds += plan.n_checkpoints * _checkpoint_seconds(n_parameters)
    seconds += (plain if plan.scoring else recording) * n_trained / n_timed
    if plan.scoring:
        seconds += recording * n_pool / n_timed
    rows_per_step = (
        trainer.args.per_device_train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size
    )
    pool_steps = -(-len(plan.pool_counts) // rows_per_step)
    return Estimate(
        n_instances=len(plan.pool_counts),
        n_tokens=n_pool,
        capture_seconds=seconds,
        full_sft_seconds=3 * (plain * n_pool / n_timed + pool_steps * update),
        least_bytes=_peak_bytes(trainer.args.device) + moments,
        tokens_per_second=n_pool / seconds,
    )


def _plain_and_recording(
    trainer: RecordingSFTTrainer, rows: list[int], recorder: Recorder, plan: Plan
) -> tuple[float, float]:
    plain = _seconds(lambda: probe_step(trainer, rows, None))
    if plan.scoring and not plan.backward:
        return plain, _seconds(lambda: forward_records(trainer, rows, recorder))
    return plain, _seconds(lambda: probe_step(trainer, rows, recorder))


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def _update_seconds(n_parameters: int, device: torch.device) -> float:
    scratch = torch.nn.Parameter(torch.zeros(min(n_parameters, SCRATCH_ENTRIES), device=device))
    scratch.grad = torch.ones_like(scratch)
    optimizer = torch.optim.AdamW([scratch])
    optimizer.step()  # Allocates its state.
    started = time.perf_counter()
    optimizer.step()
    return (time.perf_counter() - started) * n_parameters / scratch.numel()


def _checkpoint_seconds(n_parameters: int) -> float:
    # Weights and the two moments of AdamW, in float32.
    n_bytes = 12 * n_parameters
    scratch = bytes(min(n_bytes, 4 * SCRATCH_ENTRIES))
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        file.write(scratch)
        file.flush()
        os.fsync(file.fileno())
        return (time.perf_counter() - started) * n_bytes / len(scratch)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
