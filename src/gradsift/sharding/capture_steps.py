"""From rows to captured shards: each a run folder, of files of its own, scored by a model at rest.

Shapes: none; rows are counted.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from gradsift.commands.capture import capture_run
from gradsift.data.containers.lines import Place
from gradsift.data.containers.rows import read_rows, write_rows
from gradsift.data.containers.sources import Source, find_source
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.sharding.plan import Step, Task

# The model of all shards is the same: it is not trained while it scores.
AT_REST = {"record_at": "after", "warmup_fraction": 0.0}
RUN = "run"


def source_of(settings: dict[str, Any]) -> Source:
    """Find the rows that settings name."""
    return find_source(settings["data"], settings.get("split"), settings.get("data_config"))


def files_of_shards(source: Source, n_shards: int) -> list[list[str]] | None:
    """Deal several files out, in their order and about as many bytes to each; None for one file.

    Files without a byte have no rows, and are left out.
    """
    if not source.parts:
        return None
    parts = [part for part in source.parts if part.path.stat().st_size > 0]
    if not parts:
        raise GradsiftError(f"{source.name}: there are no rows in it.")
    sizes = [part.path.stat().st_size for part in parts]
    n, share = min(n_shards, len(sizes)), sum(sizes) / min(n_shards, len(sizes))
    dealt: list[list[str]] = [[]]
    filled = 0.0
    for at, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        left = len(sizes) - at
        full = dealt[-1] and filled + size / 2 > share * len(dealt)
        if dealt[-1] and len(dealt) < n and (full or left <= n - len(dealt)):
            dealt.append([])
        dealt[-1].append(part.name)
        filled += size
    return dealt


def capture_steps(
    settings: dict[str, Any], n_shards: int, files: list[list[str]] | None
) -> list[Step]:
    """Return the steps that capture rows in shards.

    Args:
        settings: Of the capture.
        n_shards: How many.
        files: Of each shard; None where one file is cut.
    """
    source = source_of(settings)

    def split(task: Task) -> None:
        split_rows(source, n_shards, task.folder)

    def capture(task: Task) -> None:
        if files is not None:
            names = files[task.index]
        else:
            (name,) = task.input("split", 0).folder.glob(f"rows-{task.index:05d}.*")
            names = [str(name)]
        values = {**settings, **AT_REST, "data": names, "out": str(task.folder / RUN)}
        values |= {"split": None, "data_config": None}
        model = values.pop("model")
        data = values.pop("data")
        capture_run(Run.new(model, data, **values))

    said = {key: str(value) for key, value in settings.items() if key != "out"}
    steps = []
    if files is None:
        steps.append(Step("split", 1, (), split, lambda _: said | {"n": str(n_shards)}, "shards"))
    needs = ("split",) if files is None else ()

    def made_from(index: int) -> dict[str, str]:
        return said if files is None else said | {"files": str(files[index])}

    return [*steps, Step("shard", n_shards, needs, capture, made_from, "shards", threads=None)]


def split_rows(source: Source, n_shards: int, folder: Path) -> None:
    """Cut the rows of one file into files of about as many, each like the file itself."""
    n_rows = sum(1 for _ in read_rows(source))
    if n_rows < n_shards:
        raise GradsiftError(
            f"{source.name}: {n_rows} rows cannot be cut into {n_shards} shards: give fewer."
        )
    rows = read_rows(source)
    for number in range(n_shards):
        n = (number + 1) * n_rows // n_shards - number * n_rows // n_shards
        places = [Place(raw.index, raw.start, raw.end) for raw in itertools.islice(rows, n)]
        written = write_rows(source, places, folder)
        written.rename(folder / f"rows-{number:05d}{written.suffix}")
