"""A pool in shards: captured by tasks, selected from by tasks, wherever they are done."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gradsift.commands.explain import Explanation
from gradsift.commands.select import name_of, plain_settings
from gradsift.config import (
    CaptureConfig,
    ModelConfig,
    ReadingConfig,
    RunConfig,
    SelectionConfig,
    SubsetConfig,
)
from gradsift.config_files import run_config
from gradsift.decided import DECISIONS, SELECTIONS, SUMMARY
from gradsift.errors import GradsiftError
from gradsift.files import make_folder, remove, remove_leftovers
from gradsift.schema import split_settings, takes
from gradsift.seals import DamagedError, read_json, read_parquet, write_json
from gradsift.selection.constraints import parse_budget
from gradsift.sharding.capture_steps import AT_REST, RUN, files_of_shards, source_of
from gradsift.sharding.decision_steps import COUNTS
from gradsift.sharding.graph_steps import n_parts
from gradsift.sharding.local import do_here, do_own_share, do_with_processes
from gradsift.sharding.places import MARKER
from gradsift.sharding.plans import PlanSpec, shard_name
from gradsift.sharding.selection_steps import require_in_shards
from gradsift.store.manifest import load_manifest
from gradsift.store.tables import read_pool_table
from gradsift.terms import SHARDS
from gradsift.wording import counted, joined, short

# "3/64" in the environment: do the fourth of 64 shares of what can be done, and no more.
OWN_SHARE = "GRADSIFT_SHARD"
# What a selection in shards is made with, noted before it is made.
SETTINGS = "settings.json"
_MOST_SHARDS = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedCaptureResult:
    """A pool that was captured in shards, or a share of it."""

    folder: Path
    n_shards: int
    n_done: int

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {"run": str(self.folder), "n_shards": self.n_shards, "n_done": self.n_done}

    def text(self) -> str:
        """Return what a person wants to know."""
        run = shlex.quote(str(self.folder))
        if self.n_done < self.n_shards:
            return joined(
                [f"{self.n_done} of {self.n_shards} shards are captured in {self.folder}"]
            )
        return joined(
            [
                f"{counted(self.n_shards, 'shard')} captured in {self.folder}",
                f"next: gradsift select {run} --budget 5%",
            ]
        )


@dataclass(frozen=True)
class ShardedSelectResult:
    """A selection from a pool in shards, or as much of it as could be done.

    Attributes:
        folder: Where it is: rows-00000 and so on have the rows and decisions of each shard.
        counts: selected + rejected + dropped = input, and tokens; None while it is not done.
        waits_for: The step that other shares have to do first; None if it is done.
    """

    folder: Path
    counts: dict[str, Any] | None
    waits_for: str | None

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "selection": str(self.folder),
            "waits_for": self.waits_for,
            **(self.counts or {}),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        if self.counts is None:
            return joined(
                [
                    "this share is done as far as can be: others have to finish step "
                    f"{self.waits_for}. Then run the same command again."
                ]
            )
        counts = self.counts
        return joined(
            [
                f"{counts['selected']} selected + {counts['rejected']} rejected + "
                f"{counts['dropped']} dropped = {counts['input']} rows of the input; "
                f"{counts['n_tokens']} tokens in {self.folder}/rows-*/selected.*",
                "beside them: decisions.parquet (every row of the shard, and why)",
                f"next: gradsift explain {shlex.quote(str(self.folder.parent.parent))} ROW_ID",
            ]
        )


def capture_shards(config: RunConfig, n_shards: int, workers: int) -> ShardedCaptureResult:
    """Capture rows in shards with a model at rest, each a task of its own.

    Several files are dealt out to the shards; one file is cut.

    Args:
        config: Of the capture; its model is not trained.
        n_shards: At most so many.
        workers: Processes at a time.

    Raises:
        GradsiftError: For settings that cannot be, or another pool in the folder.
    """
    said = config.model_fields_set
    differs = [
        one for one, value in AT_REST.items() if one in said and getattr(config, one) != value
    ]
    if differs:
        raise GradsiftError(
            f"shards are scored by a model at rest: leave out {', '.join(sorted(differs))}. Train "
            "it before: gradsift train on a sample, and give its folder as the model."
        )
    settings = config.model_dump(mode="json", include=config.model_fields_set) | AT_REST
    settings["model"] = config.model
    source = source_of(settings)
    files = files_of_shards(source, n_shards)
    n = n_shards if files is None else len(files)
    if n < n_shards:
        logger.info(f"{counted(n, 'file')}: as many shards, not {n_shards}")
    folder = Path(config.out).resolve()
    said = {
        "n_shards": n,
        "settings": {key: value for key, value in settings.items() if key != "out"},
        # Dealt out otherwise, rows would be in two shards or in none.
        "files": [[part.name, part.path.stat().st_size] for part in source.parts or (source,)],
    }
    _keep(folder, said)
    spec = PlanSpec(str(folder), n, {**settings, "out": str(folder)}, files)
    _do(spec, workers)
    return ShardedCaptureResult(folder, n, n - len(_not_captured(folder, n)))


def _not_captured(folder: Path, n_shards: int) -> list[int]:
    return [k for k in range(n_shards) if not (folder / shard_name(k) / MARKER).is_file()]


def select_shards(
    run: str | Path, budget: str | float, config: SelectionConfig, name: str | None, workers: int
) -> ShardedSelectResult:
    """Select from a pool that was captured in shards.

    Args:
        run: Its folder.
        budget: As for `select`.
        config: How to select.
        name: Of the selection.
        workers: Processes at a time.

    Raises:
        GradsiftError: If a setting does not fit, or shards are missing or damaged.
    """
    parsed = parse_budget(budget)
    require_in_shards(config, parsed)
    folder = Path(run).resolve()
    n_shards = n_shards_of(folder)
    n_rows = _count_rows(folder, n_shards)
    settings = plain_settings(parsed, config)
    name = name_of(settings) if name is None else name
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise GradsiftError(f"`name` is {name!r}, expected letters, digits, '-', '_' and '.'.")
    selection = (name, str(parsed), config.model_dump_json())
    spec = PlanSpec(str(folder), n_shards, n_parts=n_parts(n_rows), selection=selection)
    where = folder / SELECTIONS / name
    _keep_settings(where, settings)
    plan = spec.build()
    rows = plan.step("rows")
    if not all(plan.is_done(rows, index, verify=False) for index in range(rows.count)):
        # It would tell of rows that are written anew.
        remove(where / SUMMARY)
    waits_for = _do(spec, workers)
    if waits_for is not None:
        return ShardedSelectResult(where, None, waits_for)
    counts = _sum([read_json(where / f"rows-{k:05d}" / COUNTS) for k in range(n_shards)])
    write_json(where / SUMMARY, {**counts, "settings": settings, "shards": n_shards})
    return ShardedSelectResult(where, counts, None)


@takes(ModelConfig, CaptureConfig, ReadingConfig)
def capture_in_shards(
    model: str | Path,
    data: str | Sequence[str],
    *,
    out: str | Path,
    shards: int,
    workers: int = 1,
    **settings: Any,
) -> ShardedCaptureResult:
    """Capture rows in shards with a model that is not trained, each shard a task of its own.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        data: File, folder, pattern or hub id; or several of them.
        out: The folder.
        shards: At most so many: several files are dealt out, one is cut.
        workers: Processes at a time.
        **settings: Which weights, how to capture, and how rows are read; see Settings.

    Returns:
        What was captured.

    Raises:
        GradsiftError: For settings that cannot be, or another pool in the folder.
    """
    values = {"data": data, "model": model, "out": str(out), **settings}
    return capture_shards(run_config(values), shards, workers)


@takes(SubsetConfig)
def select_from_shards(
    run: str | Path, *, budget: str | int | float, workers: int = 1, **settings: Any
) -> ShardedSelectResult:
    """Select from a pool that was captured in shards.

    Args:
        run: Its folder.
        budget: As for `select`.
        workers: Processes at a time.
        **settings: How to select; see Settings.

    Returns:
        What was selected and written.

    Raises:
        GradsiftError: If a setting does not fit, or shards are missing or damaged.
    """
    config = split_settings(settings, SubsetConfig)[0]
    for name in ("weights", "export", "report", "details"):
        if getattr(config, name):
            raise GradsiftError(f"`{name}` is not known to a pool in shards: leave it out.")
    fields = set(SelectionConfig.model_fields)
    selecting = SelectionConfig(**config.model_dump(include=fields))
    return select_shards(run, budget, selecting, config.name, workers)


def explain_in_shards(run: str | Path, row_id: str, name: str | None = None) -> Explanation:
    """Collect what is known about one row of a pool in shards.

    Args:
        run: Its folder.
        row_id: An instance id; or SHARD:ID, where several shards have a row of that id.
        name: Of one selection; None takes all.

    Raises:
        GradsiftError: If there is no such row or selection, or several shards have one.
    """
    folder = Path(run).resolve()
    number, _, rest = row_id.partition(":")
    _count_rows(folder, n_shards_of(folder))
    found = _rows_called(folder, range(n_shards_of(folder)), row_id)
    if not found and number.isdecimal() and int(number) < n_shards_of(folder):
        found = _rows_called(folder, [int(number)], rest)
    if len(found) > 1:
        shards = ", ".join(str(shard) for shard, _ in found)
        raise GradsiftError(
            f"{folder}: shards {shards} have a row {row_id!r} each: give one, such as "
            f"{found[0][0]}:{row_id}."
        )
    if not found:
        raise GradsiftError(f"{folder}: no row {short(row_id, 60)!r} in any of its shards.")
    ((shard, row),) = found
    decisions, texts = {}, {}
    for place in sorted((folder / SELECTIONS).glob("*")):
        path = place / f"rows-{shard:05d}" / DECISIONS
        if (name is not None and place.name != name) or not (place / SUMMARY).is_file():
            continue
        table = read_parquet(path) if path.is_file() else None
        lines = []
        if table is not None:
            lines = table.filter(pc.equal(table["instance_id"], row["instance_id"])).to_pylist()
        if len(lines) != 1:
            raise GradsiftError(
                f"{path}: is missing or has no line for this row. Run the same select command "
                "again, which writes it anew."
            )
        line = lines[0]
        said = line.pop("prompt"), line.pop("response")
        if None not in said:
            texts[row["instance_id"]] = said
        decisions[place.name] = {**line, "what_if": None}
    if name is not None and not decisions:
        raise GradsiftError(f"{folder}: no selection {name!r} is there, or it is not finished.")
    return Explanation(row, decisions, texts)


def _rows_called(
    folder: Path, shards: Iterable[int], row_id: str
) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for shard in shards:
        table = read_pool_table(folder / shard_name(shard) / RUN)
        rows = table.filter(pc.equal(table["instance_id"], row_id)).to_pylist()
        found += [(shard, row) for row in rows]
    return found


def n_shards_of(folder: Path) -> int:
    """Return into how many shards a run was captured."""
    n = read_json(folder / SHARDS).get("n_shards")
    if not isinstance(n, int) or not 1 <= n <= _MOST_SHARDS:
        raise DamagedError(folder / SHARDS, "says no number of shards")
    return n


def _count_rows(folder: Path, n_shards: int) -> int:
    """Count the instances of all shards.

    Raises:
        GradsiftError: If one is not captured.
    """
    missing = _not_captured(folder, n_shards)
    manifests = [load_manifest(folder / shard_name(k) / RUN) for k in range(n_shards)]
    missing += [k for k, one in enumerate(manifests) if one is None or not one.complete]
    if missing:
        raise GradsiftError(
            f"{folder}: {len(set(missing))} of {n_shards} shards are not captured, the first is "
            f"{min(missing)}. Run the same capture command again."
        )
    return sum(one.n_instances or 0 for one in manifests if one is not None)


def _keep(folder: Path, said: dict[str, Any]) -> None:
    """Note what a folder of shards is of, or refuse another pool in it."""
    path = folder / SHARDS
    said = json.loads(json.dumps(said, default=str))
    if path.exists():
        before = read_json(path)
        different = [key for key in said if before.get(key) != said[key]]
        if different and any((folder / "shards").glob(f"*/{MARKER}")):
            raise GradsiftError(
                f"{folder} holds another pool in shards ({', '.join(different)} differ). Choose "
                "another `out`, or put back what was changed."
            )
        if not different:
            return
    if load_manifest(folder) is not None:
        raise GradsiftError(f"{folder} holds a run that is not in shards. Choose another `out`.")
    make_folder(folder)
    write_json(path, said)


def _keep_settings(where: Path, settings: dict[str, Any]) -> None:
    """Note what a selection is made with, before any of it is; or refuse another of its name."""
    path = where / SETTINGS
    said = json.loads(json.dumps(settings, default=str))
    if path.exists():
        before = read_json(path).get("settings")
        different = [key for key in said if (before or {}).get(key) != said[key]]
        if different:
            raise GradsiftError(
                f"{where} holds a selection with other settings ({', '.join(different)}). Give "
                "this one another `name`."
            )
        return
    make_folder(where)
    write_json(path, {"settings": said})


def _do(spec: PlanSpec, workers: int) -> str | None:
    """Do a plan, or the share that the environment names; return the step that is not done."""
    remove_leftovers(Path(spec.root))
    share = os.environ.get(OWN_SHARE)
    if share is None:
        if workers == 1:
            do_here(spec.build())
        else:
            do_with_processes(spec, workers)
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if found is None or not 0 <= int(found[1]) < int(found[2]):
        raise GradsiftError(f"{OWN_SHARE} is {share!r}, expected as in 3/64: a share, from 0.")
    return do_own_share(spec, int(found[1]), int(found[2]))


def _sum(counts: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"dropped_by_reason": {}}
    for one in counts:
        for key, value in one.items():
            if isinstance(value, int) and not isinstance(value, bool):
                total[key] = total.get(key, 0) + value
        for reason, n in one["dropped_by_reason"].items():
            reasons = total["dropped_by_reason"]
            reasons[reason] = reasons.get(reason, 0) + n
    return total
