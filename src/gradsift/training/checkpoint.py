"""Checkpoints to resume from: only complete ones count, and parts are written in step with them.

transformers writes a checkpoint file by file and resumes from the highest number, complete or not
(https://github.com/huggingface/transformers/issues/35525). Here a marker is written last, and
only marked checkpoints are resumed from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradsift.errors import GradsiftError
from gradsift.files import sync_folder
from gradsift.seals import write_json

MARKER = "whole.json"  # The file name is older than the word "complete".


def checkpoint_at(folder: Path, step: int) -> Path | None:
    """Return the complete checkpoint of a step, or None."""
    path = folder / f"checkpoint-{step}"
    return path if (path / MARKER).exists() else None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most steps, to resume from, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{MARKER}")]
    return max(complete, key=lambda path: int(path.name.split("-")[-1]), default=None)


class SaveEvery(TrainerCallback):
    """Every `n_steps` updates: a checkpoint, marked when complete; then the records; then tidy up.

    In this order a kill loses only records that were not yet written: until they are, the
    checkpoint that belongs to the part before them is still there.
    """

    def __init__(
        self,
        n_steps: int,
        flush: Callable[[int], None] | None = None,
        *,
        last_too: bool = False,
        about: Callable[[], dict[str, object]] = dict,
    ):
        """Flush is given the number of updates; `about` is for the marker, and whoever resumes."""
        self._n_steps = n_steps
        self._flush = flush
        self._last_too = last_too
        self._about = about

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Ask for a checkpoint; the last step needs none, unless the weights are used later."""
        is_last = state.global_step >= state.max_steps
        if self._last_too if is_last else state.global_step % self._n_steps == 0:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Mark the checkpoint, write the records, remove older checkpoints."""
        folder = Path(args.output_dir)
        current = folder / f"checkpoint-{state.global_step}"
        _wait_for_all()  # Each may write a part of the checkpoint.
        if state.is_world_process_zero:
            sync_folder(current)
            write_json(current / MARKER, {**self._about(), "step": state.global_step})
        if self._flush is not None:
            self._flush(state.global_step)
        if state.is_world_process_zero:
            for path in folder.glob("checkpoint-*"):
                if path != current:
                    shutil.rmtree(path)


class SkipNonFiniteSteps(TrainerCallback):
    """Leave out the optimizer update of a step in which some row's gradient was not finite.

    One such update would make every weight, and so every later row, not a number. Loss scalers
    for half precision do the same.
    """

    def __init__(self, step_is_finite: Callable[[], bool], *, can_skip: bool = True):
        """`can_skip`: whether the update is still to come; DeepSpeed's engine makes it earlier."""
        self._step_is_finite, self._can_skip = step_is_finite, can_skip

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model=None,
        **_: object,
    ) -> None:
        """Drop the gradients of a step that is not finite, so that the optimizer has none."""
        if self._step_is_finite():
            return
        if not self._can_skip:
            raise GradsiftError(
                f"step {state.global_step}: a row's gradient is not finite, and DeepSpeed has made "
                "its update already. Find the row in one process or with FSDP2, where such updates "
                "are left out."
            )
        model.zero_grad(set_to_none=True)


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
