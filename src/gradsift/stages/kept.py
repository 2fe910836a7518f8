"""Train a job, or load what it trained before: kept weights stand beside what made them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradsift.stages.jobs import ARMS, CHECKPOINTS, MODEL, Job, progress_of
from gradsift.stages.listener import Listener
from gradsift.store.files import whole_folder, write_json
from gradsift.training.finetune import FineTuned, fine_tune, load_fine_tuned
from gradsift.training.model import ModelSource, load_model
from gradsift.training.plain import PlainTraining

MADE_WITH = "gradsift.json"
WEIGHTS = "*.safetensors"


def train_job(
    job: Job,
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
        keep_in: Folder for the weights; None keeps none.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        listener: Is told how far it is.

    Returns:
        The model and what was done.
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
            on_progress=progress_of(job, listener),
        )
        if unfinished is not None:
            write_json(
                unfinished / MADE_WITH,
                {
                    "identity": job.trained_as,
                    "arm": job.arm.label,
                    "rows": [item.instance_id for item in job.instances],
                    **asdict(tuned.training),
                },
            )
    return tuned


def find_kept(job: Job, run: Path) -> Path | None:
    """Find weights that were kept, whatever they have been asked since.

    Args:
        job: That trains them.
        run: The run folder.

    Returns:
        Their folder, or None.
    """
    for path in sorted((run / ARMS).glob(f"*/{MODEL}/{MADE_WITH}")):
        folder = path.parent
        # Who needs room may have removed the weights alone.
        if read_made_with(folder)["identity"] == job.trained_as and any(folder.glob(WEIGHTS)):
            return folder
    return None


def load_kept(job: Job, folder: Path, source: ModelSource) -> FineTuned:
    """Load weights that were kept.

    Args:
        job: That trained them.
        folder: With the weights.
        source: The model they started from.

    Returns:
        The model, as it was at the end of its training, and what that did.
    """
    assert job.settings is not None
    model = load_fine_tuned(folder, source, job.settings)
    return FineTuned(model, training_of(read_made_with(folder)))


def read_made_with(folder: Path) -> dict[str, Any]:
    """Read what made the weights in a folder.

    Args:
        folder: That `train_job` filled.

    Returns:
        Values by name: identity, arm, rows, and what the training did.
    """
    return json.loads((folder / MADE_WITH).read_text(encoding="utf-8"))


def training_of(made_with: dict[str, Any]) -> PlainTraining:
    """Return what a training did.

    Args:
        made_with: As `read_made_with` returns it.

    Returns:
        Steps, tokens, seconds, loss curve.
    """
    curve = tuple((step, loss) for step, loss in made_with["loss_curve"])
    names = ("n_steps", "n_instances", "n_tokens", "seconds", "resumed_at_step")
    return PlainTraining(curve, **{name: made_with[name] for name in names})
