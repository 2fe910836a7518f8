"""Training without recording, resumed from the last whole checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsift.data.instances import Instance
from gradsift.training.checkpoint import MARKER, SaveEvery, last_checkpoint
from gradsift.training.sft import RecordingSFTTrainer


@dataclass(frozen=True)
class PlainTraining:
    """What a training did, earlier sittings included.

    Attributes:
        loss_curve: (step, training loss) as the trainer logged them.
        n_steps: Optimizer updates.
        n_instances: Instances seen, as often as they were seen.
        n_tokens: Their tokens, without padding.
        seconds: Of training, without loading.
        resumed_at_step: Optimizer updates already made when this sitting began.
    """

    loss_curve: tuple[tuple[int, float], ...]
    n_steps: int
    n_instances: int
    n_tokens: int
    seconds: float
    resumed_at_step: int


def train_plainly(
    trainer: RecordingSFTTrainer,
    instances: Sequence[Instance],
    work_dir: Path,
    *,
    steps_between: int,
    on_progress: Callable[[int, int], None],
) -> PlainTraining:
    """Train to the end, from where an earlier sitting stopped.

    The last checkpoint stays, so that whatever comes after training can be interrupted, too.

    Args:
        trainer: With those instances, and `work_dir` for its output.
        instances: What is trained on.
        work_dir: Where the checkpoints are.
        steps_between: Optimizer updates between two checkpoints.
        on_progress: Called after each micro-batch with instances and tokens done so far.

    Returns:
        What was done.
    """
    checkpoint = last_checkpoint(work_dir)
    before = {} if checkpoint is None else json.loads((checkpoint / MARKER).read_text())
    done = {key: before.get(key, 0) for key in ("n_instances", "n_tokens")}
    seconds_before, started = before.get("seconds", 0.0), time.perf_counter()

    def tell(indices: list[int]) -> None:
        done["n_instances"] += len(indices)
        done["n_tokens"] += sum(len(instances[i].input_ids) for i in indices)
        on_progress(done["n_instances"], done["n_tokens"])

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started

    trainer.tell_rows(tell)
    trainer.add_callback(
        SaveEvery(steps_between, last_too=True, about=lambda: {**done, "seconds": seconds()})
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return PlainTraining(
        tuple(loss_curve(trainer)),
        trainer.state.global_step,
        done["n_instances"],
        done["n_tokens"],
        seconds(),
        before.get("step", 0),
    )


def loss_curve(trainer: RecordingSFTTrainer) -> list[tuple[int, float]]:
    """Return (step, training loss) as a trainer logged them."""
    history = trainer.state.log_history
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
