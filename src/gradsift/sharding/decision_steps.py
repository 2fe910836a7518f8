"""From what was chosen to what a user reads: a decision on every row, and the rows, shard by shard.

Shapes: N rows of the pool in the order of parts, R of a part or a shard, S selected, E edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.captured_rows import places_of
from gradsift.config import SelectionConfig
from gradsift.data.containers.rows import write_rows
from gradsift.decided import DECISIONS
from gradsift.run_folder import Run
from gradsift.seals import write_json, write_parquet
from gradsift.selection.constraints import Constraints
from gradsift.selection.decisions import counts_of, decided_on, with_what_they_say
from gradsift.selection.greedy import Gains
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Objective, nearness
from gradsift.selection.reasons import Evidence, Outcome, write_reasons
from gradsift.selection.strategies.base import Choice
from gradsift.sharding.graph_steps import graph_from, layout_of, rows_of_part, texts_of
from gradsift.sharding.plan import Task

COUNTS = "counts.json"
RANDOM = "random"
# Of each row of a part, in its output.
_OF_ROWS = ("gradient", "diversity", "penalty", "nearest", "cosine")


def gains_at_the_end(
    objective: Objective, graph: Neighbours, rows: slice, covered_N: np.ndarray, kept_N: np.ndarray
) -> Gains:
    """Compute what each row of a part would add to what is selected, exactly.

    Args:
        objective: Of the whole pool, but for its graph.
        graph: Of the part's rows.
        rows: Their positions.
        covered_N: How well each row of the pool is represented.
        kept_N: Whether each is selected.
    """
    weights, owner_E = objective.weights, graph.owners()
    added_E = np.maximum(graph.cosines_E - covered_N[graph.rows_E], 0).astype(np.float64)
    near_E = nearness(graph.cosines_E, objective.similarity_threshold)
    near_E[~kept_N[graph.rows_E] | (graph.rows_E == owner_E + rows.start)] = 0
    starts = graph.offsets[:-1]
    return Gains(
        weights.gradient * objective.score_N[rows],
        weights.diversity / len(covered_N) * np.add.reduceat(added_E, starts),
        weights.similarity * np.add.reduceat(near_E, starts),
    )


def nearest_kept(
    graph: Neighbours, start: int, kept_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the selected row most similar to each row of a part, itself left out.

    Returns:
        Its position in the pool, −1 where there is none; and its cosine, NaN there.
    """
    owner_E = graph.owners()
    eligible_E = kept_N[graph.rows_E] & (graph.rows_E != owner_E + start)
    cosine_E = np.where(eligible_E, graph.cosines_E, -np.inf)
    cosine_R = np.maximum.reduceat(cosine_E, graph.offsets[:-1]).astype(np.float64)
    best_E = np.flatnonzero(eligible_E & (cosine_E == cosine_R[owner_E]))
    owners, first = np.unique(owner_E[best_E], return_index=True)
    nearest_R = np.full(len(graph), -1, dtype=np.int64)
    nearest_R[owners] = graph.rows_E[best_E[first]]
    return nearest_R, np.where(nearest_R >= 0, cosine_R, np.nan)


def covered_by(graphs: Iterable[tuple[slice, Neighbours]], kept_N: np.ndarray) -> np.ndarray:
    """Compute how well each row is represented by what is selected: covered_N."""
    covered_N = np.empty(len(kept_N), dtype=np.float32)
    for rows, graph in graphs:
        cosine_E = np.where(kept_N[graph.rows_E], graph.cosines_E, 0)
        covered_N[rows] = np.maximum(
            np.maximum.reduceat(cosine_E, graph.offsets[:-1]), graph.floor_N
        )
    return covered_N


def positions_of(task: Task, shard: int) -> np.ndarray:
    """Return the position of each row of a shard, in its own order."""
    layout, assigned = layout_of(task), task.input("assigned", shard)
    cell_R, counts_C = assigned["visited"][:, 0], assigned["counts"]
    within_R = np.arange(len(cell_R)) - (np.cumsum(counts_C) - counts_C)[cell_R]
    position_R = np.empty(len(cell_R), dtype=np.int64)
    position_R[assigned["row"]] = layout.starts_SC[shard][cell_R] + within_R
    return position_R


def decide(
    task: Task,
    objective: Objective,
    order_S: np.ndarray,
    gains: tuple[np.ndarray, np.ndarray, np.ndarray],
    covered_N: np.ndarray,
) -> None:
    """Write what each row of a part adds, when it was selected or else at the end.

    Args:
        task: Of the part.
        objective: Of the whole pool, but for its graph.
        order_S: What is selected.
        gains: Gradient, diversity and penalty of these, when they were selected.
        covered_N: See `covered_by`.
    """
    rows, graph = rows_of_part(layout_of(task), task.index), graph_from(task, task.index)
    kept_N = np.zeros(len(covered_N), dtype=bool)
    kept_N[order_S] = True
    at_end = gains_at_the_end(objective, graph, rows, covered_N, kept_N)
    mine = np.flatnonzero((order_S >= rows.start) & (order_S < rows.stop))
    arrays = {}
    for name, taken_S in zip(("gradient", "diversity", "penalty"), gains, strict=True):
        values_R = getattr(at_end, f"{name}_N")
        values_R[order_S[mine] - rows.start] = taken_S[mine]
        arrays[name] = values_R
    nearest_R, cosine_R = nearest_kept(graph, rows.start, kept_N)
    task.write(**arrays, nearest=nearest_R, cosine=cosine_R)


def write_decisions(
    task: Task,
    run: Run,
    config: SelectionConfig,
    constraints: Constraints,
    full: Mapping[int, int],
) -> None:
    """Write the rows of a shard that are kept, and a decision on each.

    Args:
        task: Of the shard.
        run: The shard.
        config: The settings.
        constraints: Of the whole pool.
        full: Groups whose quota is spent.
    """
    layout, position_R = layout_of(task), positions_of(task, task.index)
    signal, chosen = task.input("signal", 0), task.input("chosen", 0)
    found = _of_shard(task, position_R)
    order_S = chosen["order"]
    rank_N = np.zeros(len(constraints.costs_N), dtype=np.int64)
    rank_N[order_S] = np.arange(1, len(order_S) + 1)
    n, last = len(position_R), int(order_S[-1])
    # The last kept row stands behind the shard's own, since reasons compare with it; behind that
    # the nearest kept row of each, which they name.
    at_R1 = np.append(position_R, last)
    nearest_R = found["nearest"].astype(np.int64)
    ids_R = texts_of(task.input("columns").folder)["instance_id"].to_pylist()
    nearest_ids = _ids_at(task, np.append(nearest_R, last))
    names = ("gradient", "diversity", "penalty")
    if config.strategy == RANDOM:
        found |= {name: np.full(n, np.nan) for name in names}
    gains = Gains(*(np.append(found[name], chosen[name][-1]) for name in names))
    evidence = Evidence(
        ids=[*ids_R, nearest_ids[-1], *nearest_ids[:-1]],
        score_N=signal["score"][at_R1],
        density_pct_N=signal["density_pct"][at_R1],
        magnitude_pct_N=signal["magnitude_pct"][at_R1],
        nearest_N=np.where(nearest_R >= 0, n + 1 + np.arange(n), -1),
        cosine_N=found["cosine"],
        source=run.candidates().source,
    )
    spent = int(constraints.costs_N[order_S].sum())
    outcome = Outcome(
        rank_N[position_R],
        len(order_S),
        n,
        constraints.budget.amount - spent,
        full,
        len(constraints.keep),
    )
    choice = Choice(np.array([n]), gains if config.strategy != RANDOM else None)
    local = _at(constraints, at_R1)
    decided = {
        "instance_id": ids_R,
        "selected": rank_N[position_R] > 0,
        "rank": rank_N[position_R],
        "marginal_gain": gains.marginal_N[:-1],
        "gradient_gain": gains.gradient_N[:-1],
        "diversity_gain": gains.diversity_N[:-1],
        "similarity_penalty": gains.penalty_N[:-1],
        "gradient_score": evidence.score_N[:-1],
        "density_pct": evidence.density_pct_N[:-1],
        "magnitude_pct": evidence.magnitude_pct_N[:-1],
        "nearest_selected": nearest_ids[:-1],
        "nearest_similarity": found["cosine"],
        "reason": write_reasons(choice, evidence, config, local, outcome),
    }
    table = run.pool_table
    part_R = np.searchsorted(layout.starts_P1, position_R, side="right") - 1
    decisions = with_what_they_say(
        decided_on(table, decided), run.candidates(), part_R, table, run.texts
    )
    shard = pa.array(np.full(decisions.num_rows, task.index), pa.int64())
    write_parquet(task.folder / DECISIONS, decisions.add_column(0, "shard", shard))
    kept = decisions["selected"].combine_chunks()
    n_tokens = pc.sum(table["n_tokens"].filter(kept)).as_py() or 0
    write_json(task.folder / COUNTS, {**counts_of(table, decisions), "n_tokens": n_tokens})
    write_rows(
        run.rows.source, places_of(run.folder, run.rows.source, table.filter(kept)), task.folder
    )


def _of_shard(task: Task, position_R: np.ndarray) -> dict[str, np.ndarray]:
    layout = layout_of(task)
    found = {name: np.empty(len(position_R)) for name in _OF_ROWS}
    for part, decided in enumerate(task.inputs("decided")):
        rows = rows_of_part(layout, part)
        here = np.flatnonzero((position_R >= rows.start) & (position_R < rows.stop))
        for name, values_R in found.items():
            values_R[here] = decided[name][position_R[here] - rows.start]
    return found


def _at(constraints: Constraints, at_R1: np.ndarray) -> Constraints:
    """Return what conditions say of some rows; the last of these is on no list."""
    own_R = at_R1[:-1]
    group_N = constraints.group_N
    return Constraints(
        constraints.costs_N[at_R1],
        constraints.budget,
        tuple(np.flatnonzero(np.isin(own_R, constraints.keep)).tolist()),
        None if group_N is None else group_N[at_R1],
        constraints.caps_G,
        np.flatnonzero(np.isin(own_R, constraints.excluded)),
    )


def _ids_at(task: Task, positions: np.ndarray) -> list[str | None]:
    """Return the ids of rows anywhere in the pool, None for −1; of one shard after the other."""
    layout = layout_of(task)
    shard_of, row_of = np.full(len(positions), -1), np.zeros(len(positions), dtype=np.int64)
    for part, out in enumerate(task.inputs("part")):
        rows = rows_of_part(layout, part)
        here = np.flatnonzero((positions >= rows.start) & (positions < rows.stop))
        shard_of[here] = out["shard"][positions[here] - rows.start]
        row_of[here] = out["row"][positions[here] - rows.start]
    found: list[str | None] = [None] * len(positions)
    for shard in np.unique(shard_of[shard_of >= 0]).tolist():
        ids = texts_of(task.input("columns", shard).folder)["instance_id"]
        here = np.flatnonzero(shard_of == shard)
        for at, one in zip(here, ids.take(pa.array(row_of[here])).to_pylist(), strict=True):
            found[at] = one
    return found
