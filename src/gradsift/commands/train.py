"""Fine-tune the model of a run on the rows of one arm, and keep the weights."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from gradsift.commands.reference_losses import reference_losses
from gradsift.comparison.arms import (
    STRATEGY_OF_AN_ARM,
    Arm,
    arm_settings,
    needs_of_arms,
    parse_arm,
    rows_of,
)
from gradsift.comparison.training_runs import (
    METADATA,
    TrainingRun,
    damage_of,
    find_whole,
    lock_of,
    read_metadata,
    replay_notes,
    settings_of_arm,
    train_run,
    training_in,
    training_runs_for,
)
from gradsift.config import (
    ArmConfig,
    ArmTrainingConfig,
    ReplayConfig,
    RowsConfig,
    SelectionConfig,
    TrustConfig,
)
from gradsift.console import shows_progress
from gradsift.errors import GradsiftError
from gradsift.files import remove_leftovers, whole_folder, writing
from gradsift.progress import Progress
from gradsift.replay.source import replay_of
from gradsift.run_folder import Run
from gradsift.schema import takes
from gradsift.seals import short_sha256
from gradsift.selection.candidates import Need
from gradsift.store.reader import GradientStore
from gradsift.training.checkpoint import remove_checkpoints
from gradsift.training.finetune import TrainingSummary
from gradsift.training.loss_curve import first_and_last, loss_sentence
from gradsift.training.model import without_progress_bars
from gradsift.training.reports import reports_to
from gradsift.training.settings.trainer import require_settings
from gradsift.wording import joined

# In the order in which they are read.
SETTINGS = (
    ArmConfig,
    ArmTrainingConfig,
    ReplayConfig,
    SelectionConfig,
    RowsConfig,
    TrustConfig,
)
# Settings of `compare` that training one arm does not have.
NOT_TAKEN = {
    "strategy": STRATEGY_OF_AN_ARM,
    "keep_models": "is for compare; train always keeps the model",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A model that was fine-tuned on an arm's rows.

    Attributes:
        folder: With its weights and tokenizer.
        arm: What it was trained on.
        n_rows: How many rows, those of replay among them.
        n_steps: Optimizer updates.
        n_tokens: Tokens trained on.
        seconds: Of training.
        replay: How many of the rows are of replay, and their share; None without.
        training_loss: Its mean over the `first` and the `last` tenth of the steps; None where
            nothing was logged.
    """

    folder: Path
    arm: str
    n_rows: int
    n_steps: int
    n_tokens: int
    seconds: float
    replay: dict[str, Any] | None = None
    training_loss: dict[str, float] | None = None

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {**vars(self), "folder": str(self.folder)}

    def text(self) -> str:
        """Return what a person wants to know."""
        done = f"{self.n_rows} rows, {self.n_steps} steps, {self.n_tokens} tokens"
        if self.replay is not None:
            n_rows, share = self.replay["n_rows"], 100 * self.replay["share"]
            done += f" (replay: {n_rows} rows, {share:.1f} % of the tokens that have a loss)"
        lines = [f"{self.arm}: {done}, {self.seconds:.0f} s", loss_sentence(self.training_loss)]
        return joined([*lines, str(self.folder)])


@takes(*SETTINGS, without=NOT_TAKEN)
@shows_progress
def train(
    run: str | Path | GradientStore | Run,
    *,
    progress: Progress | bool = True,
    **settings: Any,
) -> TrainResult:
    """Fine-tune the model of a captured run on an arm's rows. Called again it resumes.

    Args:
        run: A run folder of `capture`, or its store.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: What to train on, how to train and how to select; see Settings.

    Returns:
        Where the model is.

    Raises:
        GradsiftError: If a setting does not fit, or rows or model changed since the capture.
    """
    arm, training, replaying, selection, where, trust = arm_settings(settings, *SETTINGS)
    parsed = parse_arm(arm.arm, arm.budget, replaying.ratio)
    run = Run.of(run, data=where.data, trust_remote_code=trust.trust_remote_code)
    run.introduce()
    with without_progress_bars():
        trainer = settings_of_arm(training, run.config, selection.seed)
        remove_leftovers(run.folder)
        replay = replay_of(run, replaying, bool(parsed.replay_share), progress)
        compute_missing_losses(run, [parsed], selection, progress)
        rows = rows_of(run, [parsed], selection)
        (training_run,) = training_runs_for(run, [parsed], rows, trainer, replay=replay)
        for note in replay_notes([training_run]):
            logger.warning(note)
        out = None if arm.out is None else _own_folder(arm.out)
        folder, done = _train_into(out, training_run, run, training.save_steps, progress)
    n_rows, replayed = len(training_run.instances), training_run.replayed
    return TrainResult(
        folder,
        parsed.label,
        n_rows,
        done.n_steps,
        done.n_tokens,
        done.seconds,
        None if replayed is None else replayed.summary(),
        first_and_last(done.loss_curve),
    )


def compute_missing_losses(
    run: Run, arms: Sequence[Arm], selection: SelectionConfig, progress: Progress
) -> None:
    """Compute the reference losses if an arm needs them and they are not there."""
    if Need.REFERENCE_LOSSES in needs_of_arms(arms, selection) and not run.has_reference_losses:
        logger.info("an arm needs the reference losses of all rows: computing them, forward only")
        reference_losses(run, progress=progress)


def _own_folder(out: str) -> Path:
    folder = Path(out).resolve()
    if folder.is_mount():
        raise GradsiftError(f"{folder} is a mount point: give a folder inside it as `out`.")
    return folder


def _train_into(
    out: Path | None,
    training_run: TrainingRun,
    run: Run,
    save_steps: int | None,
    progress: Progress,
) -> tuple[Path, TrainingSummary]:
    folder = training_run.model_folder if out is None else out
    folder_lock = lock_of(training_run.arms_folder, f"out-{short_sha256(str(folder), 10)}")
    with _held(training_run.lock()), _held(folder_lock):
        if out is not None and _is_whole(out, training_run):
            saved = out
        else:
            saved = find_whole(training_run)
        if saved is not None:
            # A kill between the weights and the tidying up leaves them.
            remove_checkpoints(training_run.checkpoints)
        if saved is not None and (reporters := reports_to(training_run.settings.sft)):
            logger.warning(
                f"nothing is reported to {', '.join(reporters)}: this arm is not trained again"
            )
        if saved is not None and out in (None, saved):
            logger.info(f"{saved}: this arm is trained; nothing to do")
            return saved, training_in(saved)
        if saved is not None:
            logger.info(f"trained before, weights in {saved}: copied")
            with whole_folder(folder) as unfinished, writing(folder):
                shutil.copytree(saved, unfinished, dirs_exist_ok=True)
            return folder, training_in(folder)
        n_rows, n_tokens = len(training_run.instances), training_run.n_tokens
        logger.info(f"{training_run.arm.label}: {n_rows} rows, {n_tokens} tokens to train on")
        training_run.require_no_links()
        require_settings(training_run.settings)
        tuned = train_run(
            training_run, run, save_to=folder, save_steps=save_steps, progress=progress
        )
        remove_checkpoints(training_run.checkpoints)
        return folder, tuned.training


@contextmanager
def _held(lock: BaseFileLock) -> Generator[None, None, None]:
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process trains this arm, or into this folder: waiting for it")
        held = lock.acquire()
    with held:
        yield


def _is_whole(folder: Path, training_run: TrainingRun) -> bool:
    """Return whether the user's own folder has the weights; refuse one that is not empty else."""
    metadata = read_metadata(folder)
    if metadata is not None and metadata["identity"] == training_run.weights_identity:
        if (damage := damage_of(folder)) is not None:
            raise GradsiftError(f"{damage}. Give another `out`, or remove {folder}.")
        return True
    if metadata is not None:
        raise GradsiftError(
            f"{folder} holds a model that was trained with other settings ({metadata['arm']}): "
            "give another `out`, or remove it."
        )
    if (folder / METADATA).exists():
        raise GradsiftError(
            f"{folder / METADATA} is damaged. Give another `out`, or remove {folder}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GradsiftError(f"{folder} holds something else: give another `out`.")
    return False
