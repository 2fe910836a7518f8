"""Checkpoints to resume from: only whole ones count, and parts are written in step with them.

transformers writes a checkpoint file by file and resumes from the highest number, complete or not
(https://github.com/huggingface/transformers/issues/35525). Here a marker is written last, with the
SHA-256 of every file, and only what is as it says is resumed from. Two checkpoints are kept, so
that one is left if the other is damaged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.distributed
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradsift.errors import GradsiftError
from gradsift.files import remove, remove_leftovers, require_no_link, sync_folder, writing
from gradsift.seals import read_json, write_json
from gradsift.training.digests import digests_of, first_damage

MARKER = "whole.json"  # The file name is older than the word "complete".
# Keys of the marker; its other values are numbers, for whoever resumes.
STEP = "step"
FILES = "files"
MADE_WITH = "made_with"

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: Its folder.
        step: Optimizer updates made before it.
        about: What `SaveEvery` was to note.
    """

    path: Path
    step: int
    about: dict[str, float]


def resume_from(
    folder: Path, steps: Collection[int] | None = None, *, made_with: str
) -> Checkpoint | None:
    """Return the newest whole checkpoint in a folder, or None where training begins anew.

    Checkpoints that are newer are removed: those that are damaged, unfinished or of another
    training than that which `made_with` is a digest of, with a warning,
    and those of other steps than `steps`, of which there are no records. The first process looks,
    and all return what it found.

    Raises:
        GradsiftError: If the folder or something in it is a link: whatever is saved there would be
            written elsewhere.
    """
    return _by_first_process(lambda: _newest_whole(folder, steps, made_with))


def _newest_whole(folder: Path, steps: Collection[int] | None, made_with: str) -> Checkpoint | None:
    whole = None
    require_no_link(folder)  # Before anything is removed in it.
    found = sorted(_checkpoints(folder).items(), reverse=True)
    for step, path in found:
        if whole is not None:
            # It is checked once it is needed, and removed before the next one is written.
            continue
        if steps is None or step in steps:
            whole = _whole_or_warn(path, step, made_with)
        if whole is None:
            remove(path)
    _require_no_links(folder)
    if whole is not None:
        logger.debug(f"resuming after {whole.step} optimizer steps")
    elif found or steps:
        logger.warning(f"{folder}: no whole checkpoint is there; training begins anew")
    return whole


def _checkpoints(folder: Path) -> dict[int, Path]:
    paths = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("*")}
    return {int(match[1]): path for path, match in paths.items() if match}


def _whole_or_warn(path: Path, step: int, made_with: str) -> Checkpoint | None:
    about: dict[str, float] = {}
    try:
        about, files = _marked(path, step, made_with)
        damage = first_damage(path, files, ignored=[MARKER])
    except GradsiftError as error:
        damage = str(error)
    except OSError as error:  # It may be whole.
        raise GradsiftError(f"{path}: this checkpoint cannot be read: {error}") from error
    if damage is None:
        return Checkpoint(path, step, about)
    logger.warning(f"{damage}: the checkpoint after {step} optimizer steps is left out")
    return None


def _marked(
    path: Path, step: int, made_with: str
) -> tuple[dict[str, float], dict[str, str] | None]:
    """Read a marker: what was to be noted, and the digests of the files."""
    marker = path / MARKER
    for part in (path, marker):
        if part.is_symlink():
            raise GradsiftError(f"{part} is a symbolic link")
    if not marker.is_file():
        raise GradsiftError(f"{marker} is missing, it was not saved to its end")
    about = read_json(marker)
    if not isinstance(about, dict) or about.get(STEP) != step:
        raise GradsiftError(f"{marker} is not that of step {step}")
    # An earlier gradsift noted neither.
    if about.pop(MADE_WITH, made_with) != made_with:
        raise GradsiftError(f"{marker} is that of another training")
    files = about.pop(FILES, None)
    digests = () if files is None else files.values() if isinstance(files, dict) else [files]
    if not all(isinstance(digest, str) for digest in digests):
        raise GradsiftError(f"{marker} holds something else than digests of files")
    if not all(isinstance(value, int | float) for value in about.values()):
        raise GradsiftError(f"{marker} holds something else than numbers")
    return about, files


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints but the newest: with the one that is written next there are two."""
    found = _checkpoints(folder)
    for step, path in found.items():
        if step != max(found):
            remove(path)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, and their folder unless it holds something else."""
    require_no_link(folder)
    for path in _checkpoints(folder).values():
        remove(path)
    remove_leftovers(folder)
    with suppress(OSError):
        folder.rmdir()


def _require_no_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            require_no_link(path)


def _by_first_process(call: Callable[[], T]) -> T:
    found, error = None, None
    if not _several() or torch.distributed.get_rank() == 0:
        try:
            found = call()
        except GradsiftError as caught:
            error = caught
    found, message = broadcast_object_list([found, None if error is None else str(error)])
    if message is not None:
        raise error or GradsiftError(message)
    return found


class SaveEvery(TrainerCallback):
    """Every `n_steps` updates: a checkpoint, marked when complete; then the records.

    In this order a kill loses only records that were not yet written: until the next checkpoint is
    begun, the one that belongs to the part before them is still there.
    """

    def __init__(
        self,
        n_steps: int,
        flush: Callable[[int], None] | None = None,
        *,
        made_with: str,
        last_too: bool = False,
        about: Callable[[], dict[str, object]] = dict,
    ):
        """Nothing is saved yet.

        Args:
            n_steps: Optimizer updates between two checkpoints.
            flush: Is given the number of updates.
            made_with: A digest of what determines the training: no other resumes from it.
            last_too: Whether a checkpoint follows the last update, too.
            about: For the marker, and whoever resumes.
        """
        self._made_with = made_with
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
        """Mark the checkpoint, then write the records."""
        current = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _wait_for_all()  # Each may write a part of the checkpoint.
        if state.is_world_process_zero:
            with writing(current):
                sync_folder(current)
                marks = {**self._about(), STEP: state.global_step, MADE_WITH: self._made_with}
                marks[FILES] = digests_of(current)
                write_json(current / MARKER, marks)
        if self._flush is not None:
            self._flush(state.global_step)


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


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _wait_for_all() -> None:
    if _several():
        torch.distributed.barrier()
