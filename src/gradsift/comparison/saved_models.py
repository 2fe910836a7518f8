"""Train a job, or load what it trained before: kept weights stand beside what made them."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradsift.comparison.training_runs import ARMS, CHECKPOINTS, MODEL, TrainingRun
from gradsift.stages.listener import Listener
from gradsift.training.finetune import FineTuned, PlainTraining, fine_tune, load_fine_tuned
from gradsift.training.model import ModelSource, load_model
from gradsift.utils import whole_folder, write_json

METADATA = "gradsift.json"


def train_job(
    job: TrainingRun,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    *,
    keep_in: Path | None,
    save_steps: int | None,
    listener: Listener,
) -> FineTuned:
    """Train from where an earlier sitting stopped.

    Args:
        job: What to train.
        source: The model it starts from.
        tokenizer: Its tokenizer.
        run: The run folder; the last checkpoint stays in the job's folder there.
        keep_in: Folder for the weights: the job's own, which is replaced, or an empty one, or None.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        listener: Is told how far it is.

    Returns:
        The model and what was done.

    Raises:
        ValueError: If the training diverged.
    """
    assert job.settings is not None
    with nullcontext() if keep_in is None else whole_folder(keep_in) as unfinished:
        tuned = fine_tune(
            load_model(source),
            tokenizer,
            job.instances,
            job.settings,
            run / ARMS / job.folder_name / CHECKPOINTS,
            save_steps=save_steps,
            save_to=unfinished,
            label=f"{job.arm.label}, training {job.seed}",
            progress=listener.progress,
        )
        if unfinished is not None:
            made_with = {
                "identity": job.trained_as,
                "arm": job.arm.label,
                "bytes": _bytes_of(unfinished),
                "rows": [item.instance_id for item in job.instances],
                **asdict(tuned.training),
            }
            write_json(unfinished / METADATA, made_with)
        if keep_in == own_folder(job, run):
            # Its weights were removed, or damaged.
            shutil.rmtree(keep_in, ignore_errors=True)
    return tuned


def own_folder(job: TrainingRun, run: Path) -> Path:
    """Return where a job's weights are kept, unless another folder is asked for.

    Args:
        job: That trains them.
        run: The run folder.
    """
    return run / ARMS / job.folder_name / MODEL


def find_saved(job: TrainingRun, run: Path) -> Path | None:
    """Find weights that were kept, whatever they have been asked since.

    Args:
        job: That trains them.
        run: The run folder.

    Returns:
        Their folder, or None.
    """
    for path in sorted((run / ARMS).glob(f"*/{MODEL}/{METADATA}")):
        if is_saved_in(path.parent, job):
            return path.parent
    return None


def is_saved_in(folder: Path, job: TrainingRun) -> bool:
    """Return whether a folder has the weights of a job, no file missing or cut.

    Args:
        folder: That may have them.
        job: That trains them.
    """
    made_with = read_metadata(folder)
    return (
        made_with is not None
        and made_with["identity"] == job.trained_as
        and made_with["bytes"] == _bytes_of(folder)
    )


def find_loadable(job: TrainingRun, run: Path) -> Path | None:
    """Find kept weights that give the very model that was trained.

    Args:
        job: That trains them.
        run: The run folder.

    Returns:
        Their folder, or None.
    """
    assert job.settings is not None
    # PiSSA and its like change the base weights at random, which the adapters alone do not say.
    initialised = (job.settings.lora or {}).get("init_lora_weights", True)
    return find_saved(job, run) if isinstance(initialised, bool) else None


def load_saved(job: TrainingRun, folder: Path, source: ModelSource) -> FineTuned:
    """Load weights that were kept.

    Args:
        job: That trained them.
        folder: With the weights.
        source: The model they started from.

    Returns:
        The model, as it was at the end of its training, and what that did.

    Raises:
        ValueError: If they cannot be loaded.
    """
    assert job.settings is not None
    return FineTuned(load_fine_tuned(folder, source, job.settings), training_in(folder))


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Read what made the weights in a folder.

    Args:
        folder: Any.

    Returns:
        Values by name (identity, arm, bytes, rows, and what the training did); None if `train_job`
        did not fill that folder, or somebody changed the file.
    """
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"identity", "bytes", "arm"} <= set(found) else None


def training_in(folder: Path) -> PlainTraining:
    """Return what a training did.

    Args:
        folder: With the weights.

    Returns:
        Steps, tokens, seconds, loss curve.
    """
    made_with = read_metadata(folder)
    assert made_with is not None
    curve = tuple((step, loss) for step, loss in made_with["loss_curve"])
    names = ("n_steps", "n_instances", "n_tokens", "seconds", "resumed_at_step")
    return PlainTraining(curve, **{name: made_with[name] for name in names})


def _bytes_of(folder: Path) -> dict[str, int]:
    """Return the size of every file of weights, and of what says how they belong together."""
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    return {path.name: path.stat().st_size for path in sorted(paths) if path.name != METADATA}
