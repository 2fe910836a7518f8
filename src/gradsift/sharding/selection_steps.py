"""From the graph of a sharded pool to a selection of it, part by part.

Shapes: N rows of the pool in the order of parts, R of a part, S selected, E edges, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.config import SelectionConfig
from gradsift.data.id_lists import read_ids
from gradsift.errors import GradsiftError
from gradsift.run_folder import UNKNOWN, Run
from gradsift.seals import sha256_of
from gradsift.selection.candidates import Candidates
from gradsift.selection.constraints import Budget, Constraints, quotas
from gradsift.selection.greedy import Gains, elbow
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
from gradsift.selection.possible_gains import (
    CoverageProfile,
    PossibleGains,
    possible_gains,
    with_a_choice,
)
from gradsift.selection.scores import percentile_rank
from gradsift.selection.selector import make_signal
from gradsift.selection.strategies.catalogue import needs_of
from gradsift.sharding.decision_steps import RANDOM, covered_by, decide, write_decisions
from gradsift.sharding.graph_steps import graph_from, layout_of, rows_of_part, texts_of
from gradsift.sharding.plan import Output, Step, Task
from gradsift.terms import LAYERS, STATISTICS

GRADS, COVERAGE = "grads", "facility-location"
# What a pool in shards can be selected by.
STRATEGIES_IN_SHARDS = (GRADS, COVERAGE, RANDOM)
_NUMBERS = ("n_tokens", "n_response_tokens", "step", "loss", "el2n")


def require_in_shards(config: SelectionConfig, budget: Budget) -> None:
    """Refuse what is not done for a pool in shards.

    Raises:
        GradsiftError: Saying what.
    """
    needs = needs_of(config)  # Which knows what strategies and scores there are.
    if config.strategy not in STRATEGIES_IN_SHARDS:
        raise GradsiftError(
            f"`strategy` is {config.strategy!r}, which needs the whole pool in one process: a pool "
            f"in shards is selected from by {', '.join(STRATEGIES_IN_SHARDS)}."
        )
    if config.gate:
        raise GradsiftError("`gate` is not known to a pool in shards: leave it out.")
    if needs:
        raise GradsiftError(
            "a pool in shards is scored by the statistics of its gradients alone, and this "
            f"selection needs {' and '.join(sorted(need.value for need in needs))}: give another "
            "`score`, and `rank_within` pool."
        )
    if budget.kind == "auto" and config.strategy == RANDOM:
        raise GradsiftError("budget auto looks at marginal gains, and random has none.")


def selection_steps(
    config: SelectionConfig,
    budget: Budget,
    parts: int,
    runs: Sequence[Callable[[], Run]],
    where: str,
) -> list[Step]:
    """Return the steps that select from a pool whose graph is there."""
    one, n = _Selecting(config, budget, runs), len(runs)
    everything = ("signal", "scale", "chosen", "layout")
    tasks = (
        ("signal", 1, ("columns", "part", "layout"), one.signal, f"{where}/work"),
        ("gains", parts, ("signal", "=graph", "layout"), one.gains, f"{where}/work"),
        ("scale", 1, ("signal", "gains", "graph"), one.scale, f"{where}/work"),
        ("first", parts, ("signal", "scale", "=graph", "layout"), one.first, f"{where}/work"),
        ("chosen", 1, ("signal", "scale", "first", "graph", "layout"), one.choose, f"{where}/work"),
        ("decided", parts, (*everything, "=graph"), one.decide, f"{where}/work"),
        ("rows", n, (*everything, "decided", "=assigned", "columns", "part"), one.rows, where),
    )
    said = {"budget": str(budget), "settings": config.model_dump_json()}
    lists = {name: getattr(config, name) for name in ("keep", "drop") if getattr(config, name)}
    said |= {name: sha256_of(Path(path)) for name, path in lists.items()}
    return [
        Step(name, count, needs, run, lambda _: said, folder)
        for name, count, needs, run, folder in tasks
    ]


class _Selecting:
    """The tasks of one selection."""

    def __init__(
        self, config: SelectionConfig, budget: Budget, runs: Sequence[Callable[[], Run]]
    ) -> None:
        self.config, self.budget, self.runs = config, budget, runs

    @property
    def draws(self) -> bool:
        return self.config.strategy == RANDOM

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
        position_N = np.empty(len(row_N), dtype=np.int64)
        position_N[row_N] = np.arange(len(row_N))
        keep, drop = (self._listed(name, shards, position_N) for name in ("keep", "drop"))
        if both := set(keep.tolist()) & set(drop.tolist()):
            raise GradsiftError(
                f"{len(both)} rows are on the list of rows to keep and on that of rows to drop: "
                "take them off one of them."
            )
        group_N, caps_G = quotas(self._sources(shards), self.config.quota)
        task.write(
            score=signal.score_N[row_N],
            density_pct=100 * percentile_rank(signal.density.log_N)[row_N],
            magnitude_pct=100 * percentile_rank(signal.magnitude_N)[row_N],
            costs=np.asarray(pool.n_tokens)[row_N],
            keep=keep,
            drop=drop,
            group=np.empty(0, np.int64) if group_N is None else group_N[row_N],
            caps=np.array(sorted((caps_G or {}).items()), dtype=np.int64).reshape(-1, 2),
        )

    def _sources(self, shards: list[Output]) -> list[str] | None:
        if not self.config.quota:
            return None
        columns = [texts_of(shard.folder)["source"] for shard in shards]
        if all(column.null_count == len(column) for column in columns):
            return None
        return [one for column in columns for one in pc.fill_null(column, UNKNOWN).to_pylist()]

    def _listed(self, name: str, shards: list[Output], position_N: np.ndarray) -> np.ndarray:
        path = getattr(self.config, name)
        if path is None:
            return np.empty(0, dtype=np.int64)
        ids = read_ids(path, name, self.runs[0]().id_column, set())
        found, start = [], 0
        seen = np.zeros(len(ids), dtype=bool)
        for shard in shards:
            of_shard = texts_of(shard.folder)["instance_id"].combine_chunks()
            at = pc.index_in(of_shard, value_set=pa.array(ids, pa.string()))
            rows = np.flatnonzero(pc.is_valid(at).to_numpy(zero_copy_only=False))
            place = at.drop_null().to_numpy()
            seen[place] = True
            found.append(np.stack([place, position_N[start + rows]]))
            start += len(of_shard)
        if name == "keep" and not seen.all():
            missing = ids[int(np.argmin(seen))]
            raise GradsiftError(
                f"the list of rows to keep names {missing!r}, which is no row that can be selected "
                f"({int((~seen).sum())} such in all)."
            )
        place, rows = np.concatenate(found, axis=1)
        return rows[np.lexsort((rows, place))]

    def gains(self, task: Task) -> None:
        """Say what a part has to gain, where that is asked for and there are several."""
        signal, graph = task.input("signal", 0), graph_from(task, task.index)
        task.write(floor=graph.floor_N)
        if self.config.strategy != GRADS or task.step.count == 1:
            return
        start = rows_of_part(layout_of(task), task.index).start
        found = part_gains(
            signal["score"][start : start + len(graph)],
            graph,
            within(graph, start),
            start,
            len(signal["score"]),
            self._with_a_choice(signal),
            self.config.similarity_threshold,
        )
        task.write(
            diversity=found.diversity_S,
            costs=found.costs_S,
            numbers=np.array([found.similarity, found.near]),
            nearest=found.profile.nearest_J,
            beyond=found.profile.beyond_J,
        )

    def scale(self, task: Task) -> None:
        """Bring the terms to one scale."""
        outputs = task.inputs("gains")
        floor_N = np.concatenate([out["floor"] for out in outputs])
        scale = Terms()
        if self.config.strategy == GRADS:
            scale = self._possible(task, outputs, floor_N).scale
        task.write(scale=np.array(astuple(scale)), floor=floor_N)

    def _possible(self, task: Task, outputs: list[Output], floor_N: np.ndarray) -> PossibleGains:
        signal = task.input("signal", 0)
        score_N, constraints = signal["score"], self._with_a_choice(signal)
        if len(outputs) == 1:
            graph, threshold = graph_from(task, 0), self.config.similarity_threshold
            whole = Objective(score_N, graph, similarity_threshold=threshold)
            return possible_gains(whole, constraints)
        parts = [
            PartGains(
                out["diversity"],
                out["costs"],
                *out["numbers"].tolist(),
                CoverageProfile(out["nearest"], out["beyond"]),
            )
            for out in outputs
        ]
        return joined_gains(parts, score_N, float(floor_N.mean(dtype=np.float64)), constraints)

    def first(self, task: Task) -> None:
        """Order the rows of a part."""
        signal, graph = task.input("signal", 0), graph_from(task, task.index)
        rows = rows_of_part(layout_of(task), task.index)
        if self.draws:
            nothing = np.empty(0)
            task.write(rows=nothing.astype(np.int64), rates=nothing, costs=nothing)
            return
        bordered = with_border(graph, rows.start, task.input("scale", 0)["floor"])
        objective, constraints = self._objective(task, signal), self._constraints(signal)
        found = first_round(objective, bordered, rows, constraints)
        task.write(rows=found.rows_S, rates=found.rates_S, costs=found.costs_S)

    def choose(self, task: Task) -> None:
        """Choose from what the parts are best in; from all rows if that is not enough."""
        signal = task.input("signal", 0)
        constraints, n = self._constraints(signal), len(signal["score"])
        if self.draws:
            order_N = np.random.default_rng(self.config.seed).permutation(n)
            order_S = constraints.builder().take_in_order(order_N.tolist())
            gains = Gains(*np.zeros((3, n)))
        else:
            parts = [
                Ordered(out["rows"], out["rates"], out["costs"]) for out in task.inputs("first")
            ]
            union_N = union_of(parts, constraints)
            if self.budget.kind == "auto":
                union_N[:] = True
            order_S, gains = self._second(task, signal, union_N, constraints)
            by_tokens = constraints.budget.kind == "tokens"
            spent = constraints.costs_N[order_S].sum() if by_tokens else len(order_S)
            is_short = len(order_S) == union_N.sum() and spent < constraints.budget.amount
            if is_short and not union_N.all():
                order_S, gains = self._second(task, signal, np.ones(n, bool), constraints)
            if self.budget.kind == "auto":
                n_kept = len(constraints.keep)
                curve_S = gains.marginal_N[order_S]
                order_S = order_S[: n_kept + elbow(curve_S[n_kept:])]
        kept_N = np.zeros(n, dtype=bool)
        kept_N[order_S] = True
        layout = layout_of(task)
        graphs = (
            (rows_of_part(layout, part), graph_from(task, part))
            for part in range(len(layout.starts_P1) - 1)
        )
        task.write(
            order=order_S,
            gradient=gains.gradient_N[order_S],
            diversity=gains.diversity_N[order_S],
            penalty=gains.penalty_N[order_S],
            covered=covered_by(graphs, kept_N),
        )

    def _second(
        self, task: Task, signal: Output, union_N: np.ndarray, constraints: Constraints
    ) -> tuple[np.ndarray, Gains]:
        graph = joined_graph(task, union_N)
        try:
            return second_round(self._objective(task, signal, graph), union_N, constraints)
        finally:
            for name in ("edges", "edge-cosines"):
                (task.folder / f"{name}.npy").unlink()

    def decide(self, task: Task) -> None:
        """Say what each row of a part adds."""
        chosen = task.input("chosen", 0)
        gains = chosen["gradient"], chosen["diversity"], chosen["penalty"]
        objective = self._objective(task, task.input("signal", 0))
        decide(task, objective, chosen["order"], gains, chosen["covered"])

    def rows(self, task: Task) -> None:
        """Write the rows of a shard that are kept, and a decision on each."""
        signal, order_S = task.input("signal", 0), task.input("chosen", 0)["order"]
        constraints = self._constraints(signal)
        full = {}
        if constraints.group_N is not None:
            taken_G = np.bincount(constraints.group_N[order_S])
            caps_G = constraints.caps_G or {}
            full = {g: cap for g, cap in caps_G.items() if g < len(taken_G) and taken_G[g] >= cap}
        run = self.runs[task.index]()
        # What is written are its rows.
        run.require_unchanged_rows()
        write_decisions(task, run, self.config, constraints, full)

    def _with_a_choice(self, signal: Output) -> Constraints:
        return with_a_choice(self._constraints(signal), half=self.budget.kind == "auto")

    def _constraints(self, signal: Output) -> Constraints:
        costs_N, group_N = signal["costs"], signal["group"]
        caps_G = {int(group): int(cap) for group, cap in signal["caps"].tolist()}
        constraints = Constraints(
            costs_N,
            self.budget.resolve(len(costs_N), int(costs_N.sum())),
            tuple(signal["keep"].tolist()),
            group_N if len(group_N) else None,
            caps_G or None,
            signal["drop"],
        )
        if self.budget.kind != "auto":
            return constraints
        amount = constraints.capacity()
        return replace(constraints, budget=replace(constraints.budget, amount=amount))

    def _objective(self, task: Task, signal: Output, graph: Neighbours | None = None) -> Objective:
        config, only = self.config, self.config.strategy == COVERAGE
        return Objective(
            signal["score"],
            cast("Neighbours", graph),
            0.0 if only else config.alpha,
            1.0 if only else config.beta,
            0.0 if only else config.gamma,
            config.similarity_threshold,
            Terms(*task.input("scale", 0)["scale"].tolist()),
        )


def joined_graph(task: Task, union_N: np.ndarray) -> Neighbours:
    """Return the graph of the whole pool, but for edges outside the union; edges on the disk."""
    layout = layout_of(task)
    parts = range(len(layout.starts_P1) - 1)
    counts_N = np.empty(len(union_N), dtype=np.int64)
    floor_N = np.empty(len(union_N), dtype=np.float32)
    for part in parts:
        rows, graph = rows_of_part(layout, part), graph_from(task, part)
        kept = edges_with(graph, rows.start, union_N)
        counts_N[rows], floor_N[rows] = np.diff(kept.offsets), graph.floor_N
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    rows_E = task.create("edges", (int(offsets[-1]),), np.int32)
    cosines_E = task.create("edge-cosines", (int(offsets[-1]),), np.float32)
    for part in parts:
        rows = rows_of_part(layout, part)
        kept = edges_with(graph_from(task, part), rows.start, union_N)
        here = slice(offsets[rows.start], offsets[rows.stop])
        rows_E[here], cosines_E[here] = kept.rows_E, kept.cosines_E
    return Neighbours(offsets, rows_E, cosines_E, floor_N)


def pool_of(shards: list[Output]) -> Candidates:
    """Join the columns of all shards; ids are the numbers of the rows."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([shard[name] for shard in shards])

    statistics = {}
    for layer in LAYERS:
        names = [f"statistic-{layer}-{name}" for name in STATISTICS]
        if (shards[0].folder / f"{names[0]}.npy").exists():
            statistics[layer] = dict(zip(STATISTICS, map(joined, names), strict=True))
    numbers = {name: joined(name) for name in _NUMBERS}
    # A range is as good as sorted ids, and takes no room.
    ids = cast("list[str]", range(len(numbers["step"])))
    return Candidates(ids=ids, statistics=statistics, **numbers)
