"""Train and examine every job; what was done once is not done again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from transformers import PreTrainedTokenizerBase

from gradsift.comparison.results import Trained
from gradsift.comparison.saved_models import (
    find_loadable,
    find_saved,
    load_saved,
    own_folder,
    train_job,
)
from gradsift.comparison.suite import EvaluationSuite, evaluate
from gradsift.comparison.training_runs import (
    ARMS,
    CHECKPOINTS,
    TrainingConfig,
    TrainingRun,
    lock_of,
)
from gradsift.errors import GradsiftError
from gradsift.stages.listener import SILENT, Listener
from gradsift.training.cost import duration
from gradsift.training.finetune import FineTuned
from gradsift.training.model import ModelSource, load_model, on_best_device
from gradsift.utils import write_json

SCORES = "scores.json"
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Experiment:
    """What all jobs share.

    Attributes:
        folder: The run folder.
        source: The model they start from.
        tokenizer: Its tokenizer.
        exam: What is asked.
        training: How is trained.
        tokens_per_second: Trained, as the capture's estimate found it; None if it is not known.
    """

    folder: Path
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    exam: EvaluationSuite
    training: TrainingConfig
    tokens_per_second: float | None = None


def run_all(
    jobs: Sequence[TrainingRun], bench: Experiment, listener: Listener = SILENT
) -> list[Trained]:
    """Do what is not done yet; several processes on one run folder share the work.

    Args:
        jobs: All of the comparison.
        bench: What they share.
        listener: Is told what happens.

    Returns:
        What each gave, in order.

    Raises:
        ValueError: If a setting does not fit.
    """
    waiting = list(range(len(jobs)))
    found: dict[int, dict[str, Any]] = {}
    patient = False
    while waiting:
        postponed = []
        for at in waiting:
            known = _known(jobs[at], bench)
            if known is None:
                left = _time_left([jobs[i] for i in waiting if i not in found], found, bench)
                number = f"{at + 1}/{len(jobs)}"
                known = _locked(jobs[at], number, left, bench, patient, listener)
            if known is None:
                postponed.append(at)
            else:
                found[at] = known
        if postponed and not patient:
            listener.note(f"{len(postponed)} arms are with another process: waiting for them")
        # What others do is waited for, and done here if they die.
        waiting, patient = postponed, True
    return [
        Trained(job.arm, job.seed, len(job.instances), found[at]["training"], found[at]["scores"])
        for at, job in enumerate(jobs)
    ]


def _time_left(
    jobs: Sequence[TrainingRun], found: Mapping[int, Mapping[str, Any]], bench: Experiment
) -> str:
    """Return how long jobs take, by what those done took; nothing before one was examined."""
    if not found:
        return ""
    examining = sum(one["scores"]["seconds"] for one in found.values()) / len(found)
    trained = [one["training"] for one in found.values() if one["training"] is not None]
    speed = bench.tokens_per_second
    if trained:
        speed = sum(one["n_tokens"] for one in trained) / sum(one["seconds"] for one in trained)
    if not speed:
        return ""
    to_do = {job.key: tokens_to_train(job, bench) for job in jobs}
    seconds = sum(to_do.values()) / speed + examining * len(to_do)
    return f"; about {duration(seconds)} left if this process does it all"


def _locked(
    job: TrainingRun, number: str, left: str, bench: Experiment, patient: bool, listener: Listener
) -> dict[str, Any] | None:
    try:
        with lock_of(job.training_key, bench.folder).acquire(timeout=-1 if patient else 0):
            # Another process may have ended it meanwhile.
            known = _known(job, bench)
            if known is None:
                what = f"{job.arm.label}, training {job.seed}: {len(job.instances)} rows"
                listener.note(f"{number} {what}{left}")
                known = _do(job, bench, listener)
            return known
    except Timeout:
        return None


def _do(job: TrainingRun, bench: Experiment, listener: Listener) -> dict[str, Any]:
    folder = bench.folder / ARMS / job.folder_name
    if job.settings is None:
        model, training = load_model(bench.source), None
    else:
        tuned = _tuned(job, bench, listener)
        model = tuned.model
        training = {
            "n_steps": tuned.training.n_steps,
            "n_instances": tuned.training.n_instances,
            "n_tokens": tuned.training.n_tokens,
            "seconds": tuned.training.seconds,
            "loss_curve": tuned.training.loss_curve,
        }
    scores, answers = evaluate(on_best_device(model.eval()), bench.tokenizer, bench.exam, listener)
    _require_finite(scores, job)
    ids = [bench.exam.instances[i].instance_id for i in bench.exam.asked]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": i, "answer": answer, "reference": reference}
        for i, answer, reference in zip(ids, answers, bench.exam.references, strict=True)
    ]
    (folder / ANSWERS).write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    result = {
        "identity": job.identity,
        "arm": job.arm.label,
        "seed": job.seed,
        "n_rows": len(job.instances),
        "training": training,
        "scores": scores,
    }
    write_json(folder / SCORES, result)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return result


def _tuned(job: TrainingRun, bench: Experiment, listener: Listener) -> FineTuned:
    kept = find_loadable(job, bench.folder)
    if kept is not None:
        listener.note(f"trained before, weights in {kept}: only examined")
        return load_saved(job, kept, bench.source)
    return train_job(
        job,
        bench.source,
        bench.tokenizer,
        bench.folder,
        keep_in=own_folder(job, bench.folder) if bench.training.keep_models else None,
        save_steps=bench.training.save_steps,
        listener=listener,
    )


def _require_finite(scores: Mapping[str, Any], job: TrainingRun) -> None:
    losses = [*scores["rows"]["loss"], *(x for t in scores["texts"].values() for x in t["loss"])]
    if not all(map(math.isfinite, losses)):
        raise GradsiftError(
            f"{job.arm.label}, training {job.seed}: its held-out loss is not a finite number; the "
            "training diverged. Lower learning_rate, or leave the arm out; what is done is kept."
        )


def tokens_to_train(job: TrainingRun, bench: Experiment) -> int:
    """Return how many tokens a job that is not done has to train on.

    Args:
        job: Of the comparison.
        bench: With weights that were kept, perhaps.

    Returns:
        Their number; 0 where it is only to be examined.
    """
    if job.settings is None or find_loadable(job, bench.folder) is not None:
        return 0
    return job.n_tokens


def is_done(job: TrainingRun, bench: Experiment) -> bool:
    """Return whether a job was done already."""
    return _known(job, bench) is not None


def _known(job: TrainingRun, bench: Experiment) -> dict[str, Any] | None:
    wants_model = bench.training.keep_models and job.settings is not None
    if wants_model and find_saved(job, bench.folder) is None:
        return None
    for path in sorted((bench.folder / ARMS).glob(f"*-{job.key}/{SCORES}")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["identity"] == json.loads(json.dumps(job.identity)):
            return result
    return None
