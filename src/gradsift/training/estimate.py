"""Time a few steps before a run, to say what it will take."""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass

import torch

from gradsift.gradients.recorder import Recorder
from gradsift.training.probe import probe_step
from gradsift.training.sft import RecordingSFTTrainer

SMALL_BATCH = 2
SECONDS_FOR_A_FULL_BATCH = 2.0
SCRATCH_ENTRIES = 8_000_000


@dataclass(frozen=True)
class Estimate:
    """What a capture will take, from a few timed steps.

    Attributes:
        n_instances: Rows to train on.
        n_tokens: All their tokens, without padding.
        capture_seconds: The recording epoch.
        full_sft_seconds: Three plain epochs of the same training, without recording.
        peak_bytes: The process's peak memory so far (on an accelerator: the device's).
        tokens_per_second: While recording.
    """

    n_instances: int
    n_tokens: int
    capture_seconds: float
    full_sft_seconds: float
    peak_bytes: int
    tokens_per_second: float

    def sentence(self) -> str:
        """Return the estimate as one line."""
        return (
            f"about {_duration(self.capture_seconds)}, {self.peak_bytes / 1e9:.1f} GB; "
            f"full SFT for 3 epochs about {_duration(self.full_sft_seconds)}"
        )


def estimate_cost(
    trainer: RecordingSFTTrainer,
    recorder: Recorder,
    token_counts: list[int],
    *,
    n_steps: int,
    n_checkpoints: int,
    seed: int,
) -> Estimate:
    """Time a micro-batch with and without recording; nothing is changed by it.

    The self-check, which comes before, has warmed everything up.

    The optimizer's updates are counted by timing AdamW on a small scratch tensor, checkpoints by
    writing a small scratch file; both scaled to the trained parameters.

    Args:
        trainer: Ready to train.
        recorder: Ready to record; attached only while timing.
        token_counts: Tokens of each instance.
        n_steps: Optimizer updates of the epoch.
        n_checkpoints: Checkpoints on the way.
        seed: Chooses the rows.

    Returns:
        The estimate.
    """
    order = list(range(len(token_counts)))
    random.Random(seed).shuffle(order)
    rows = order[:SMALL_BATCH]
    plain, recording = (_timed(trainer, rows, who) for who in (None, recorder))
    if plain < SECONDS_FOR_A_FULL_BATCH:
        # A fast machine: time what it will really do. A slow one is not kept waiting.
        rows = order[: trainer.args.per_device_train_batch_size]
        plain, recording = (_timed(trainer, rows, who) for who in (None, recorder))
    share = sum(token_counts) / sum(token_counts[i] for i in rows)
    n_trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    updates = n_steps * _update_seconds(n_trained, trainer.args.device)
    recording_seconds = recording * share + updates
    recording_seconds += n_checkpoints * _checkpoint_seconds(n_trained)
    return Estimate(
        n_instances=len(token_counts),
        n_tokens=sum(token_counts),
        capture_seconds=recording_seconds,
        full_sft_seconds=3 * (plain * share + updates),
        peak_bytes=_peak_bytes(trainer.args.device),
        tokens_per_second=sum(token_counts) / recording_seconds,
    )


def _timed(trainer: RecordingSFTTrainer, batch: list[int], recorder: Recorder | None) -> float:
    started = time.perf_counter()
    probe_step(trainer, batch, recorder)
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
