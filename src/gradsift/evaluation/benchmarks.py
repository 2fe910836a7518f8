"""General ability: lm-eval's tasks, run in this process, item by item.

A small general probe of our own, for where no benchmark is at hand.

Multiple choice: everyday facts, science, arithmetic, grammar and common sense, written for this
project. It tells a model that forgot a lot from one that did not; it is no benchmark to quote.

"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from datasets.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.errors import GradsiftError
from gradsift.evaluation.shared_prefix import SharedPrefixLM
from gradsift.utils import short_sha256

# What is read of each item: the first of these that a task has.
METRICS = ("acc", "exact_match", "em", "f1", "acc_norm")
# As lm-eval's command line does it, so that few-shot examples are the same.
FEWSHOT_SEED = 1234
ROWS_IN_A_BATCH = 16


@dataclass(frozen=True)
class TaskScores:
    """How a model did at one task.

    Attributes:
        metric: Which of lm-eval's metrics.
        scores: For each item, in the task's order.
        items: A hash over all items, so that only equal sets are compared.
        way: How requests were scored, see `SharedPrefixLM`.
    """

    metric: str
    scores: tuple[float, ...]
    items: str
    way: str


@dataclass(frozen=True)
class TaskSource:
    """Which tasks.

    Attributes:
        names: Of lm-eval's own tasks and groups, and "probe", which is ours.
        files: Task files of one's own.
    """

    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def load_tasks(source: TaskSource, *, trust_code: bool = False) -> dict[str, Any]:
    """Load tasks with their data.

    Args:
        source: Which tasks.
        trust_code: Whether code that a task file names may run.

    Returns:
        lm-eval's task objects, for `score_tasks`.

    Raises:
        ValueError: If a task is unknown, cannot be loaded, or its file names code.
    """
    specs: list[Any] = []
    for name in source.names:
        specs.append(probe_task() if name == PROBE else name)
    for path in source.files:
        specs.append(_task_file(path, trust_code))
    # Its index of some thousand task files takes seconds, and is only needed for names.
    by_name = [name for name in source.names if name != PROBE]
    with _quiet():
        manager = TaskManager(include_defaults=bool(by_name))
        known = set(manager.all_tasks)
        missing = [name for name in by_name if name not in known]
        if missing:
            raise GradsiftError(
                f"`general` {', '.join(missing)}: lm-eval has no such task. Give a name that "
                "`lm-eval ls tasks` lists, a task's YAML file, a text file, or probe."
            )
        try:
            return manager.load(specs)
        except (OSError, KeyError, TypeError, ImportError) as error:
            raise GradsiftError(f"`general`: a task cannot be loaded: {error}") from error


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
) -> dict[str, TaskScores]:
    """Evaluate a model at tasks, zero-shot unless a task says otherwise.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        tasks: From `load_tasks`.
        limit: Items of each task, the first ones; None for all.

    Returns:
        Scores by task; a group is its tasks.

    Raises:
        ValueError: If a task has no metric of those that are read.
    """
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _quiet(), _tied_as_it_is(model):
        lm = SharedPrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=ROWS_IN_A_BATCH)
        # Intervals come later, from all arms together.
        results = evaluate(lm, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    assert results is not None
    way = lm.way or "generated"
    return {name: _scores(name, items, way) for name, items in results["samples"].items()}


def questions(task: Any, limit: int | None) -> list[object]:
    """Return what a task asks, wherever its file and its data lie.

    Args:
        task: One of lm-eval's task objects.
        limit: Items, the first ones; None for all.

    Returns:
        Number of examples shown, and of each item text, target and choices.
    """
    has_choices = task.OUTPUT_TYPE == "multiple_choice"
    docs = list(islice(task.eval_docs, limit))
    return [
        task.get_config("num_fewshot"),
        task.OUTPUT_TYPE,
        [
            [
                task.doc_to_text(doc),
                task.doc_to_target(doc),
                task.doc_to_choice(doc) if has_choices else None,
            ]
            for doc in docs
        ],
    ]


def _task_file(path: Path, trust_code: bool) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradsiftError(f"`general` {path}: cannot be read ({error}).") from None
    if not trust_code and any(
        key in text for key in ("!function", "unsafe_code", "custom_dataset")
    ):
        raise GradsiftError(
            f"`general` {path}: this task file names Python code, which would run. Read that code, "
            "and give `trust_remote_code`."
        )
    if trust_code:
        return str(path)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise GradsiftError(f"`general` {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or "task" not in content:
        raise GradsiftError(
            f"`general` {path}: expected an lm-eval task file, with a `task:` line."
        )
    if _has_key(content, "include"):
        raise GradsiftError(
            f"`general` {path}: includes another file, which may name Python code that would run. "
            "Write its lines into this one, or read it and give `trust_remote_code`."
        )
    return str(path)


def _has_key(value: object, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(one, key) for one in value.values())
    return isinstance(value, list) and any(_has_key(one, key) for one in value)


def _scores(task: str, samples: Sequence[dict], way: str) -> TaskScores:
    metric = next((name for name in METRICS if samples and name in samples[0]), None)
    if metric is None:
        raise GradsiftError(
            f"task {task}: its items have none of the metrics {', '.join(METRICS)}, so it cannot "
            "be compared item by item."
        )
    # One line for each filter of a task; the first is the task's main one.
    main = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    items = short_sha256(str(sample["doc_hash"]) for sample in main)
    return TaskScores(
        metric, tuple(float(sample[metric]) for sample in main), items, way
    )


@contextlib.contextmanager
def _tied_as_it_is(model: PreTrainedModel) -> Generator[None, None, None]:
    """Keep lm-eval from tying weights again, as it does with every model that it is given.

    A head that was trained beside a tied embedding (modules_to_save) would be overwritten by that,
    and over quantised weights its wrapper has no weight that could be tied.

    Yields:
        Nothing.
    """
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep lm-eval's and datasets' own bars and lines off stderr; errors are raised as ever.

    Yields:
        Nothing.
    """
    logger = logging.getLogger("lm_eval")
    level, shown = logger.level, is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if shown:
            enable_progress_bar()


PROBE = "probe"
PROBE_FILE = Path(__file__).with_name("probe.jsonl")


def probe_task() -> dict[str, Any]:
    """Return the probe as a task of lm-eval's.

    Returns:
        Its configuration; each item has a context, choices and the index of the right one.
    """
    return {
        "task": PROBE,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(PROBE_FILE)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
