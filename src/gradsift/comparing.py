"""Training on a subset, and comparing subsets by what models learn and forget, in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.config import validated_settings
from gradsift.errors import GradsiftError
from gradsift.opening import load_rows, model_and_settings, open_run
from gradsift.run import losses
from gradsift.selecting import files_of
from gradsift.selection.strategies.base import Need
from gradsift.stages.listener import SILENT, Listener
from gradsift.store.reader import GradientStore

if TYPE_CHECKING:
    from gradsift.commands.compare import Forecast
    from gradsift.comparison.arms import Arm
    from gradsift.comparison.tables import Comparison
    from gradsift.comparison.training_runs import TrainingConfig
    from gradsift.data.pool import Pool
    from gradsift.stages.captured import Captured

DEFAULT_ARMS = ("base", "full", "full-equal-steps", "random", "grads")


@dataclass(frozen=True)
class TrainResult:
    """A model that was fine-tuned on an arm's rows.

    Attributes:
        folder: With its weights and tokenizer.
        arm: What it was trained on.
        n_rows: How many rows.
        n_steps: Optimizer updates.
        n_tokens: Tokens trained on.
        seconds: Of training.
    """

    folder: Path
    arm: str
    n_rows: int
    n_steps: int
    n_tokens: int
    seconds: float

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {**vars(self), "folder": str(self.folder)}

    def text(self) -> str:
        """Return what a person wants to know."""
        return (
            f"{self.arm}: {self.n_rows} rows, {self.n_steps} steps, {self.n_tokens} tokens, "
            f"{self.seconds:.0f} s\n{self.folder}"
        )


def train(
    run: str | Path | GradientStore,
    *,
    arm: str = "grads",
    budget: str | int | float | None = None,
    out: str | Path | None = None,
    epochs: float = 3,
    sft: Mapping[str, Any] | None = None,
    lora: bool | Mapping[str, Any] | None = None,
    save_steps: int | None = None,
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
    listener: Listener = SILENT,
    **settings: Any,
) -> TrainResult:
    """Fine-tune the model of a captured run on an arm's rows. Called again it resumes.

    Args:
        run: A run folder of `capture`, or its store.
        arm: full, full-equal-steps, or a strategy, perhaps with settings (see `compare`).
        budget: Of the usable rows, as for `select`; not for full.
        out: Folder for the model; None for one in the run folder.
        epochs: Passes over the rows.
        sft: SelectionConfig for trl's SFTConfig, over those of the capture.
        lora: Whether adapters are trained, or their settings; None for what the capture did.
        save_steps: Optimizer updates between two checkpoints.
        anchor: As for `select`.
        target: As for `select`.
        keep: As for `select`.
        drop: As for `select`.
        listener: Is told what happens.
        **settings: As for `select`, the seed among them.

    Returns:
        Where the model is.

    Raises:
        ValueError: If a setting does not fit, or rows or model changed since the capture.
    """
    from gradsift.commands.train import train_arm
    from gradsift.comparison.arms import parse_arm
    from gradsift.training.model import without_progress_bars

    parsed = parse_arm(arm, budget)
    files = {"anchor": anchor, "target": target, "keep": keep, "drop": drop}
    with without_progress_bars():
        captured = _captured(run, [parsed], settings, files, listener)
        training = _training(captured, epochs, sft, lora, save_steps, keep_models=True)
        folder, n_rows, done = train_arm(
            captured, parsed, training, None if out is None else Path(out), listener
        )
    return TrainResult(folder, parsed.label, n_rows, done.n_steps, done.n_tokens, done.seconds)


def compare(
    run: str | Path | GradientStore,
    *,
    test: str | Path | Pool,
    test_split: str | None = None,
    arms: str | Sequence[str] = DEFAULT_ARMS,
    budgets: str | int | float | Sequence[str | int | float] = ("50%",),
    seeds: int = 3,
    general: str | Path | Sequence[str | Path] = ("sanity",),
    limit: int | None = None,
    epochs: float = 3,
    sft: Mapping[str, Any] | None = None,
    lora: bool | Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    keep_models: bool = False,
    trust_remote_code: bool = False,
    save_steps: int | None = None,
    name: str | None = None,
    dry_run: bool = False,
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
    listener: Listener = SILENT,
    **settings: Any,
) -> Comparison | Forecast:
    """Fine-tune on a subset and on its rivals, and say which learnt more and which forgot less.

    Called again it resumes; what was trained and examined once is not done again, and several
    processes on one run folder share the work.

    Args:
        run: A run folder of `capture`, or its store.
        test: Held-out rows, read as the run's own rows are; or a pool from `load_pool`.
        test_split: Of held-out rows that come in several splits.
        arms: base, full, full-equal-steps (full data, as many steps as a subset), random, or any
            strategy; NAME@BUDGET:key=value gives one a budget, settings or seeds of its own.
        budgets: Of the arms that name none.
        seeds: Trainings of each arm: another order of rows, and for random other rows.
        general: What the model could do before: names of lm-eval tasks, task files (.yaml), text
            files (.txt, for perplexity), or sanity, which is ours.
        limit: Items of each task, the first ones; None for all.
        epochs: Passes over an arm's rows.
        sft: SelectionConfig for trl's SFTConfig, over those of the capture.
        lora: Whether adapters are trained, or their settings; None for what the capture did.
        max_new_tokens: Of an answer; None for the longest reference, at most 256.
        keep_models: Whether the trained weights stay in the run folder; they are found again
            when something else is asked.
        trust_remote_code: Whether code that a task file names may run.
        save_steps: Optimizer updates between two checkpoints.
        name: Of the comparison's files; None for "comparison".
        dry_run: Stop after the estimate, without training or writing.
        anchor: As for `select`.
        target: As for `select`.
        keep: As for `select`.
        drop: As for `select`.
        listener: Is told what happens.
        **settings: As for `select`, for all arms that select.

    Returns:
        Tables and verdicts; of a dry run what it would take.

    Raises:
        ValueError: If a setting does not fit, or rows or model changed since the capture.
    """
    from gradsift.commands.compare import compare_arms
    from gradsift.comparison.arms import parse_arms
    from gradsift.comparison.suite import EvaluationConfig
    from gradsift.training.model import without_progress_bars

    parsed = parse_arms(_several(arms), _several(budgets), seeds)
    asked = EvaluationConfig(
        tuple(map(str, _several(general))), limit, max_new_tokens, trust_remote_code
    )
    files = {"anchor": anchor, "target": target, "keep": keep, "drop": drop}
    with without_progress_bars():
        captured = _captured(run, parsed, settings, files, listener)
        training = _training(captured, epochs, sft, lora, save_steps, keep_models=keep_models)
        return compare_arms(
            captured,
            _held_out(captured, test, test_split),
            parsed,
            training,
            asked,
            name=name,
            dry_run=dry_run,
            listener=listener,
        )


def _several(given: Any) -> Sequence[Any]:
    # One thing may be given without a list around it.
    return [given] if isinstance(given, str | Path | int | float) else given


def _held_out(captured: Captured, test: str | Path | Pool, split: str | None) -> Pool:
    if not isinstance(test, str | Path):
        return test
    config = open_run(captured.store)[1]
    try:
        return load_rows(config, str(test), split)
    except ValueError as error:
        columns = [config.prompt_column, config.response_column, config.format]
        like = ", ".join(name for name in columns if name is not None)
        more = f" Held-out rows are read as the run's rows are ({like})." if like else ""
        raise GradsiftError(f"`test` {test}: {error}{more}") from None


def _captured(
    run: str | Path | GradientStore,
    arms: Sequence[Arm],
    settings: Mapping[str, Any],
    files: Mapping[str, str | Path | None],
    listener: Listener,
) -> Captured:
    from gradsift.comparison.arms import needs_of
    from gradsift.stages.captured import Captured

    if "strategy" in settings:
        raise GradsiftError("settings: strategy is said by the names of the arms.")
    selection = validated_settings(dict(settings))
    needs = needs_of(selection, arms)
    store, config = open_run(run)
    source, capture = model_and_settings(config, listener)
    if Need.LOSSES in needs:
        listener.note("an arm needs a further pass over all rows, forward only")
        losses(store.folder, listener)
    return Captured(store, load_rows(config), source, capture, selection, files_of(**files))


def _training(
    captured: Captured,
    epochs: float,
    sft: Mapping[str, Any] | None,
    lora: bool | Mapping[str, Any] | None,
    save_steps: int | None,
    *,
    keep_models: bool,
) -> TrainingConfig:
    from gradsift.comparison.training_runs import TrainingConfig

    settings = {**captured.settings.sft, **(sft or {})}
    seed = captured.selection.seed
    return TrainingConfig(
        epochs, settings, _lora(lora, captured), seed, save_steps, keep_models,
        captured.settings.batching,
    )  # fmt: skip


def _lora(wanted: bool | Mapping[str, Any] | None, captured: Captured) -> Mapping[str, Any] | None:
    if wanted is None:
        return captured.settings.lora
    if isinstance(wanted, bool):
        return (captured.settings.lora or {}) if wanted else None
    return wanted
