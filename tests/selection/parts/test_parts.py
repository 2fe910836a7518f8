"""Parts of a pool against the whole of it: neighbours, graph, gains, and what two rounds choose."""

from dataclasses import replace

import numpy as np
import pytest

from gradsift.selection.constraints import Constraints, ResolvedBudget
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import Neighbours, find_neighbours, unit_rows
from gradsift.selection.objective import Objective, nearest_selected
from gradsift.selection.parts import cells as cells_module
from gradsift.selection.parts.cells import fit_cells, lay_out, part_of_cells
from gradsift.selection.parts.greedy import (
    edges_with,
    first_round,
    joined_gains,
    part_gains,
    second_round,
    union_of,
)
from gradsift.selection.parts.near import (
    NearestFinder,
    Rows,
    edges_of,
    floors,
    graph_of,
    with_border,
    within,
)
from gradsift.selection.possible_gains import possible_gains
from gradsift.sharding.decision_steps import covered_by, gains_at_the_end, nearest_kept

N, K = 600, 12


class World:
    """Rows in clumps, in the order of parts, and the graph of each part."""

    def __init__(self, n_parts, monkeypatch, visited=None):
        monkeypatch.setattr(cells_module, "EXACT_ROWS", 10)
        if visited:
            monkeypatch.setattr(cells_module, "VISITED_LISTS", visited)
        draw = np.random.default_rng(0)
        centres = draw.normal(size=(30, 16))
        unit = unit_rows(centres[draw.integers(30, size=N)] + 0.4 * draw.normal(size=(N, 16)))
        cells = fit_cells(unit, N)
        visited_NV = cells.visited(cells.narrow(unit))
        counts = np.bincount(visited_NV[:, 0], minlength=len(cells.centroids_CW))
        self.layout = lay_out(counts[None], cells.centroids_CW, n_parts)
        order = np.lexsort((np.arange(N), self.layout.cell_starts_C[visited_NV[:, 0]]))
        self.unit, visited_NV = unit[order], visited_NV[order]
        starts = self.layout.starts_P1
        self.parts = [slice(starts[p], starts[p + 1]) for p in range(n_parts)]
        near = []
        for mine in self.parts:
            finder = NearestFinder(self._rows(mine, visited_NV), visited_NV[mine], K)
            for other in self.parts:
                finder.look_among(self._rows(other, visited_NV))
            near.append(finder.found())
        edges = [
            edges_of(np.arange(p.start, p.stop), *n) for p, n in zip(self.parts, near, strict=True)
        ]
        self.graphs = []
        for number, part in enumerate(self.parts):
            back = [
                tuple(one[(e[1] >= part.start) & (e[1] < part.stop)] for one in e) for e in edges
            ]
            back = tuple(np.concatenate(columns) for columns in zip(*back, strict=True))
            floor = floors(near[number][1])
            self.graphs.append(graph_of(part.start, floor, edges[number], back))
        # Levels of the score differ between clumps, as they do between subjects.
        self.score = np.clip(0.5 + 0.2 * (self.unit @ draw.normal(size=16)), 0, 1)

    def _rows(self, part, visited_NV):
        unit = np.ascontiguousarray(self.unit[part])
        return Rows(np.arange(part.start, part.stop), visited_NV[part, 0], unit, unit)

    @property
    def whole(self):
        counts = np.concatenate([np.diff(graph.offsets) for graph in self.graphs])
        return Neighbours(
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([graph.rows_E for graph in self.graphs]),
            np.concatenate([graph.cosines_E for graph in self.graphs]),
            np.concatenate([graph.floor_N for graph in self.graphs]),
        )

    def chosen(self, constraints):
        """What two rounds choose, and the objective."""
        base = Objective(self.score, self.whole)
        pairs = list(zip(self.parts, self.graphs, strict=True))
        gains = [
            part_gains(
                self.score[part], graph, within(graph, part.start), part.start, N, constraints, 0.8
            )
            for part, graph in pairs
        ]
        floor = float(base.neighbours.floor_N.mean(dtype=np.float64))
        scale = joined_gains(gains, self.score, floor, constraints).scale
        objective = replace(base, scale=scale)
        floor_N = base.neighbours.floor_N
        orders = [
            first_round(objective, with_border(graph, part.start, floor_N), part, constraints)
            for part, graph in pairs
        ]
        union = union_of(orders, constraints)
        kept = [edges_with(graph, part.start, union) for part, graph in pairs]
        joined = Neighbours(
            np.concatenate([[0], np.cumsum(np.concatenate([np.diff(g.offsets) for g in kept]))]),
            np.concatenate([graph.rows_E for graph in kept]),
            np.concatenate([graph.cosines_E for graph in kept]),
            floor_N,
        )
        return second_round(replace(objective, neighbours=joined), union, constraints), objective


def rows_budget(n, **more):
    return Constraints(np.ones(N, dtype=np.int64), ResolvedBudget("rows", n, float(n)), **more)


@pytest.mark.parametrize("n_parts", [1, 3, 7])
def test_the_graph_of_all_parts_is_that_of_the_whole(monkeypatch, n_parts):
    world = World(n_parts, monkeypatch, visited=1000)
    expected = find_neighbours(world.unit, n_neighbours=K, complete_rows=0)
    found = world.whole
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.rows_E, expected.rows_E)
    np.testing.assert_allclose(found.cosines_E, expected.cosines_E, atol=2e-6)
    np.testing.assert_allclose(found.floor_N, expected.floor_N, atol=2e-6)


def test_few_visited_cells_find_most_neighbours(monkeypatch):
    exact = World(1, monkeypatch, visited=1000).whole
    found = World(5, monkeypatch).whole
    # Rows stand in other places: compared is how near the neighbours are.
    assert found.cosines_E.sum() / exact.cosines_E.sum() > 0.97


@pytest.mark.parametrize("budget", [12, 60, 240])
def test_two_rounds_come_near_to_greedy_on_the_whole(monkeypatch, budget):
    world, constraints = World(6, monkeypatch), rows_budget(budget)
    (order, _), objective = world.chosen(constraints)
    assert len(set(order.tolist())) == budget
    best, _ = lazy_greedy(objective, constraints)
    drawn = np.random.default_rng(1).permutation(N)[:budget]
    assert objective.value(order) > 0.98 * objective.value(best)
    assert objective.value(drawn) < 0.93 * objective.value(best)


def test_one_part_is_the_whole(monkeypatch):
    world, constraints = World(1, monkeypatch), rows_budget(90)
    (order, gains), objective = world.chosen(constraints)
    best, expected = lazy_greedy(objective, constraints)
    np.testing.assert_array_equal(order, best)
    np.testing.assert_allclose(gains.marginal_N[order], expected.marginal_N[best], rtol=1e-12)
    exact = possible_gains(replace(objective, scale=type(objective.scale)()), constraints)
    assert objective.scale.diversity == pytest.approx(exact.scale.diversity, rel=1e-9)
    assert objective.scale.similarity == pytest.approx(exact.scale.similarity, rel=1e-9)


def test_lists_quotas_and_tokens_hold(monkeypatch):
    world = World(6, monkeypatch)
    group = np.arange(N) % 3
    listed = {"keep": (5, 300), "excluded": np.arange(100, 160)}
    constraints = rows_budget(80, group_N=group, caps_G={0: 7, 1: 40}, **listed)
    (order, _), _ = world.chosen(constraints)
    assert len(order) == 80
    assert order[:2].tolist() == [5, 300]
    assert not set(order.tolist()) & set(range(100, 160))
    assert (group[order] == 0).sum() <= 7
    assert (group[order] == 1).sum() <= 40
    costs = np.random.default_rng(2).integers(5, 90, N)
    tokens = Constraints(costs, ResolvedBudget("tokens", 2000, 2000 / costs.mean()))
    (order, _), objective = world.chosen(tokens)
    assert 1900 < costs[order].sum() <= 2000
    best, _ = lazy_greedy(objective, tokens)
    assert objective.value(order) > 0.97 * objective.value(best)


def test_gains_at_the_end_are_greedys_own(monkeypatch):
    world, constraints = World(4, monkeypatch), rows_budget(60)
    objective = Objective(world.score, world.whole)
    order, expected = lazy_greedy(objective, constraints)
    kept = np.zeros(N, dtype=bool)
    kept[order] = True
    pairs = list(zip(world.parts, world.graphs, strict=True))
    covered = covered_by(pairs, kept)
    nearest, cosine = nearest_selected(objective.neighbours, order)
    for part, graph in pairs:
        found = gains_at_the_end(objective, graph, part, covered, kept)
        others = ~kept[part]
        for name in ("gradient_N", "diversity_N", "penalty_N"):
            values = getattr(found, name)[others]
            np.testing.assert_allclose(values, getattr(expected, name)[part][others], atol=1e-9)
        nearest_R, cosine_R = nearest_kept(graph, part.start, kept)
        np.testing.assert_array_equal(nearest_R, nearest[part])
        np.testing.assert_array_equal(cosine_R, cosine[part])


def test_parts_have_about_as_many_rows_and_hold_alike_ones():
    draw = np.random.default_rng(3)
    counts, points = draw.integers(1, 50, 200), draw.normal(size=(200, 8)).astype(np.float32)
    for n_parts in (1, 2, 5, 16):
        part = part_of_cells(counts, points, n_parts)
        rows = np.bincount(part, weights=counts, minlength=n_parts)
        assert len(rows) == n_parts
        assert rows.max() <= counts.sum() / n_parts + 50
        np.testing.assert_array_equal(part, part_of_cells(counts, points, n_parts))
    spread = sum(points[part == p].var(axis=0).sum() * (part == p).sum() for p in range(16))
    assert spread < 0.8 * points.var(axis=0).sum() * 200
