"""Arms → jobs: what is to be trained, and what makes two trainings the same."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from gradsift.comparison.arms import FULL_STEPS, Arm
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.store.reader import GradientStore
from gradsift.training.finetune import passes_of, steps_of
from gradsift.training.lora_settings import lora_config
from gradsift.training.trainer_settings import TrainerSettings

ARMS = "arms"
CHECKPOINTS = "checkpoints"
MODEL = "model"


@dataclass(frozen=True)
class TrainingConfig:
    """How every arm is trained.

    Attributes:
        epochs: Passes over an arm's rows.
        sft: The user's settings for trl's SFTConfig.
        lora: SelectionConfig for peft's LoraConfig, or None for full-parameter training.
        seed: Added to the number of each training.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        keep_models: Whether the trained weights stay in the arm's folder.
        batching: How rows are put into micro-batches (`training.batches`), or auto.
    """

    epochs: float = 3
    sft: Mapping[str, object] = field(default_factory=dict)
    lora: Mapping[str, object] | None = None
    seed: int = 0
    save_steps: int | None = None
    keep_models: bool = False
    batching: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            ValueError: For epochs that are no number above 0, or checkpoints before the first step.
        """
        if not 0 < self.epochs < math.inf:
            raise GradsiftError(f"`epochs` is {self.epochs}, expected a number above 0.")
        if self.save_steps is not None and self.save_steps < 1:
            raise GradsiftError(f"`save_steps` is {self.save_steps}, expected at least 1.")
        lora_config(self.lora)


@dataclass(frozen=True)
class TrainingRun:
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
    settings: TrainerSettings | None
    identity: dict[str, object]

    @property
    def folder_name(self) -> str:
        """Readable, and different for whatever differs; equal jobs of two arms share it."""
        name = re.sub(r"[^\w.=-]+", "_", self.arm.label.replace("%", "pct"))
        return f"{name}-{self.seed}-{self.key}"

    @property
    def key(self) -> str:
        """The part of the folder's name that equal jobs have in common."""
        return _digest(self.identity)

    @property
    def training_key(self) -> str:
        """Equal for jobs that train the same, whatever they are asked then."""
        return _digest(self.trained_as)

    @property
    def trained_as(self) -> dict[str, object]:
        """What determines the weights: everything but the exam."""
        return {key: value for key, value in self.identity.items() if key != "exam"}

    @property
    def n_tokens(self) -> int:
        """Tokens trained on, without padding; for a number of steps about."""
        if self.settings is None:
            return 0
        in_all = sum(len(item.input_ids) for item in self.instances)
        return round(passes_of(len(self.instances), self.settings) * in_all)


def training_runs_of(
    arms: Sequence[Arm],
    rows: Callable[[Arm, int], list[str]],
    instances: Sequence[Instance],
    training: TrainingConfig,
    identity: Mapping[str, object],
) -> list[TrainingRun]:
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
                jobs.append(TrainingRun(arm, seed, (), None, {**identity, "training": None}))
                continue
            ids = set(rows(arm, seed))
            chosen = [item for item in instances if item.instance_id in ids]
            settings = TrainerSettings(
                training.sft, training.lora, training.seed + seed, training.epochs,
                batching=training.batching,
            )  # fmt: skip
            if arm.name == FULL_STEPS:
                steps = steps_of(len(chosen), training.epochs, settings)
                chosen = list(instances)
                settings = replace(settings, max_steps=steps)
            jobs.append(
                TrainingRun(arm, seed, chosen, settings, _identity(identity, chosen, settings))
            )
    return jobs


def model_identity(store: GradientStore) -> dict[str, object]:
    """Return what identifies the model that all jobs of a run start from.

    Args:
        store: Of the run.

    Returns:
        Values by name.
    """
    names = ("model", "dtype", "load_in", "tokenizer")
    return {
        name: store.manifest.identity[name] for name in names if name in store.manifest.identity
    }


def lock_of(key: str, folder: Path) -> FileLock:
    """Return the lock of whoever trains a job, so that processes do not train it twice.

    Args:
        key: Of the job's training, or whatever else is for one process at a time.
        folder: The run folder.

    Returns:
        The lock, not taken.
    """
    locks = folder / ARMS / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / key)


def _digest(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def _identity(
    shared: Mapping[str, object], chosen: Sequence[Instance], settings: TrainerSettings
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
    if settings.batching != "auto":
        training["batching"] = settings.batching
    return json.loads(json.dumps({**shared, "training": training}, default=str))
