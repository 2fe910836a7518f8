"""Arms → training runs: what makes two of them the same, training one, finding saved weights."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from gradsift.comparison.arms import FULL_STEPS, Arm
from gradsift.config import ArmTrainingConfig, RunConfig, without_reports
from gradsift.config_files import with_absolute_files
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.files import make_folder, remove, require_no_link, whole_folder
from gradsift.progress import Progress
from gradsift.replay.rows import Replayed, mixed
from gradsift.replay.shares import tokens_for
from gradsift.replay.source import Replay
from gradsift.run_folder import Run
from gradsift.seals import read_json, short_sha256, write_json
from gradsift.training.digests import digests_of, files_of, first_damage
from gradsift.training.finetune import (
    FineTuned,
    TrainingSummary,
    fine_tune,
    load_fine_tuned,
    passes_of,
    steps_of,
)
from gradsift.training.model import load_model, require_adapters
from gradsift.training.reports import run_name
from gradsift.training.settings.checks import require_values
from gradsift.training.settings.known import TOKENIZER_SETTINGS
from gradsift.training.settings.lora import lora_config
from gradsift.training.settings.trainer import TrainerSettings

ARMS = "arms"
METADATA = "gradsift.json"
# What of the model a capture's identity names.
_MODEL = ("model", "dtype", "load_in", "tokenizer")
# Of the identity: what the model is asked after its training. On disk in many a run folder.
_EVALUATION = "exam"
# Of saved weights: files that no loading reads, and that people may change.
_FOR_PEOPLE = (".md", ".gitattributes")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """One model to train and evaluate.

    Attributes:
        arm: Of which arm.
        index: Number of its training, from 0.
        instances: Trained on, those of replay among them; empty for base.
        settings: None for base.
        identity: Everything that determines the result.
        arms_folder: Where the run folder has a folder for each of them.
        replayed: Which of the instances are of replay, if any are.
    """

    arm: Arm
    index: int
    instances: Sequence[Instance]
    settings: TrainerSettings | None
    identity: dict[str, object]
    arms_folder: Path
    replayed: Replayed | None = None

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.arm.label}, training {self.index}"

    @property
    def key(self) -> str:
        """The part of the folder's name that equal runs of two arms have in common."""
        return _digest(self.identity)

    @property
    def folder(self) -> Path:
        """Readable, and different for whatever differs."""
        name = re.sub(r"[^\w.=-]+", "_", self.arm.label.replace("%", "pct"))
        return self.arms_folder / f"{name}-{self.index}-{self.key}"

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are while it is in training."""
        return self.folder / "checkpoints"

    @property
    def model_folder(self) -> Path:
        """Where its weights are saved, unless another folder is asked for."""
        return self.folder / "model"

    @property
    def weights_identity(self) -> dict[str, object]:
        """What determines the weights: everything but the evaluation."""
        return {key: value for key, value in self.identity.items() if key != _EVALUATION}

    @property
    def n_tokens(self) -> int:
        """Tokens trained on, without padding; for a number of steps about."""
        if self.settings is None:
            return 0
        n_tokens = sum(len(item.input_ids) for item in self.instances)
        return round(passes_of(len(self.instances), self.settings) * n_tokens)

    def require_no_links(self) -> None:
        """Refuse to write where a link of a received run folder may lead."""
        for path in (self.checkpoints, self.model_folder):
            require_no_link(path)

    def lock(self) -> FileLock:
        """Return the lock of the process that trains these weights, not taken."""
        return lock_of(self.arms_folder, _digest(self.weights_identity))


def lock_of(arms_folder: Path, key: str) -> FileLock:
    """Return the lock for what one process does at a time, not taken."""
    locks = arms_folder / "locks"
    make_folder(locks)
    return FileLock(locks / key)


def settings_of_arm(training: ArmTrainingConfig, capture: RunConfig, seed: int) -> TrainerSettings:
    """Say how every arm is trained: what is not said is as in the capture.

    Raises:
        GradsiftError: For settings that SFTConfig or LoraConfig do not take, or with which the rows
            would be other ones.
    """
    captured, lora = capture.lora_settings(), training.lora
    if lora is None:
        lora = captured
    elif isinstance(lora, bool):
        lora = (captured or {}) if lora else None
    own = with_absolute_files(training.sft)
    for key in TOKENIZER_SETTINGS:
        if key in own and own[key] != capture.sft.get(key):
            raise GradsiftError(
                f"sft setting {key} is {own[key]!r}, but the rows were captured with "
                f"{capture.sft.get(key)!r}: leave it out, or capture again."
            )
    sft = {**without_reports(capture.sft), **own}
    # No configuration is made yet: that would reset what accelerate knows.
    require_values(sft)
    lora_config(lora)
    return TrainerSettings(sft, lora, seed, training.epochs, batching=capture.batching)


def training_runs_for(
    run: Run,
    arms: Sequence[Arm],
    rows: Callable[[Arm, int], Sequence[str]],
    settings: TrainerSettings,
    evaluation: Mapping[str, object] | None = None,
    replay: Replay | None = None,
    *,
    dry_run: bool = False,
) -> list[TrainingRun]:
    """List all that is to be trained.

    The first training of every arm comes before the second ones, so that a comparison that is
    interrupted has something of each.

    Args:
        run: Every arm's rows keep the order of its pool.
        arms: In the order of the comparison.
        rows: From `rows_of`.
        settings: How every arm is trained; the number of a training is added to the seed.
        evaluation: Identity of what is asked after training, if anything is.
        replay: Of the arms that have a share of it.
        dry_run: Whether nothing may be written: rows of replay are then estimated.
    """
    require_adapters(run.model, run.model_config, has_adapters=settings.lora is not None)
    captured = run.store.manifest.identity
    shared: dict[str, object] = {name: captured[name] for name in _MODEL if name in captured}
    if evaluation is not None:
        shared[_EVALUATION] = evaluation
    listed = [
        (arm, index, _own_rows(run, arm, rows, index))
        for index in range(max(arm.n_seeds for arm in arms))
        for arm in arms
        if index < arm.n_seeds
    ]
    if replay is not None:
        wanted = (
            tokens_for(
                arm.replay_share, _n_trained(run.instances if arm.name == FULL_STEPS else own)
            )
            for arm, _, own in listed
        )
        replay.prepare(max(wanted), write=not dry_run)
    folder, training_runs = run.folder / ARMS, []
    for arm, index, chosen in listed:
        if not arm.is_trained:
            identity = {**shared, "training": None}
            training_runs.append(TrainingRun(arm, index, (), None, identity, folder))
            continue
        seeded = replace(settings, seed=settings.seed + index)
        replayed = _replayed(replay, arm, chosen, seeded.seed)
        if arm.name == FULL_STEPS:
            n_steps = steps_of(len(mixed(chosen, replayed)), seeded.epochs, seeded)
            seeded = replace(seeded, max_steps=n_steps)
            chosen = list(run.instances)
            replayed = _replayed(replay, arm, chosen, seeded.seed)
        chosen = mixed(chosen, replayed)
        identity = _identity(shared, chosen, seeded)
        training_runs.append(TrainingRun(arm, index, chosen, seeded, identity, folder, replayed))
    return training_runs


def _own_rows(
    run: Run, arm: Arm, rows: Callable[[Arm, int], Sequence[str]], index: int
) -> list[Instance]:
    if not arm.is_trained:
        return []
    ids = set(rows(arm, index))
    return [item for item in run.instances if item.instance_id in ids]


def _replayed(
    replay: Replay | None, arm: Arm, own: Sequence[Instance], seed: int
) -> Replayed | None:
    if replay is None or not arm.replay_share:
        return None
    ids = [item.instance_id for item in own]
    return replay.beside(ids, _n_trained(own), arm.replay_share, seed, arm.label)


def _n_trained(instances: Sequence[Instance]) -> int:
    return sum(item.n_response_tokens for item in instances)


def replay_notes(training_runs: Sequence[TrainingRun]) -> list[str]:
    """Say which arms have another share of replay than they were to have."""
    warnings = {}
    for training_run in training_runs:
        warning = None if training_run.replayed is None else training_run.replayed.warning()
        if warning is not None:
            warnings.setdefault(training_run.arm.label, warning)
    return [f"{label}: {warning}" for label, warning in warnings.items()]


def _identity(
    shared: Mapping[str, object], chosen: Sequence[Instance], settings: TrainerSettings
) -> dict[str, object]:
    rows = (json.dumps([item.input_ids, item.labels]) for item in chosen)
    training = {
        "rows": f"sha256 {short_sha256(rows)}",
        # 2 and 2.0 are the same training.
        "epochs": float(settings.epochs),
        "max_steps": settings.max_steps,
        "sft": without_reports(settings.sft),
        "lora": None if settings.lora is None else dict(settings.lora),
        "seed": settings.seed,
    }
    if settings.batching != "auto":
        training["batching"] = settings.batching
    return json.loads(json.dumps({**shared, "training": training}, default=str))


def _digest(identity: Mapping[str, object]) -> str:
    return short_sha256(json.dumps(identity, sort_keys=True), 10)


def train_run(
    training_run: TrainingRun,
    run: Run,
    *,
    save_to: Path | None,
    save_steps: int | None,
    progress: Progress,
) -> FineTuned:
    """Train from where an earlier session stopped; the last checkpoint stays.

    Args:
        training_run: What is trained.
        run: With the model.
        save_to: Folder for the weights: the training run's own, which is replaced, or an empty one,
            or None.
        save_steps: Optimizer updates between two checkpoints; None makes about four.
        progress: Of all epochs together.
    """
    assert training_run.settings is not None
    with nullcontext() if save_to is None else whole_folder(save_to) as unfinished:
        tuned = fine_tune(
            load_model(run.model),
            run.tokenizer,
            training_run.instances,
            training_run.settings,
            training_run.checkpoints,
            save_steps=save_steps,
            save_to=unfinished,
            label=training_run.title,
            called=run_name(training_run.settings.sft, run.folder.name, training_run.title),
            made_with=_digest(training_run.weights_identity),
            progress=progress,
        )
        if unfinished is not None:
            metadata = {
                "identity": training_run.weights_identity,
                "arm": training_run.arm.label,
                "bytes": _bytes_of(unfinished),
                "digests": digests_of(unfinished),
                "rows": [item.instance_id for item in training_run.instances],
                **asdict(tuned.training),
            }
            write_json(unfinished / METADATA, metadata)
        if save_to == training_run.model_folder:
            # Its weights were removed, or damaged.
            remove(save_to)
    return tuned


def find_saved(training_run: TrainingRun) -> Path | None:
    """Find the folder of saved weights in the run folder, whatever they were asked since.

    No file is missing or cut; whether they are whole, `find_whole` says, which reads all of them.
    """
    for path in _saved_folders(training_run):
        if is_saved_in(path, training_run):
            return path
    return None


def find_whole(training_run: TrainingRun) -> Path | None:
    """Find saved weights in the run folder, to be read; warns of each that is damaged."""
    for path in _saved_folders(training_run):
        metadata = read_metadata(path)
        if metadata is None and path == training_run.model_folder:
            logger.warning(f"{path / METADATA}: missing or damaged; these weights are left out")
        if metadata is None or metadata["identity"] != training_run.weights_identity:
            continue
        if (damage := damage_of(path)) is None:
            return path
        logger.warning(f"{damage}; these weights are left out")
    return None


def _saved_folders(training_run: TrainingRun) -> list[Path]:
    return sorted(training_run.arms_folder.glob("*/model"))


def is_loadable(training_run: TrainingRun) -> bool:
    """Return whether saved weights would give the very model that was trained."""
    assert training_run.settings is not None
    # PiSSA and its like change the base weights at random, which the adapters alone do not say.
    initialised = (training_run.settings.lora or {}).get("init_lora_weights", True)
    return isinstance(initialised, bool)


def is_saved_in(folder: Path, training_run: TrainingRun) -> bool:
    """Return whether a folder has the weights, no file missing or cut."""
    metadata = read_metadata(folder)
    return (
        metadata is not None
        and metadata["identity"] == training_run.weights_identity
        and metadata["bytes"] == _bytes_of(folder)
    )


def damage_of(folder: Path) -> str | None:
    """Return what is wrong with the saved weights in a folder, naming the file; None if nothing.

    Of weights that an earlier gradsift saved the sizes are looked at.
    """
    metadata = read_metadata(folder)
    if metadata is None:
        return f"{folder / METADATA} is missing or damaged"
    ignored = [METADATA, *(name for name in files_of(folder) if name.endswith(_FOR_PEOPLE))]
    digests = metadata.get("digests")
    if digests is not None:
        digests = {name: sha for name, sha in digests.items() if not name.endswith(_FOR_PEOPLE)}
    if (damage := first_damage(folder, digests, ignored=ignored)) is not None:
        return damage
    found, expected = _bytes_of(folder), metadata["bytes"]
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            sizes = [
                f"{size} bytes" if size else "nothing"
                for size in (found.get(name), expected.get(name))
            ]
            return f"{folder / name} is damaged: {sizes[0]} there, {sizes[1]} saved"
    return None


def load_saved(folder: Path, training_run: TrainingRun, run: Run) -> FineTuned:
    """Load the model as it was at the end of its training."""
    assert training_run.settings is not None
    model = load_fine_tuned(folder, run.model, training_run.settings)
    return FineTuned(model, training_in(folder))


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Read identity, arm, bytes, digests, rows, and what the training did.

    None if `train_run` did not fill that folder, or somebody changed the file.
    """
    try:
        metadata = read_json(folder / METADATA)
        is_ours = isinstance(metadata["identity"], dict) and isinstance(metadata["arm"], str)
        for key in ("bytes", "digests"):
            is_ours = is_ours and isinstance(metadata.get(key, {}), dict)
        _summary(metadata)
    except (OSError, GradsiftError, TypeError, KeyError, ValueError, AttributeError):
        return None
    return metadata if is_ours and "bytes" in metadata else None


def training_in(folder: Path) -> TrainingSummary:
    """Return what the training of the weights in a folder did."""
    metadata = read_metadata(folder)
    assert metadata is not None
    return _summary(metadata)


def _summary(metadata: Mapping[str, Any]) -> TrainingSummary:
    curve = tuple((step, loss) for step, loss in metadata["loss_curve"])
    names = ("n_steps", "n_instances", "n_tokens", "seconds", "resumed_at_step")
    return TrainingSummary(curve, **{name: metadata[name] for name in names})


def _bytes_of(folder: Path) -> dict[str, int]:
    # Of every file of weights, and of what says how they belong together.
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    return {path.name: path.stat().st_size for path in sorted(paths) if path.name != METADATA}
