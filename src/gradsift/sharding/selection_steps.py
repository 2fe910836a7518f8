"""From the graph of a sharded pool to a selection of it, part by part.

Shapes: N rows of the pool in the order of parts, R of a part, S selected, E edges.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import cast

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.selection.candidates import Candidates
from gradsift.selection.constraints import Budget, Constraints
from gradsift.selection.greedy import Gains
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Objective, Terms
from gradsift.selection.parts.greedy import (
    Ordered,
    PartGains,
    edges_with,
    first_round,
    joined_gains,
    part_gains,
    second_round,
    union_of,
)
from gradsift.selection.parts.near import with_border, within
from gradsift.selection.possible_gains import CoverageProfile, with_a_choice
from gradsift.selection.scores import percentile_rank
from gradsift.selection.selector import make_signal
from gradsift.sharding.graph_steps import graph_from, layout_of, rows_of_part
from gradsift.sharding.plan import Output, Step, Task
from gradsift.terms import LAYERS, STATISTICS

_NUMBERS = ("n_tokens", "n_response_tokens", "step", "loss", "el2n")


def selection_steps(config: SelectionConfig, budget: Budget, parts: int, where: str) -> list[Step]:
    """Return the steps that select from a pool whose graph is there."""
    one = _Selecting(config, budget)
    tasks = (
        ("signal", 1, ("columns", "part", "layout"), one.signal),
        ("gains", parts, ("signal", "=graph", "layout"), one.gains),
        ("scale", 1, ("signal", "gains"), one.scale),
        ("first", parts, ("signal", "scale", "=graph", "layout"), one.first),
        ("chosen", 1, ("signal", "scale", "first", "graph", "layout"), one.choose),
    )
    settings = {"budget": str(budget), "settings": config.model_dump_json()}
    return [Step(*task, made_from=lambda _: settings, where=where) for task in tasks]


class _Selecting:
    """The tasks of one selection."""

    def __init__(self, config: SelectionConfig, budget: Budget) -> None:
        self.config, self.budget = config, budget

    def signal(self, task: Task) -> None:
        """Compute scores of all rows, and put them and all else into the order of positions."""
        layout, shards = layout_of(task), task.inputs("columns")
        pool = pool_of(shards)
        signal = make_signal(pool, self.config)
        starts = np.cumsum([0, *(len(shard["hash"]) for shard in shards)])
        row_N = np.concatenate(
            [starts[part["shard"]] + part["row"] for part in task.inputs("part")]
        )
        assert len(row_N) == layout.starts_P1[-1] == len(pool)
        task.write(
            score=signal.score_N[row_N],
            density_pct=100 * percentile_rank(signal.density.log_N)[row_N],
            magnitude_pct=100 * percentile_rank(signal.magnitude_N)[row_N],
            costs=np.asarray(pool.n_tokens)[row_N],
        )

    def gains(self, task: Task) -> None:
        """Say what a part has to gain."""
        signal, graph = task.input("signal", 0), graph_from(task, task.index)
        start = rows_of_part(layout_of(task), task.index).start
        found = part_gains(
            signal["score"][start : start + len(graph)],
            graph,
            within(graph, start),
            start,
            len(signal["score"]),
            with_a_choice(self._constraints(signal), half=self.budget.kind == "auto"),
            self.config.similarity_threshold,
        )
        task.write(
            diversity=found.diversity_S,
            costs=found.costs_S,
            numbers=np.array([found.similarity, found.near]),
            floor=graph.floor_N,
            nearest=found.profile.nearest_J,
            beyond=found.profile.beyond_J,
        )

    def scale(self, task: Task) -> None:
        """Bring the terms to one scale."""
        signal, outputs = task.input("signal", 0), task.inputs("gains")
        parts = [
            PartGains(
                out["diversity"],
                out["costs"],
                *out["numbers"].tolist(),
                CoverageProfile(out["nearest"], out["beyond"]),
            )
            for out in outputs
        ]
        score_N = signal["score"]
        floor_N = np.concatenate([out["floor"] for out in outputs])
        floor = float(floor_N.mean(dtype=np.float64))
        constraints = with_a_choice(self._constraints(signal), half=self.budget.kind == "auto")
        possible = joined_gains(parts, score_N, floor, constraints)
        task.write(
            scale=np.array(astuple(possible.scale)),
            drawn=np.array(astuple(possible.random)),
            alone=np.array(astuple(possible.alone)),
            floor=floor_N,
        )

    def first(self, task: Task) -> None:
        """Order the rows of a part."""
        signal, graph = task.input("signal", 0), graph_from(task, task.index)
        rows = rows_of_part(layout_of(task), task.index)
        objective = self._objective(task, signal, None)
        bordered = with_border(graph, rows.start, task.input("scale", 0)["floor"])
        found = first_round(objective, bordered, rows, self._constraints(signal))
        task.write(rows=found.rows_S, rates=found.rates_S, costs=found.costs_S)

    def choose(self, task: Task) -> None:
        """Choose from what the parts took; from all rows if that is not enough."""
        signal = task.input("signal", 0)
        constraints, n = self._constraints(signal), len(signal["score"])
        parts = [Ordered(out["rows"], out["rates"], out["costs"]) for out in task.inputs("first")]
        union_N = union_of(parts, constraints)
        order_S, gains = self._second(task, signal, union_N, constraints)
        spent = (
            constraints.costs_N[order_S].sum()
            if constraints.budget.kind == "tokens"
            else len(order_S)
        )
        if (
            len(order_S) == union_N.sum()
            and spent < constraints.budget.amount
            and not union_N.all()
        ):
            order_S, gains = self._second(task, signal, np.ones(n, dtype=bool), constraints)
        task.write(
            order=order_S,
            gradient=gains.gradient_N[order_S],
            diversity=gains.diversity_N[order_S],
            penalty=gains.penalty_N[order_S],
        )

    def _second(
        self, task: Task, signal: Output, union_N: np.ndarray, constraints: Constraints
    ) -> tuple[np.ndarray, Gains]:
        graph = joined_graph(task, union_N)
        return second_round(self._objective(task, signal, graph), union_N, constraints)

    def _constraints(self, signal: Output) -> Constraints:
        costs_N = signal["costs"]
        return Constraints(costs_N, self.budget.resolve(len(costs_N), int(costs_N.sum())))

    def _objective(self, task: Task, signal: Output, graph: Neighbours | None) -> Objective:
        config = self.config
        return Objective(
            signal["score"],
            cast("Neighbours", graph),
            config.alpha,
            config.beta,
            config.gamma,
            config.similarity_threshold,
            Terms(*task.input("scale", 0)["scale"].tolist()),
        )


def joined_graph(task: Task, union_N: np.ndarray) -> Neighbours:
    """Return the graph of the whole pool, but for edges outside the union; edges on the disk."""
    layout = layout_of(task)
    parts = len(layout.starts_P1) - 1
    counts_N = np.empty(len(union_N), dtype=np.int64)
    floor_N = np.empty(len(union_N), dtype=np.float32)
    for part in range(parts):
        rows, graph = rows_of_part(layout, part), graph_from(task, part)
        kept = edges_with(graph, rows.start, union_N)
        counts_N[rows], floor_N[rows] = np.diff(kept.offsets), graph.floor_N
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    scratch = task.create("edges", (int(offsets[-1]),), np.int32)
    cosines_E = task.create("edge-cosines", (int(offsets[-1]),), np.float32)
    for part in range(parts):
        rows = rows_of_part(layout, part)
        kept = edges_with(graph_from(task, part), rows.start, union_N)
        here = slice(offsets[rows.start], offsets[rows.stop])
        scratch[here], cosines_E[here] = kept.rows_E, kept.cosines_E
    return Neighbours(offsets, scratch, cosines_E, floor_N)


def pool_of(shards: list[Output]) -> Candidates:
    """Join the columns of all shards; ids are the numbers of the rows."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([shard[name] for shard in shards])

    there = {
        layer: [
            name
            for name in STATISTICS
            if (shards[0].folder / f"statistic-{layer}-{name}.npy").exists()
        ]
        for layer in LAYERS
    }
    statistics = {
        layer: {name: joined(f"statistic-{layer}-{name}") for name in names}
        for layer, names in there.items()
        if names
    }
    numbers = {name: joined(name) for name in _NUMBERS}
    # A range is as good as sorted ids, and takes no room.
    ids = cast("list[str]", range(len(numbers["step"])))
    return Candidates(ids=ids, statistics=statistics, **numbers)
