"""Run folder + held-out rows → what each arm learnt and forgot, with verdicts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gradsift.commands.report import report
from gradsift.commands.train import compute_missing_losses
from gradsift.comparison.arms import STRATEGY_OF_AN_ARM, arm_settings, parse_arms, rows_of
from gradsift.comparison.experiment import Experiment, tokens_to_train
from gradsift.comparison.results import Scoreboard, caveats_of, questions_of
from gradsift.comparison.suite import make_suite, overlap_with
from gradsift.comparison.tables import Comparison
from gradsift.comparison.training_runs import (
    TrainingRun,
    replay_notes,
    settings_of_arm,
    training_runs_for,
)
from gradsift.config import (
    ArmsConfig,
    ArmTrainingConfig,
    EvaluationConfig,
    ReplayConfig,
    RowsConfig,
    SelectionConfig,
    without_reports,
)
from gradsift.console import shows_progress
from gradsift.data.near_repeats import near_repeats
from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.evaluation.conclusions import decide
from gradsift.files import remove, remove_leftovers, write_text
from gradsift.progress import Progress
from gradsift.replay.source import replay_of
from gradsift.reporting.comparison_charts import PICTURES, pictures_of
from gradsift.reporting.rows import selection_names
from gradsift.run_folder import Run
from gradsift.schema import takes
from gradsift.seals import DamagedError, read_json, write_json
from gradsift.store.reader import GradientStore
from gradsift.training.cost import duration
from gradsift.training.model import without_progress_bars
from gradsift.training.settings.trainer import TrainerSettings, require_settings

COMPARISON = "comparison"
# In the order in which they are read.
SETTINGS = (
    ArmsConfig,
    ArmTrainingConfig,
    ReplayConfig,
    EvaluationConfig,
    SelectionConfig,
    RowsConfig,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """What a comparison would take.

    Attributes:
        n_models: To train and evaluate.
        n_done: Of them done already.
        n_tokens: To train on.
        training_seconds: At the speed that the capture's estimate found; None if it found none.
        evaluation_seconds: From the same speed, as a forward pass takes a third of a training step.
    """

    n_models: int
    n_done: int
    n_tokens: int
    training_seconds: float | None
    evaluation_seconds: float | None

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"estimate": vars(self)}

    def text(self) -> str:
        """Return what a person wants to know."""
        training, evaluation, times = self.training_seconds, self.evaluation_seconds, ""
        if training is not None and evaluation is not None:
            times = (
                f": about {duration(training)} of training, {duration(evaluation)} of evaluation"
            )
        return (
            f"{self.n_models} models, {self.n_done} of them done; "
            f"{self.n_tokens} tokens to train on{times}"
        )


@takes(*SETTINGS, without={"strategy": STRATEGY_OF_AN_ARM})
@shows_progress
def compare(
    run: str | Path | GradientStore | Run,
    *,
    test: Any,
    test_split: str | None = None,
    name: str | None = None,
    dry_run: bool = False,
    progress: Progress | bool = True,
    **settings: Any,
) -> Comparison | Forecast:
    """Fine-tune on a subset and on its rivals, and say which learnt more and which forgot less.

    Called again it resumes; what was trained and evaluated once is not done again, and several
    processes on one run folder share the work.

    Args:
        run: A run folder of `capture`, or its store.
        test: Held-out rows (or where they are), read as the run's own rows are; or a pool from
            `load_pool`.
        test_split: Of held-out rows that come in several splits.
        name: Of the comparison's files; None for "comparison".
        dry_run: Stop after the estimate, without training or writing.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: What is compared, how it is trained, asked and selected; see Settings.

    Returns:
        Tables and verdicts; of a dry run what it would take.

    Raises:
        GradsiftError: If a setting does not fit, or rows or model changed since the capture.
    """
    named, training, replaying, evaluation, selection, where = arm_settings(settings, *SETTINGS)
    arms = parse_arms(named.arms, named.budgets, named.seeds, replaying.ratio)
    run = Run.of(run, data=where.data, trust_remote_code=evaluation.trust_remote_code)
    name = COMPARISON if name is None else name
    _require_free(run.folder, name)
    remove_leftovers(run.folder)
    run.introduce()
    with without_progress_bars():
        trainer, pool = settings_of_arm(training, run.config, selection.seed), run.pool
        require_settings(trainer)
        test_pool = test if isinstance(test, Pool) else _held_out(run, test, test_split)
        suite = make_suite(test_pool, run, evaluation)
        replay = replay_of(run, replaying, any(arm.replay_share for arm in arms), progress)
        compute_missing_losses(run, arms, selection, progress)
        rows = rows_of(run, arms, selection)
        training_runs = training_runs_for(
            run, arms, rows, trainer, suite.identity, replay, dry_run=dry_run
        )
        overlap = _overlap(pool, test_pool)
        notes = [*overlap, *_equal_arms(training_runs)]
        if replay is not None:
            notes += [*replay_notes(training_runs), *replay.overlaps(test_pool, _texts(evaluation))]
        experiment = Experiment(run, training_runs, suite, training, progress)
        forecast = _forecast(experiment)
        for line in (*notes, forecast.text()):
            logger.log(logging.WARNING if line in overlap else logging.INFO, line)
        if dry_run:
            return forecast
        if forecast.n_done:
            logger.info(f"resumes: {forecast.n_done} of {forecast.n_models} models are done")
        board = Scoreboard(experiment.models())
    comparison = Comparison(
        run=run.folder,
        board=board,
        verdicts=decide(questions_of(board)),
        capture_seconds=run.store.about("seconds"),
        capture_tokens=sum(len(item.input_ids) for item in run.instances),
        made_with={
            "test": test_pool.source.name,
            "arms": [arm.text for arm in arms],
            "evaluation": suite.identity,
            **_made_with(run, trainer, training.save_steps, selection),
            **({} if replay is None else {"replay": replay.made_with(replaying)}),
        },
        notes=(*notes, *caveats_of(board)),
    )
    return _written(run, comparison, name)


def _require_free(folder: Path, name: str) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise GradsiftError(f"`name` is {name!r}, expected letters, digits, '-', '_' and '.'.")
    summary = folder / f"{name}.json"
    others = [folder / f"{name}.md", *(folder / f"{name}-{plot}.svg" for plot in PICTURES)]
    try:
        if summary.exists() and "verdicts" in read_json(summary):
            return
    except DamagedError as error:
        raise GradsiftError(
            f"`name`: {error.found} Remove it, and it is written again; or give another name."
        ) from None
    for path in (summary, *others):
        if path.exists():
            raise GradsiftError(f"`name`: {path} is there and is no comparison; give another name.")


def _held_out(run: Run, test: Any, split: str | None) -> Pool:
    try:
        return run.read_rows(str(test) if isinstance(test, Path) else test, split)
    except GradsiftError as error:
        config = run.config
        columns = [config.prompt_column, config.response_column, config.format]
        like = ", ".join(column for column in columns if column is not None)
        hint = f" Held-out rows are read as the run's rows are ({like})." if like else ""
        shown = f" {test}" if isinstance(test, str | Path) else ""
        raise GradsiftError(f"`test`{shown}: {error}{hint}") from None


def _overlap(pool: Pool, test: Pool) -> list[str]:
    n_rows, lines = overlap_with(pool, test), []
    if n_rows:
        lines.append(
            f"{n_rows} of {len(test.rows)} test rows stand word for word in the pool: what was "
            "learnt by heart counts as learnt"
        )
    near = near_repeats(test.rows, pool.rows)
    if near:
        first, of = next(iter(near.items()))
        lines.append(
            f"{len(near)} of {len(test.rows)} test rows nearly repeat a row of the pool (at least "
            "half of their runs of five words stand in it): what was learnt by heart counts as "
            f"learnt; the first, {test.rows[first].place}, repeats {pool.rows[of].place} of the "
            "pool"
        )
    return lines


def _texts(evaluation: EvaluationConfig) -> list[tuple[str, str]]:
    """Return the general texts, which were read before; names and texts."""
    files = [name for name in evaluation.general if name.endswith(".txt")]
    return [(name, Path(name).read_text(encoding="utf-8")) for name in files]


def _equal_arms(training_runs: Sequence[TrainingRun]) -> list[str]:
    # Such as by a setting that their strategy ignores.
    keys: dict[str, list[str]] = {}
    for training_run in training_runs:
        keys.setdefault(training_run.arm.label, []).append(training_run.key)
    alike: dict[tuple[str, ...], list[str]] = {}
    for label, run_keys in keys.items():
        alike.setdefault(tuple(run_keys), []).append(label)
    return [
        f"{' and '.join(labels)} are the same rows, trained alike"
        for labels in alike.values()
        if len(labels) > 1
    ]


def _forecast(experiment: Experiment) -> Forecast:
    runs = {training_run.key: training_run for training_run in experiment.training_runs}
    to_do = [run for run in runs.values() if not experiment.is_done(run)]
    n_tokens, speed = sum(map(tokens_to_train, to_do)), experiment.tokens_per_second()
    training = None if speed is None else n_tokens / speed
    asked = len(to_do) * experiment.suite.n_tokens
    evaluation = None if speed is None else asked / (3 * speed)
    return Forecast(len(runs), len(runs) - len(to_do), n_tokens, training, evaluation)


def _made_with(
    run: Run, trainer: TrainerSettings, save_steps: int | None, selection: SelectionConfig
) -> dict[str, object]:
    about, how = run.store.about, asdict(trainer)
    del how["max_steps"]
    how["sft"] = without_reports(trainer.sft)
    return {
        "model": about("model"),
        "data": run.pool.source.name,
        "training": {**how, "save_steps": save_steps},
        "selection": selection.model_dump(mode="json"),
        "versions": about("versions"),
    }


def _written(run: Run, comparison: Comparison, name: str) -> Comparison:
    folder, summary = comparison.run, comparison.summary()
    written = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(written[0], summary)
    write_text(written[1], comparison.markdown())
    plots = pictures_of(summary)
    # An earlier gradsift drew metrics against budgets.
    remove(folder / f"{name}-budget.svg")
    for plot in PICTURES:
        path = folder / f"{name}-{plot}.svg"
        if plot in plots:
            written.append(path)
            write_text(path, plots[plot])
        else:
            # Of an earlier comparison of this name, with other arms.
            remove(path)
    # The page of the newest selection shows it, too.
    if selection_names(run):
        try:
            written.append(report(run).path)
        except GradsiftError as error:  # The comparison itself is whole.
            logger.warning(f"the page of the newest selection is not written again: {error}")
    return replace(comparison, written=tuple(written))
