"""General ability: lm-eval's tasks and a sanity benchmark, run in this process, item by item.

The sanity benchmark, for where no other is at hand, is multiple choice: everyday facts, science,
arithmetic, grammar and common sense, written for this project. It tells a model that forgot a lot
from one that did not; it is no benchmark to quote.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)
from jinja2.exceptions import SecurityError
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.attention import without_cudnn_attention
from gradsift.errors import GradsiftError
from gradsift.evaluation.shared_prefix import SharedPrefixLM
from gradsift.evaluation.task_files import load_task_file, sandboxed
from gradsift.seals import short_sha256
from gradsift.wording import few, one_line

# What is read of each item: the first of these that a task has.
TASK_METRICS = ("acc", "exact_match", "em", "f1", "acc_norm")
# As lm-eval's command line does it, so that few-shot examples are the same.
FEWSHOT_SEED = 1234
ROWS_IN_A_BATCH = 16
SANITY = "sanity"
SANITY_FILE = Path(__file__).with_name("sanity.jsonl")


@dataclass(frozen=True)
class TaskScores:
    """How a model did at one task.

    Attributes:
        metric: Which of lm-eval's metrics.
        scores: For each item, in the task's order.
        items: A hash over all items, so that only equal sets are compared.
        method: How requests were scored, see `SharedPrefixLM`.
    """

    metric: str
    scores: tuple[float, ...]
    items: str
    method: str


def load_tasks(
    names: Sequence[str], files: Sequence[Path] = (), *, trust_code: bool = False
) -> dict[str, Any]:
    """Load tasks with their data: lm-eval's task objects, for `score_tasks`.

    Names are those of lm-eval's own tasks and groups, and `sanity`; files are task files of one's
    own, and code that they name runs only with `trust_code`.
    """
    if "probe" in names:
        raise GradsiftError(f"`general` probe is now called {SANITY}; say {SANITY}.")
    specs: list[Any] = [_sanity_task() if name == SANITY else name for name in names]
    # Its index of some thousand task files takes seconds, and is only needed for names.
    by_name = [name for name in names if name != SANITY]
    with _quiet(), sandboxed():
        manager = TaskManager(include_defaults=bool(by_name))
        missing = sorted(set(by_name) - set(manager.all_tasks))
        if missing:
            raise GradsiftError(
                f"`general` {', '.join(missing)}: lm-eval has no such task. Give a name that "
                f"`lm-eval ls tasks` lists, a task's YAML file, a text file, or {SANITY}."
            )
        loaded = _loaded(lambda: manager.load(specs), "a task")
        for path in files:
            more = _loaded(partial(load_task_file, path, trust_code=trust_code), str(path))
            if twice := loaded["tasks"].keys() & more["tasks"].keys():
                raise GradsiftError(
                    f"`general` {path}: there is another task that is called {few(sorted(twice))}."
                )
            loaded = {kind: {**loaded[kind], **more[kind]} for kind in loaded}
    return loaded


def _loaded(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except (GradsiftError, SecurityError):
        raise
    except Exception as error:  # Whatever its datasets, their builders and the hub raise.
        raise GradsiftError(f"`general`: {what} cannot be loaded: {one_line(error)}") from error


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
) -> dict[str, TaskScores]:
    """Evaluate a model at the first `limit` items of each task, zero-shot unless a task says so.

    Returns scores by task; a group is its tasks.
    """
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _quiet(), _tied_as_it_is(model), sandboxed():
        lm = SharedPrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=ROWS_IN_A_BATCH)
        # Intervals come later, from all arms together.
        with without_cudnn_attention():
            results = evaluate(lm, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    assert results is not None
    method = lm.method or "generated"
    return {name: _scores(name, items, method) for name, items in results["samples"].items()}


def questions(task: Any, limit: int | None) -> list[object]:
    """Return what a task asks, wherever its file and its data lie.

    That is the number of examples shown, the kind of output, and for each of the first `limit`
    items its text, target and choices.
    """
    has_choices = task.OUTPUT_TYPE == "multiple_choice"
    try:
        with sandboxed():
            items = [
                [
                    task.doc_to_text(doc),
                    task.doc_to_target(doc),
                    task.doc_to_choice(doc) if has_choices else None,
                ]
                for doc in islice(task.eval_docs, limit)
            ]
    except GradsiftError:
        raise
    except Exception as error:  # A template of the task's author, over data of anybody's.
        name = task.get_config("task")
        raise GradsiftError(
            f"`general` {name}: an item cannot be written: {one_line(error)}"
        ) from error
    return [task.get_config("num_fewshot"), task.OUTPUT_TYPE, items]


def _sanity_task() -> dict[str, Any]:
    # Each item has a context, choices and the index of the right one.
    return {
        "task": SANITY,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(SANITY_FILE)}},
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


def _scores(task: str, samples: Sequence[dict], method: str) -> TaskScores:
    metric = next((name for name in TASK_METRICS if samples and name in samples[0]), None)
    if metric is None:
        raise GradsiftError(
            f"task {task}: its items have none of the metrics {', '.join(TASK_METRICS)}, so it "
            "cannot be compared item by item."
        )
    # One line for each filter of a task; the first is the task's main one.
    main = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    items = short_sha256(str(sample["doc_hash"]) for sample in main)
    return TaskScores(metric, tuple(float(sample[metric]) for sample in main), items, method)


@contextlib.contextmanager
def _tied_as_it_is(model: PreTrainedModel) -> Generator[None, None, None]:
    """Keep lm-eval from tying weights again, as it does with every model that it is given.

    A head that was trained beside a tied embedding (modules_to_save) would be overwritten by that,
    and over quantised weights its wrapper has no weight that could be tied.
    """
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep lm-eval's and datasets' own bars and lines off stderr; errors are raised as ever."""
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
