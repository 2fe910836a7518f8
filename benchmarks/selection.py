"""How long selection takes and what it holds, how near it is to exact, and beside other libraries.

Features imitate those of a real run: its content features along 64 principal directions, drawn
again with so much noise that two draws of one row lie as far apart as a row and its nearest
neighbour do in the run (median). Each measurement is a process of its own, so that its peak memory
is its own.

Usage:
    python benchmarks/selection.py growth RUN [--rows 10000 100000 1000000]
    python benchmarks/selection.py exact RUN [--rows 10000]
    python benchmarks/selection.py peers RUN [--rows 10000]     # needs submodlib-py, scikit-learn
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from gradsift.selection.constraints import Constraints, ResolvedBudget
from gradsift.selection.content import content_vectors
from gradsift.selection.density import estimate_density
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import find_neighbours, unit_rows
from gradsift.selection.objective import Objective, Terms, coverage
from gradsift.selection.scores import SCORES, ScoreInput, gradient_signal
from gradsift.store.reader import read_store

WIDTH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("growth", "exact", "peers"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--modes", nargs="+", default=["dense", "sparse"], help="of peers")
    arguments = parser.parse_args()
    default = [10_000, 100_000, 1_000_000] if arguments.what == "growth" else [10_000]
    measure = {"growth": growth, "exact": exact, "peers": peers}[arguments.what]
    for n in arguments.rows or default:
        for share in (0.05, 0.5):
            more = (arguments.modes,) if measure is peers else ()
            print(json.dumps(in_a_process(measure, arguments.run, n, share, *more)), flush=True)


def in_a_process(measure, *arguments):
    # A fresh process: what its parent held does not count.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measured, (measure, *arguments))


def measured(measure, *arguments):
    found = measure(*arguments)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "n": arguments[1],
        "share": arguments[2],
        **found,
        "peak_gb": int(peak.split()[1]) / 1e6,
    }


def imitated(run, n):
    """Content features of n rows, and norms of both layers that go with them."""
    store = read_store(run)
    x = content_vectors(store.content_ND, store.step).astype(np.float64)
    directions = np.linalg.svd(x, full_matrices=False)[2][:WIDTH]
    x = x @ directions.T
    norms = np.log([store.statistics[layer]["l2_norm"] for layer in store.layers]).T
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    spread = np.median(distance.min(axis=1)) / np.sqrt(2 * x.shape[1])
    generator = np.random.default_rng(0)
    rows = generator.integers(len(x), size=n)
    features = np.empty((n, x.shape[1]), dtype=np.float32)
    for start in range(0, n, 50_000):
        part = rows[start : start + 50_000]
        noise = generator.normal(size=(len(part), x.shape[1]))
        features[start : start + 50_000] = x[part] + spread * noise
    log_norms = norms[rows] + 0.1 * generator.normal(size=(n, norms.shape[1]))
    values = {layer: {"l2_norm": np.exp(log_norms[:, at])} for at, layer in enumerate(store.layers)}
    return features, values


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def scored(values):
    signal, magnitude = gradient_signal(values, layers=tuple(values))
    density = estimate_density(signal)
    return SCORES["density"].function(ScoreInput(magnitude, density.log_N)), density


def growth(run, n, share):
    features, values = imitated(run, n)
    graph, neighbour_seconds = timed(lambda: find_neighbours(features))
    (score, density), score_seconds = timed(lambda: scored(values))
    rows = int(share * n)
    constraints = Constraints(np.ones(n), ResolvedBudget("rows", rows, float(rows)))
    _, greedy_seconds = timed(
        lambda: lazy_greedy(Objective(score, graph, scale=Terms(rows, 1.0, rows)), constraints)
    )
    return {
        "edges_per_row": len(graph.rows_E) / n,
        "density": density.method,
        "density_error": density.error,
        "neighbours_s": neighbour_seconds,
        "score_s": score_seconds,
        "greedy_s": greedy_seconds,
        "total_s": neighbour_seconds + score_seconds + greedy_seconds,
    }


def exact(run, n, share):
    """F of what greedy on near neighbours chooses, by all pairs, against greedy on all pairs."""
    features, values = imitated(run, n)
    score, _ = scored(values)
    rows = int(share * n)
    constraints = Constraints(np.ones(n), ResolvedBudget("rows", rows, float(rows)))
    whole = find_neighbours(features, complete_rows=n)
    objective = Objective(score, whole, scale=Terms(rows, 1.0, rows))
    (best, _), exact_seconds = timed(lambda: lazy_greedy(objective, constraints))
    found = {"exact_greedy_s": exact_seconds, "exact": objective.value(best)}
    drawn = np.random.default_rng(0).permutation(n)[:rows]
    found["random / exact"] = objective.value(drawn) / found["exact"]
    for name, graph in {
        "all compared": find_neighbours(features),
        "by lists": find_neighbours(features, exact_rows=0),
    }.items():
        order, _ = lazy_greedy(Objective(score, graph, scale=Terms(rows, 1.0, rows)), constraints)
        found[f"{name} / exact"] = objective.value(order) / found["exact"]
        found[f"{name} / exact, coverage"] = coverage(whole, order) / coverage(whole, best)
    return found


def peers(run, n, share, modes):
    import submodlib

    features, _ = imitated(run, n)
    rows = int(share * n)
    constraints = Constraints(np.ones(n), ResolvedBudget("rows", rows, float(rows)))
    found = {}
    for mode in modes:
        complete_rows = n if mode == "dense" else 0
        graph, seconds = timed(partial(find_neighbours, features, complete_rows=complete_rows))
        # Theirs knows no floor: the same function for both.
        graph = replace(graph, floor_N=np.zeros(n, dtype=np.float32))
        found[f"{mode} graph_s"] = seconds
        matrix = matrix_of(graph, n, mode)
        for name in ("facility location", "graph cut"):
            objective = ours(name, graph, n)
            (order, _), seconds = timed(partial(lazy_greedy, objective, constraints))
            theirs, other_seconds = timed(
                partial(theirs_chooses, submodlib, name, mode, matrix, n, rows)
            )
            found[f"{mode} {name}"] = {
                "ours_s": seconds,
                "submodlib_s": other_seconds,
                "submodlib / ours": other_seconds / seconds,
                "value ours / submodlib": objective.value(order) / objective.value(theirs),
                "same rows": len(set(order.tolist()) & set(theirs.tolist())) / rows,
            }
    found["k-center"] = k_centers(features, rows)
    return found


def matrix_of(graph, n, mode):
    from scipy.sparse import csr_matrix

    parts = (graph.cosines_E.astype(np.float64), graph.rows_E, graph.offsets)
    matrix = csr_matrix(parts, shape=(n, n))
    return matrix.toarray() if mode == "dense" else matrix


def ours(name, graph, n):
    if name == "facility location":
        return Objective(np.zeros(n), graph, alpha=0.0, beta=float(n), gamma=0.0)
    # Σ_{u, i∈S} s_ui − λ Σ_{i,j∈S} s_ij with λ = ½: the diagonal and both orders of a pair count.
    sums = np.add.reduceat(graph.cosines_E.astype(np.float64), graph.offsets[:-1])
    return Objective(sums - 0.5, graph, alpha=1.0, beta=0.0, gamma=1.0, similarity_threshold=0.0)


def theirs_chooses(submodlib, name, mode, matrix, n, rows):
    if mode == "dense":
        options = {"mode": "dense"}
    else:
        options = {"mode": "sparse", "num_neighbors": int(np.diff(matrix.indptr).max())}
    if name == "facility location":
        key = {"sijs": matrix} | ({"separate_rep": False} if mode == "dense" else {})
        function = submodlib.FacilityLocationFunction(n=n, **options, **key)
    else:
        key = {"ggsijs": matrix} | ({"separate_rep": False} if mode == "dense" else {})
        function = submodlib.GraphCutFunction(n=n, lambdaVal=0.5, **options, **key)
    chosen = function.maximize(
        budget=rows,
        optimizer="LazyGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        show_progress=False,
    )
    return np.array([row for row, _ in chosen])


def k_centers(features, rows):
    from sklearn.metrics import pairwise_distances

    unit = unit_rows(features)

    def plain():
        distance = pairwise_distances(unit, metric="euclidean")
        order, least = [0], distance[0].copy()
        while len(order) < rows:
            order.append(int(np.argmax(least)))
            np.minimum(least, distance[order[-1]], out=least)
        return order, least.max()

    def without_a_matrix():
        order, least = [0], np.linalg.norm(unit - unit[0], axis=1)
        while len(order) < rows:
            row = int(np.argmax(least))
            order.append(row)
            squared = np.maximum(2 - 2 * (unit @ unit[row]), 0)
            np.minimum(least, np.sqrt(squared), out=least)
        return order, least.max()

    (_, radius), seconds = timed(without_a_matrix)
    (_, other_radius), other_seconds = timed(plain)
    return {
        "ours_s": seconds,
        "sklearn_s": other_seconds,
        "sklearn / ours": other_seconds / seconds,
        "radius ours / sklearn": float(radius / other_radius),
    }


if __name__ == "__main__":
    main()
