"""Time a few steps before a capture, to say what it will take."""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gradsift.config import CaptureConfig
from gradsift.data.tokenization import Instance
from gradsift.training.batches import n_tokens_of
from gradsift.training.epoch import PreliminaryEpoch

SMALL_BATCH = 2
SECONDS_FOR_A_FULL_BATCH = 2.0
SCRATCH_ENTRIES = 8_000_000


@dataclass(frozen=True)
class CostEstimate:
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


def estimate_cost(
    epoch: PreliminaryEpoch, pool: Sequence[Instance], config: CaptureConfig
) -> CostEstimate:
    """Time a micro-batch with and without recording; nothing is changed by it.

    The self-check, which comes before, has warmed everything up. The optimizer's updates are
    counted by timing AdamW on a small scratch tensor, checkpoints by writing a small scratch file;
    both scaled to the trained parameters.
    """
    trainer = epoch.trainer
    order = list(range(len(trainer.train_dataset)))
    random.Random(config.seed).shuffle(order)
    rows = order[:SMALL_BATCH]
    plain, recording = _plain_and_recording(epoch, rows, config)
    if plain < SECONDS_FOR_A_FULL_BATCH:
        # A fast machine: time what it will really do. A slow one is not kept waiting.
        rows = order[: trainer.args.per_device_train_batch_size]
        plain, recording = _plain_and_recording(epoch, rows, config)
    n_timed = sum(len(trainer.train_dataset[i]["input_ids"]) for i in rows)
    n_timed *= trainer.args.world_size
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    n_parameters = sum(p.numel() for p in trained)
    update = _update_seconds(n_parameters, trainer.args.device)
    n_pool, scoring = n_tokens_of(pool), config.scores_after
    seconds, moments = 0.0, 0
    if config.warmup_fraction > 0:
        moments = sum(2 * p.nbytes for p in trained)
        seconds += epoch.n_steps * update
        n_checkpoints = max(0, epoch.n_steps - 1) // epoch.steps_between(config.save_steps)
        n_checkpoints += scoring  # The last one stays until all is scored.
        if n_checkpoints:
            seconds += n_checkpoints * _checkpoint_seconds(n_parameters)
        seconds += (plain if scoring else recording) * n_tokens_of(epoch.instances) / n_timed
    if scoring:
        seconds += recording * n_pool / n_timed
    pool_steps = -(-len(pool) // trainer.rows_per_step)
    return CostEstimate(
        n_instances=len(pool),
        n_tokens=n_pool,
        capture_seconds=seconds,
        full_sft_seconds=3 * (plain * n_pool / n_timed + pool_steps * update),
        least_bytes=_peak_bytes(trainer.args.device) + moments,
        tokens_per_second=n_pool / seconds,
    )


def _plain_and_recording(
    epoch: PreliminaryEpoch, rows: list[int], config: CaptureConfig
) -> tuple[float, float]:
    trainer, recorder = epoch.trainer, epoch.recorder
    plain = _seconds(lambda: trainer.dry_run_step(rows, None))
    record = trainer.dry_run_step if config.backward else trainer.forward_records
    return plain, _seconds(lambda: record(rows, recorder))


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
