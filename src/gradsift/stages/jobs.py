"""Train and examine every arm; what was done once is not done again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from gradsift.data.instances import Instance
from gradsift.stages.arms import FULL_STEPS, Arm
from gradsift.stages.comparison import Trained
from gradsift.stages.exam import Exam, take_exam
from gradsift.stages.listener import SILENT, Listener
from gradsift.store.files import write_json
from gradsift.training.finetune import fine_tune, steps_of
from gradsift.training.model import ModelSource, best_device, load_model
from gradsift.training.sft_settings import SFTSettings

ARMS = "arms"
SCORES = "scores.json"
ANSWERS = "answers.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"


@dataclass(frozen=True)
class ArmTraining:
    """How every arm is trained.

    Attributes:
        epochs: Passes over an arm's rows.
        sft: The user's settings for trl's SFTConfig.
        lora: Settings for peft's LoraConfig, or None for full-parameter training.
        seed: Added to the number of each training.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        keep_models: Whether the trained weights stay in the arm's folder.
    """

    epochs: float = 3
    sft: Mapping[str, object] = field(default_factory=dict)
    lora: Mapping[str, object] | None = None
    seed: int = 0
    save_steps: int | None = None
    keep_models: bool = False


@dataclass(frozen=True)
class Job:
    """One model to train and examine.

    Attributes:
        arm: Of which arm.
        seed: Number of its training, from 0.
        instances: Trained on; empty for base.
        settings: How; None for base.
        identity: Everything that determines the result.
    """

    arm: Arm
    seed: int
    instances: Sequence[Instance]
    settings: SFTSettings | None
    identity: dict[str, object]

    @property
    def folder_name(self) -> str:
        """Readable, and different for whatever differs; equal jobs of two arms share it."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w.=-]+", "_", self.arm.label.replace("%", "pct"))
        return f"{name}-{self.seed}-{digest[:10]}"

    @property
    def key(self) -> str:
        """The part of the folder's name that equal jobs have in common."""
        return self.folder_name.rpartition("-")[2]

    @property
    def n_tokens(self) -> int:
        """Tokens trained on, without padding; for a number of steps about."""
        if self.settings is None:
            return 0
        in_all = sum(len(item.input_ids) for item in self.instances)
        if self.settings.max_steps is None:
            return round(self.settings.epochs * in_all)
        share = self.settings.max_steps / steps_of(len(self.instances), 1, self.settings)
        return round(share * in_all)


@dataclass(frozen=True)
class Bench:
    """What all jobs share.

    Attributes:
        folder: The run folder.
        source: The model they start from.
        tokenizer: Its tokenizer.
        exam: What is asked.
        training: How is trained.
    """

    folder: Path
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    exam: Exam
    training: ArmTraining


def jobs_of(
    arms: Sequence[Arm],
    rows: Callable[[Arm, int], list[str]],
    instances: Sequence[Instance],
    training: ArmTraining,
    identity: Mapping[str, object],
) -> list[Job]:
    """Lay out everything that is to be trained.

    Args:
        arms: In the order of the comparison.
        rows: From an arm and a seed to instance ids.
        instances: The pool; every arm's rows keep its order.
        training: How every arm is trained.
        identity: Model and exam: what determines results beside the rows and the training.

    Returns:
        The jobs: first training of every arm, then the second ones, so that a comparison that is
        interrupted has something of each.
    """
    jobs = []
    for seed in range(max(arm.n_seeds for arm in arms)):
        for arm in arms:
            if seed >= arm.n_seeds:
                continue
            if not arm.is_trained:
                jobs.append(Job(arm, seed, (), None, {**identity, "training": None}))
                continue
            ids = set(rows(arm, seed))
            chosen = [item for item in instances if item.instance_id in ids]
            settings = SFTSettings(
                training.sft, training.lora, training.seed + seed, training.epochs
            )
            if arm.name == FULL_STEPS:
                steps = steps_of(len(chosen), training.epochs, settings)
                chosen = list(instances)
                settings = SFTSettings(
                    training.sft, training.lora, training.seed + seed, training.epochs, steps
                )
            jobs.append(Job(arm, seed, chosen, settings, _identity(identity, chosen, settings)))
    return jobs


def run_jobs(jobs: Sequence[Job], bench: Bench, listener: Listener = SILENT) -> list[Trained]:
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
                known = _locked(jobs[at], f"{at + 1}/{len(jobs)}", bench, patient, listener)
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


def _locked(
    job: Job, number: str, bench: Bench, patient: bool, listener: Listener
) -> dict[str, Any] | None:
    locks = bench.folder / ARMS / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / job.key, timeout=-1 if patient else 0):
            # Another process may have ended it meanwhile.
            return _known(job, bench) or _do(job, number, bench, listener)
    except Timeout:
        return None


def _do(job: Job, number: str, bench: Bench, listener: Listener) -> dict[str, Any]:
    folder = bench.folder / ARMS / job.folder_name
    listener.note(f"{number} {job.arm.label}, training {job.seed}: {len(job.instances)} rows")
    model, training = load_model(bench.source), None
    if job.settings is not None:
        tuned = fine_tune(
            model,
            bench.tokenizer,
            job.instances,
            job.settings,
            folder / CHECKPOINTS,
            save_steps=bench.training.save_steps,
            save_to=folder / MODEL if bench.training.keep_models else None,
            on_progress=progress_of(job, listener),
        )
        model = tuned.model
        training = {
            "n_steps": tuned.training.n_steps,
            "n_instances": tuned.training.n_instances,
            "n_tokens": tuned.training.n_tokens,
            "seconds": tuned.training.seconds,
            "loss_curve": tuned.training.loss_curve,
        }
    scores, answers = take_exam(
        model.eval().to(best_device()), bench.tokenizer, bench.exam, listener
    )
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


def is_done(job: Job, bench: Bench) -> bool:
    """Return whether a job was done already."""
    return _known(job, bench) is not None


def _known(job: Job, bench: Bench) -> dict[str, Any] | None:
    for path in sorted((bench.folder / ARMS).glob(f"*-{job.key}/{SCORES}")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["identity"] == json.loads(json.dumps(job.identity)):
            return result
    return None


def progress_of(job: Job, listener: Listener) -> Callable[[int, int], None]:
    """Return a function that tells a listener how far a training is, all its epochs together."""
    assert job.settings is not None
    n_tokens = job.n_tokens
    in_all = sum(len(item.input_ids) for item in job.instances)
    n_rows = max(1, round(len(job.instances) * n_tokens / in_all))

    def tell(done: int, tokens: int) -> None:
        listener.progress(min(done, n_rows), n_rows, min(tokens, n_tokens), n_tokens)

    return tell


def _identity(
    shared: Mapping[str, object], chosen: Sequence[Instance], settings: SFTSettings
) -> dict[str, object]:
    digest = hashlib.sha256()
    for item in chosen:
        digest.update(json.dumps([item.input_ids, item.labels]).encode())
    training = {
        "rows": f"sha256 {digest.hexdigest()[:16]}",
        # 2 and 2.0 are the same training.
        "epochs": float(settings.epochs),
        "max_steps": settings.max_steps,
        "sft": dict(settings.sft),
        "lora": None if settings.lora is None else dict(settings.lora),
        "seed": settings.seed,
    }
    return json.loads(json.dumps({**shared, "training": training}, default=str))
