"""From captured shards to the neighbour graph of the whole pool, part by part.

The graph hangs on the captured rows alone, so it is made once for all selections.

Shapes: N rows of the pool, R of a part or a shard, C cells, V cells visited, K neighbours, E edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradsift.run_folder import Run
from gradsift.seals import read_parquet, write_parquet
from gradsift.selection.candidates import Need
from gradsift.selection.content import ContentScale, fit_content
from gradsift.selection.neighbours import COMPLETE_ROWS, N_NEIGHBOURS, Neighbours, unit_rows
from gradsift.selection.parts.cells import Cells, Layout, fit_cells, lay_out
from gradsift.selection.parts.near import NearestFinder, Rows, edges_of, floors, graph_of
from gradsift.sharding.plan import Output, Step, Task

# Rows that scale, directions and cells are fitted to, drawn by a hash of their ids.
SAMPLE_ROWS = 2**18
# Rows of a part, so that a task holds some 2 to 3 GB.
PART_ROWS = 2**18
TEXTS = "texts.parquet"
_TEXTS = [pa.field(name, pa.string()) for name in ("instance_id", "source")]


def n_parts(n_rows: int) -> int:
    """Return into how many parts a pool of so many rows is cut."""
    return max(1, -(-n_rows // PART_ROWS))


def graph_steps(
    shards: Sequence[Callable[[], Run]], digests: Sequence[Callable[[], str | None]], parts: int
) -> list[Step]:
    """Return the steps that make the graph of a pool that was captured in shards.

    Args:
        shards: Give the runs.
        digests: Give those of the shards' outputs.
        parts: Of the pool.
    """

    def columns(task: Task) -> None:
        write_columns(task, shards[task.index]())

    def stored(index: int) -> dict[str, str]:
        return {"shard": str(digests[index]())}

    def layout(task: Task) -> None:
        write_layout(task, parts)

    n, where = len(shards), "graph"
    return [
        Step("columns", n, (), columns, stored, where),
        Step("cells", 1, ("columns",), write_cells, where=where),
        Step("assigned", n, ("=columns", "cells"), assign, where=where),
        Step("layout", 1, ("assigned", "cells"), layout, lambda _: {"parts": str(parts)}, where),
        Step("part", parts, ("assigned", "layout"), gather, where=where),
        Step("near", parts, ("part", "layout", "cells"), find_near, where=where),
        Step("graph", parts, ("near", "layout"), join_graph, where=where),
    ]


def write_columns(task: Task, run: Run) -> None:
    """Take what is known of each row of a shard out of its run folder."""
    pool = run.candidates([Need.FEATURES])
    assert pool.features_ND is not None
    n = len(pool)
    source = pa.nulls(n, pa.string()) if pool.source is None else pa.array(pool.source, pa.string())
    columns = [pa.array(pool.ids, pa.string()), source]
    write_parquet(task.folder / TEXTS, pa.table(columns, schema=pa.schema(_TEXTS)))
    statistics = {
        f"statistic-{layer}-{name}": array
        for layer, by_name in pool.statistics.items()
        for name, array in by_name.items()
    }
    hashes = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in pool.ids)
    task.write(
        **statistics,
        n_tokens=pool.n_tokens,
        n_response_tokens=pool.n_response_tokens,
        step=pool.step,
        loss=pool.loss,
        el2n=pool.el2n,
        features=pool.features_ND.astype(np.float32),
        hash=np.frombuffer(hashes, dtype=np.uint64),
    )


def texts_of(folder: Path) -> pa.Table:
    """Return id and source of each row of a shard."""
    return read_parquet(folder / TEXTS, [one.name for one in _TEXTS], _TEXTS)


def write_cells(task: Task) -> None:
    """Fit scale, directions and cells to a sample of all shards."""
    shards = task.inputs("columns")
    hashes = [shard["hash"] for shard in shards]
    n = sum(map(len, hashes))
    most = min(SAMPLE_ROWS, n)
    last = np.partition(np.concatenate(hashes), most - 1)[most - 1]
    sampled = [np.flatnonzero(hash_R <= last) for hash_R in hashes]
    pairs = list(zip(shards, sampled, strict=True))
    features_MD = np.concatenate([shard["features"][rows] for shard, rows in pairs])
    step_M = np.concatenate([shard["step"][rows] for shard, rows in pairs])
    scale = fit_content(features_MD, step_M)
    # A row whose features are the mean's is like no other.
    unit_ME = unit_rows(scale.vectors(features_MD, step_M))[:, : features_MD.shape[1]]
    cells = fit_cells(unit_ME, n)
    task.write(
        steps=np.array(scale.steps),
        trend=scale.trend_KD,
        scale=scale.scale_D,
        directions=np.empty(0) if cells.directions_EW is None else cells.directions_EW,
        centroids=cells.centroids_CW,
    )


def cells_of(task: Task) -> tuple[ContentScale, Cells]:
    """Read what `write_cells` wrote."""
    out = task.input("cells", 0)
    mean, spread = out["steps"].tolist()
    directions = out["directions"] if out["directions"].size else None
    scale = ContentScale((mean, spread), out["trend"], out["scale"])
    return scale, Cells(directions, out["centroids"])


def assign(task: Task) -> None:
    """Put the rows of a shard into cells, and sort them by cell."""
    shard, (scale, cells) = task.input("columns"), cells_of(task)
    features_RD = shard["features"]
    unit_RE = unit_rows(scale.vectors(features_RD, shard["step"]))[:, : features_RD.shape[1]]
    visited_RV = cells.visited(cells.narrow(unit_RE))
    order_R = np.argsort(visited_RV[:, 0], kind="stable")
    task.write(
        row=order_R,
        unit=unit_RE[order_R],
        visited=visited_RV[order_R],
        counts=np.bincount(visited_RV[:, 0], minlength=len(cells.centroids_CW)),
    )


def write_layout(task: Task, parts: int) -> None:
    """Give every row its position."""
    counts_SC = np.stack([out["counts"] for out in task.inputs("assigned")])
    layout = lay_out(counts_SC, task.input("cells", 0)["centroids"], parts)
    task.write(**vars(layout))


def layout_of(task: Task) -> Layout:
    """Read what `write_layout` wrote."""
    out = task.input("layout", 0)
    names = ("part_C", "starts_SC", "starts_P1", "cell_starts_C")
    return Layout(**{name: out[name] for name in names})


def rows_of_part(layout: Layout, part: int) -> slice:
    """Return the positions of a part's rows."""
    return slice(int(layout.starts_P1[part]), int(layout.starts_P1[part + 1]))


def gather(task: Task) -> None:
    """Bring the rows of a part together, in the order of their positions."""
    layout, shards = layout_of(task), task.inputs("assigned")
    rows = rows_of_part(layout, task.index)
    n = rows.stop - rows.start
    width, n_visited = shards[0]["unit"].shape[1], shards[0]["visited"].shape[1]
    unit_RE = task.create("unit", (n, width), np.float32)
    visited_RV = np.empty((n, n_visited), dtype=np.int32)
    shard_R, row_R = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int64)
    for number, shard in enumerate(shards):
        cell_r = shard["visited"][:, 0]
        mine = np.flatnonzero(layout.part_C[cell_r] == task.index)
        if len(mine) == 0:
            continue
        # Within a shard, rows of a cell stand together.
        ends_C = np.cumsum(shard["counts"])
        within = mine - (ends_C - shard["counts"])[cell_r[mine]]
        at = layout.starts_SC[number][cell_r[mine]] + within - rows.start
        unit_RE[at], visited_RV[at] = shard["unit"][mine], shard["visited"][mine]
        shard_R[at], row_R[at] = number, shard["row"][mine]
    task.write(visited=visited_RV, shard=shard_R, row=row_R)


def find_near(task: Task) -> None:
    """Find the nearest rows of a part's rows, in all parts whose cells they visit."""
    layout, (_, cells) = layout_of(task), cells_of(task)
    parts = task.inputs("part")
    own = parts[task.index]
    positions_R = np.arange(*rows_of_part(layout, task.index).indices(int(layout.starts_P1[-1])))
    n = int(layout.starts_P1[-1])
    k = n if n <= COMPLETE_ROWS else N_NEIGHBOURS
    visited_RV = own["visited"]
    finder = NearestFinder(_rows(own, positions_R, slice(None), cells), visited_RV, k)
    is_visited = np.zeros(len(cells.centroids_CW), dtype=bool)
    is_visited[visited_RV] = True
    for number, other in enumerate(parts):
        if not is_visited[layout.part_C == number].any():
            continue
        found = np.flatnonzero(is_visited[other["visited"][:, 0]])
        start = layout.starts_P1[number]
        finder.look_among(_rows(other, start + found, found, cells))
    nearest_RK, cosine_RK = finder.found()
    owner_E, other_E, cosine_E = edges_of(positions_R, nearest_RK, cosine_RK)
    task.write(
        owner=owner_E,
        other=other_E,
        cosine=cosine_E,
        # Where the edges to each part begin.
        starts=np.searchsorted(other_E, layout.starts_P1),
        floor=np.zeros(len(positions_R), np.float32) if k == n else floors(cosine_RK),
    )


def _rows(part: Output, positions_H: np.ndarray, rows: Any, cells: Cells) -> Rows:
    unit_HE = np.ascontiguousarray(part["unit"][rows])
    return Rows(positions_H, part["visited"][rows, 0], cells.narrow(unit_HE), unit_HE)


def join_graph(task: Task) -> None:
    """Join the edges from and to the rows of a part."""
    layout, near = layout_of(task), task.inputs("near")
    names = ("owner", "other", "cosine")
    own = tuple(near[task.index][name] for name in names)
    parts = [
        tuple(out[name][slice(*out["starts"][task.index : task.index + 2])] for name in names)
        for out in near
    ]
    back = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
    start = rows_of_part(layout, task.index).start
    graph = graph_of(start, near[task.index]["floor"], own, back)
    task.write(
        offsets=graph.offsets, rows=graph.rows_E, cosines=graph.cosines_E, floor=graph.floor_N
    )


def graph_from(task: Task, part: int) -> Neighbours:
    """Read the graph of a part's rows; `rows_E` are positions in the whole pool."""
    out = task.input("graph", part)
    return Neighbours(out["offsets"], out["rows"], out["cosines"], out["floor"])
