"""lm-eval's task files from anybody: read as plain data, their templates rendered in a sandbox.

What such a file can say runs nothing: lm-eval gets the data that was read here, never the file; the
keys by which lm-eval, datasets or evaluate would run code are refused, and so is what a template
does beyond the values of an item.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Generator, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
from datasets.load import dataset_module_factory
from jinja2 import BaseLoader, StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils
from lm_eval.api.registry import metric_registry
from lm_eval.prompts import PROMPT_REGISTRY
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from gradsift.errors import GradsiftError
from gradsift.wording import few, short
from gradsift.yaml_files import parse_yaml, read_yaml_file

# Of datasets: what reads plain data, and nothing else.
BUILDERS = ("json", "csv", "parquet", "arrow", "text")
# What a task file may say to datasets: where its files are, and how lines and tables are read.
DATASET_SETTINGS = {"data_files", "data_dir", "revision", "field", "sep", "delimiter", "names"}
DATASET_SETTINGS |= {"column_names", "columns", "header", "quotechar", "quoting", "encoding"}
DATASET_SETTINGS |= {"encoding_errors", "sample_by", "keep_linebreaks"}
# datasets has no scripts any more, and lm-eval leaves this out.
DATASET_SETTINGS |= {"trust_remote_code"}
_RUNS_CODE = ("class", "custom_dataset", "unsafe_code", "process_docs", "process_results")
# Values whose methods do no more than return others.
_PLAIN = (str, bytes, bool, int, float, complex, list, tuple, dict, set, frozenset)
_PLAIN += (date, datetime, time, timedelta, Decimal)
_READ_IT = "Read that code, and set `trust_remote_code`."


def load_task_file(path: Path, *, trust_code: bool) -> dict[str, Any]:
    """Load the tasks of a task file, with their data, as lm-eval's manager returns them."""
    manager = TaskManager(include_defaults=False)
    if trust_code:
        return manager.load([str(path)])
    content = _read(path)
    entry = TaskIndex.entry_from_config(content)
    if entry is None or not isinstance(entry.name, str):
        raise GradsiftError(f"`general` {path}: `task` is no name.")
    manager.task_index[entry.name] = entry
    return manager.load([entry.name])


@contextlib.contextmanager
def sandboxed() -> Generator[None, None, None]:
    """Render templates of tasks in a sandbox.

    Raises:
        GradsiftError: If a template does what the sandbox refuses; names the task.
    """
    with patch.object(utils, "env", _Sandbox.like_lm_eval()):
        try:
            yield
        except SecurityError as error:
            name = next(_tasks_in(error), "of a task")
            raise GradsiftError(
                f"`general` {short(str(name), 80)}: one of its templates does more than write text "
                f"({short(str(error), 200)}), which could run anything: it is not rendered."
            ) from error


class _Sandbox(SandboxedEnvironment):
    """Jinja's sandbox; of an item's values only plain ones have methods that can be called.

    The method of an image that saves it would write anywhere.
    """

    @classmethod
    def like_lm_eval(cls) -> _Sandbox:
        made = cls(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        made.filters["regex_replace"] = utils.regex_replace
        return made

    def is_safe_callable(self, obj: Any) -> bool:
        # Jinja wraps str.format.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        known = (
            type(owner) in _PLAIN
            or any(obj is one for one in self.globals.values())
            or any(type(one).__module__.startswith("jinja2.") for one in (obj, owner))
        )
        return known and super().is_safe_callable(obj)


def _tasks_in(error: BaseException) -> Iterator[str]:
    """Return the task whose template raised an error: lm-eval's frames know it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        config = getattr(frame.f_locals.get("self"), "_config", None)
        if getattr(config, "task", None) is not None:
            yield config.task


def _read(path: Path) -> dict[str, Any]:
    where = f"`general` {path}"
    try:
        content = read_yaml_file(path)
    except GradsiftError as error:
        if "constructor for the tag" in str(error):  # Such as !function.
            raise GradsiftError(
                f"{where}: names Python code, which would run. {_READ_IT}"
            ) from None
        raise GradsiftError(f"`general` {error}") from None
    if not isinstance(content, dict) or "task" not in content:
        raise GradsiftError(f"{where}: expected an lm-eval task file, with a `task:` line.")
    for task in _tasks_of(content, where):
        _require_plain(task, where)
    return content


def _tasks_of(content: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Return a task, or a group with the tasks and groups in it: what they say of themselves."""
    yield content
    members = content.get("task")
    for member in members if isinstance(members, list) else ():
        if not isinstance(member, dict):
            raise GradsiftError(
                f"{where}: names the task {short(str(member), 80)}, which is not in this file: "
                "name it in `general`."
            )
        yield from _tasks_of(member, where)


def _require_plain(task: dict[str, Any], where: str) -> None:
    if "include" in task:
        raise GradsiftError(
            f"{where}: includes another file, which may name Python code that would run. Write its "
            "lines into this one, or read it and set `trust_remote_code`."
        )
    for key in _RUNS_CODE:
        if task.get(key) not in (None, False):
            raise GradsiftError(f"{where}: `{key}` names Python code, which would run. {_READ_IT}")
    prompt = task.get("use_prompt")
    if prompt is not None and str(prompt).split(":")[0] not in PROMPT_REGISTRY:
        raise GradsiftError(
            f"{where}: use_prompt: {short(str(prompt), 80)} is none of lm-eval's own prompts "
            f"({few(PROMPT_REGISTRY)}), and may come with code. {_READ_IT}"
        )
    metrics = task.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else ():
        _require_known_metric(metric, where)
    _require_plain_data(task, where)


def _require_known_metric(metric: Any, where: str) -> None:
    name = metric.get("metric") if isinstance(metric, dict) else metric
    known = isinstance(name, str) and name in metric_registry
    if not known or metric.get("hf_evaluate", False) is not False:
        raise GradsiftError(
            f"{where}: the metric {short(str(name), 80)} is none of lm-eval's own: the package "
            f"evaluate would look for code of that name, and run it. {_READ_IT}"
        )


def _require_plain_data(task: dict[str, Any], where: str) -> None:
    path, settings = task.get("dataset_path"), task.get("dataset_kwargs")
    if path is not None and not isinstance(path, str):
        raise GradsiftError(f"{where}: dataset_path is no name.")
    if settings is not None and not isinstance(settings, dict):
        raise GradsiftError(f"{where}: dataset_kwargs is no mapping.")
    settings = settings or {}
    if other := [key for key in settings if key not in DATASET_SETTINGS]:
        raise GradsiftError(
            f"{where}: dataset_kwargs: {few(sorted(map(str, other)))} may make datasets run code "
            f"or write; what is taken is {few(sorted(DATASET_SETTINGS), 30)}. Load the data "
            "yourself, or set `trust_remote_code`."
        )
    for name in _texts([settings.get("data_files"), settings.get("data_dir")]):
        _require_plain_address(name, where)
    if path is None or path in BUILDERS:
        return
    packaged = Path(datasets.packaged_modules.__file__).parent / path
    if re.fullmatch(r"\w+", path) and packaged.is_dir():
        raise GradsiftError(
            f"{where}: dataset_path: {path} reads more than plain data, or runs code to read it. "
            f"Take one of {few(BUILDERS)}, or set `trust_remote_code`."
        )
    if Path(path).exists():
        _require_plain_folder(Path(path), settings, where)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise GradsiftError(
            f"{where}: dataset_path: {short(path, 80)} is neither one of {few(BUILDERS)}, nor a "
            "folder that is there, nor the name of a dataset on the hub."
        )


def _require_plain_folder(folder: Path, settings: dict[str, Any], where: str) -> None:
    card = folder / "README.md"
    if card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace").split("---")
        about = parse_yaml(front[1], str(card)) if len(front) > 2 and not front[0].strip() else None
        for name in _texts(about.get("configs")) if isinstance(about, dict) else ():
            _require_plain_address(name, f"{where}: {card}")
    try:
        chosen = dataset_module_factory(
            str(folder), data_files=settings.get("data_files"), data_dir=settings.get("data_dir")
        ).module_path
    except Exception as error:  # Such as a loading script, or no data.
        raise GradsiftError(f"{where}: dataset_path: {folder}: {error}") from None
    if chosen.rpartition(".")[2] not in BUILDERS:
        raise GradsiftError(
            f"{where}: dataset_path: {folder}: its files are read as {chosen.rpartition('.')[2]}; "
            f"from a task file only {few(BUILDERS)} are read. Set `trust_remote_code` if you know "
            "these files."
        )


def _require_plain_address(name: str, where: str) -> None:
    """Refuse file systems made of others: what describes some of them are templates."""
    if "::" in name or ("://" in name and not name.startswith(("http://", "https://", "hf://"))):
        raise GradsiftError(
            f"{where}: data_files: {short(name, 80)} is neither a file nor an address on the web."
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inside: Callable[[], Any] | None = getattr(value, "values", None)
    for one in inside() if inside else value if isinstance(value, list) else ():
        yield from _texts(one)
