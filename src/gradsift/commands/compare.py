"""Run folder + held-out rows → what each arm learnt and forgot, with verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gradsift.comparison.arms import Arm, rows_of
from gradsift.comparison.experiment import Experiment, is_done, run_all, tokens_to_train
from gradsift.comparison.plots import PLOTS, plots_of
from gradsift.comparison.results import Scoreboard, caveats_of, verdicts_of
from gradsift.comparison.suite import EvaluationConfig, make_suite, overlap_with
from gradsift.comparison.tables import CaptureCost, Comparison
from gradsift.comparison.training_runs import (
    TrainingConfig,
    TrainingRun,
    model_identity,
    training_runs_of,
)
from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.stages.captured import Captured
from gradsift.stages.listener import SILENT, Listener
from gradsift.stages.rows import instances_of
from gradsift.training.cost import duration
from gradsift.training.model import load_config, load_tokenizer, require_adapters
from gradsift.utils import write_atomically, write_json

COMPARISON = "comparison"


@dataclass(frozen=True)
class Forecast:
    """What a comparison would take.

    Attributes:
        n_models: To train and examine.
        n_done: Of them done already.
        n_tokens: To train on.
        training_seconds: At the speed that the capture's estimate found; None if it found none.
        examining_seconds: From the same speed, as a forward pass takes a third of a training step.
    """

    n_models: int
    n_done: int
    n_tokens: int
    training_seconds: float | None
    examining_seconds: float | None

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"estimate": vars(self)}

    def text(self) -> str:
        """Return what a person wants to know."""
        training, examining = self.training_seconds, self.examining_seconds
        times = ""
        if training is not None and examining is not None:
            times = f": about {duration(training)} of training, {duration(examining)} of examining"
        return (
            f"{self.n_models} models, {self.n_done} of them done; "
            f"{self.n_tokens} tokens to train on{times}"
        )


def compare_arms(
    captured: Captured,
    test: Pool,
    arms: Sequence[Arm],
    training: TrainingConfig,
    exam_settings: EvaluationConfig,
    *,
    name: str | None = None,
    dry_run: bool = False,
    listener: Listener = SILENT,
) -> Comparison | Forecast:
    """Train and examine all arms, and compare them.

    Args:
        captured: The run.
        test: Held-out rows.
        arms: What is compared.
        training: How every arm is trained.
        exam_settings: What else is asked.
        name: Of the files; None for "comparison".
        dry_run: Stop after the forecast.
        listener: Is told what happens.

    Returns:
        The comparison, which is also written into the run folder.

    Raises:
        ValueError: If something does not fit.
    """
    name = COMPARISON if name is None else name
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise GradsiftError(f"`name` is {name!r}, expected letters, digits, '-', '_' and '.'.")
    store, tokenizer = captured.store, load_tokenizer(captured.source)
    _require_free(store.folder, name)
    config = load_config(captured.source)
    require_adapters(captured.source, config, has_adapters=training.lora is not None)
    instances = instances_of(store, captured.pool, captured.source, tokenizer, captured.settings)
    rows = rows_of(store, captured.selection, captured.files, arms)
    exam = make_suite(test, tokenizer, captured.settings, exam_settings, listener)
    identity = model_identity(store)
    identity["exam"] = exam.identity
    jobs = training_runs_of(arms, rows, instances, training, identity)
    notes = [*_overlap(captured.pool, test), *_equal_arms(jobs)]
    for note in notes:
        listener.note(note)
    bench = Experiment(
        store.folder, captured.source, tokenizer, exam, training, _tokens_per_second(captured)
    )
    forecast = _forecast(jobs, bench)
    listener.note(forecast.text())
    if dry_run:
        return forecast
    board = Scoreboard(run_all(jobs, bench, listener))
    about = store.manifest.about
    result = Comparison(
        run=store.folder,
        board=board,
        verdicts=verdicts_of(board),
        capture=CaptureCost(about["seconds"], sum(len(item.input_ids) for item in instances)),
        made_with={
            "test": test.source.name,
            "arms": [arm.text for arm in arms],
            "exam": exam.identity,
            **_made_with(captured, training),
        },
        notes=(*notes, *caveats_of(board)),
    )
    return _written(result, store.folder, name)


def _made_with(captured: Captured, training: TrainingConfig) -> dict[str, object]:
    about = captured.store.manifest.about
    how = {key: value for key, value in asdict(training).items() if key != "keep_models"}
    return {
        "model": about["model"],
        "data": captured.pool.source.name,
        "training": how,
        "selection": captured.selection.model_dump(mode="json"),
        "versions": about["versions"],
    }


def _require_free(folder: Path, name: str) -> None:
    summary = folder / f"{name}.json"
    others = [folder / f"{name}.md", *(folder / f"{name}-{plot}.svg" for plot in PLOTS)]
    try:
        found = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    except ValueError:
        found = None
    if isinstance(found, dict) and "verdicts" in found:
        return
    for path in (summary, *others):
        if path.exists():
            raise GradsiftError(f"`name`: {path} is there and is no comparison; give another name.")


def _overlap(pool: Pool, test: Pool) -> list[str]:
    n = overlap_with(pool, test)
    if not n:
        return []
    return [
        f"{n} of {len(test.rows)} test rows stand word for word in the pool: what was learnt by "
        "heart counts as learnt"
    ]


def _equal_arms(jobs: Sequence[TrainingRun]) -> list[str]:
    # Such as by a setting that their strategy ignores.
    keys: dict[str, list[str]] = {}
    for job in jobs:
        keys.setdefault(job.arm.label, []).append(job.key)
    equal: dict[tuple[str, ...], list[str]] = {}
    for label, of_arm in keys.items():
        equal.setdefault(tuple(of_arm), []).append(label)
    return [
        f"{' and '.join(labels)} are the same rows, trained alike"
        for labels in equal.values()
        if len(labels) > 1
    ]


def _tokens_per_second(captured: Captured) -> float | None:
    estimate = captured.store.manifest.about.get("estimate") or {}
    if not estimate.get("full_sft_seconds"):
        return None
    # It says what three epochs over the pool take, without recording.
    return 3 * estimate["n_tokens"] / estimate["full_sft_seconds"]


def _forecast(jobs: Sequence[TrainingRun], bench: Experiment) -> Forecast:
    to_do = {job.key: job for job in jobs if not is_done(job, bench)}
    n_tokens = sum(tokens_to_train(job, bench) for job in to_do.values())
    keys, speed = {job.key for job in jobs}, bench.tokens_per_second
    training = None if speed is None else n_tokens / speed
    examining = None if speed is None else len(to_do) * bench.exam.n_tokens / (3 * speed)
    return Forecast(len(keys), len(keys) - len(to_do), n_tokens, training, examining)


def _written(result: Comparison, folder: Path, name: str) -> Comparison:
    write_json(folder / f"{name}.json", result.summary())
    table = folder / f"{name}.md"
    written = [folder / f"{name}.json", table]
    _write_text(table, result.markdown())
    plots = plots_of(result.summary())
    for plot in PLOTS:
        path = folder / f"{name}-{plot}.svg"
        if plot in plots:
            written.append(path)
            _write_text(path, plots[plot])
        else:
            # Of an earlier comparison of this name, with other arms.
            path.unlink(missing_ok=True)
    return replace(result, written=tuple(written))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
