"""Fine-tune the model of a run on the rows of one arm, and keep the weights."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, Timeout
from transformers import PreTrainedTokenizerBase

from gradsift.comparison.arms import Arm, rows_of
from gradsift.comparison.saved_models import (
    find_saved,
    is_saved_in,
    own_folder,
    read_metadata,
    train_job,
    training_in,
)
from gradsift.comparison.training_runs import (
    ARMS,
    CHECKPOINTS,
    TrainingConfig,
    TrainingRun,
    lock_of,
    model_identity,
    training_runs_of,
)
from gradsift.errors import GradsiftError
from gradsift.stages.captured import Captured
from gradsift.stages.listener import SILENT, Listener
from gradsift.stages.rows import instances_of
from gradsift.training.finetune import PlainTraining
from gradsift.training.model import load_config, load_tokenizer, require_adapters
from gradsift.utils import whole_folder


def train_arm(
    captured: Captured,
    arm: Arm,
    training: TrainingConfig,
    out: Path | None,
    listener: Listener = SILENT,
) -> tuple[Path, int, PlainTraining]:
    """Train on an arm's rows, from where an earlier sitting stopped.

    Args:
        captured: The run.
        arm: What to train on.
        training: How.
        out: Folder for the model; None for one in the run folder.
        listener: Is told what happens.

    Returns:
        The folder with the weights, the number of rows, and what was done.

    Raises:
        ValueError: If the folder holds something else, or rows or model changed.
    """
    config = load_config(captured.source)
    require_adapters(captured.source, config, has_adapters=training.lora is not None)
    store, tokenizer = captured.store, load_tokenizer(captured.source)
    instances = instances_of(store, captured.pool, captured.source, tokenizer, captured.settings)
    rows = rows_of(store, captured.selection, captured.files, [arm])
    identity = model_identity(store)
    (job,) = training_runs_of([arm], rows, instances, training, identity)
    own = own_folder(job, store.folder)
    folder = (find_saved(job, store.folder) or own) if out is None else out.resolve()
    if folder.is_mount():
        raise GradsiftError(f"{folder} is a mount point: give a folder inside it as `out`.")
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:10]
    with (
        _held(lock_of(job.training_key, store.folder), listener),
        _held(lock_of(f"out-{digest}", store.folder), listener),
    ):
        if is_saved_in(folder, job):
            listener.note(f"{folder}: this arm is trained; nothing to do")
            done = training_in(folder)
        else:
            if folder != own:
                _require_empty(folder)
            done = _train(captured, job, training, folder, tokenizer, listener)
    return folder, len(job.instances), done


@contextmanager
def _held(lock: BaseFileLock, listener: Listener) -> Generator[None, None, None]:
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        listener.note("another process trains this arm, or into this folder: waiting for it")
        held = lock.acquire()
    with held:
        yield


def _train(
    captured: Captured,
    job: TrainingRun,
    training: TrainingConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    listener: Listener,
) -> PlainTraining:
    run = captured.store.folder
    kept = find_saved(job, run)
    if kept is not None:
        listener.note(f"trained before, weights in {kept}: copied")
        with whole_folder(folder) as unfinished:
            shutil.copytree(kept, unfinished, dirs_exist_ok=True)
        return training_in(folder)
    listener.note(f"{job.arm.label}: {len(job.instances)} rows, {job.n_tokens} tokens to train on")
    tuned = train_job(
        job,
        captured.source,
        tokenizer,
        run,
        keep_in=folder,
        save_steps=training.save_steps,
        listener=listener,
    )
    shutil.rmtree(run / ARMS / job.folder_name / CHECKPOINTS, ignore_errors=True)
    return tuned.training


def _require_empty(folder: Path) -> None:
    made_with = read_metadata(folder)
    if made_with is not None:
        raise GradsiftError(
            f"{folder} holds a model that was trained otherwise ({made_with['arm']}), or not all "
            "of its files: give another `out`, or remove it."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GradsiftError(f"{folder} holds something else: give another `out`.")
