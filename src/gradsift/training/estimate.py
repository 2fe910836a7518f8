"""Time a few steps before a run, to say what it will take."""

from __future__ import annotations

import random
import resource
import sys
import time
from dataclasses import dataclass

import torch

from gradsift.gradients.recorder import Recorder
from gradsift.training.probe import probe_step
from gradsift.training.sft import RecordingSFTTrainer

SMALL_BATCH = 2
SECONDS_FOR_A_FULL_BATCH = 2.0


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
    trainer: RecordingSFTTrainer, recorder: Recorder, token_counts: list[int], seed: int
) -> Estimate:
    """Time a micro-batch with and without recording; nothing is changed by it.

    The self-check, which comes before, has warmed everything up.

    The optimizer's update is not timed: on the models for which the time matters it is a few
    percent of a step.

    Args:
        trainer: Ready to train.
        recorder: Ready to record; attached only while timing.
        token_counts: Tokens of each instance.
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
    return Estimate(
        n_instances=len(token_counts),
        n_tokens=sum(token_counts),
        capture_seconds=recording * share,
        full_sft_seconds=3 * plain * share,
        peak_bytes=_peak_bytes(trainer.args.device),
        tokens_per_second=sum(token_counts) / (recording * share),
    )


def _timed(trainer: RecordingSFTTrainer, batch: list[int], recorder: Recorder | None) -> float:
    started = time.perf_counter()
    probe_step(trainer, batch, recorder)
    return time.perf_counter() - started


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
