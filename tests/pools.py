"""Pools made up for the tests of selection, and the objective from its definition."""

from dataclasses import replace

import numpy as np

from gradsift.selection.candidates import Candidates, Context, Need, Reference
from gradsift.selection.content import content_vectors, find_clusters
from gradsift.selection.neighbours import find_neighbours
from gradsift.store.tables import LOSS_NAMES
from gradsift.terms import LAYERS, STATISTICS

N = 60


def make_pool(n=N, seed=0, sources=("book", "forum", "forum")):
    generator = np.random.default_rng(seed)
    statistics = {
        layer: {name: np.exp(generator.normal(size=n)) for name in STATISTICS} for layer in LAYERS
    }
    centres = generator.normal(size=(12, 6))
    features = centres[generator.integers(12, size=n)] + 0.4 * generator.normal(size=(n, 6))
    n_tokens = generator.integers(10, 90, size=n)
    losses = {name: 1 + generator.random(n) for name in LOSS_NAMES}
    return Candidates(
        ids=[f"row-{i:03d}" for i in range(n)],
        statistics=statistics,
        n_tokens=n_tokens,
        n_response_tokens=n_tokens // 2,
        step=np.arange(n) // 4,
        loss=generator.random(n),
        el2n=generator.random(n),
        source=[sources[i % len(sources)] for i in range(n)],
        language=["en"] * n,
        features_ND=features.astype(np.float32),
        sketches={layer: generator.normal(size=(n, 9)).astype(np.float32) for layer in LAYERS},
        reference_losses=losses,
        cluster_N=generator.integers(3, size=n),
    )


def context_for(pool, **changes):
    generator = np.random.default_rng(11)
    references = {
        need: Reference(
            {layer: generator.normal(size=(5, 9)) for layer in LAYERS},
            generator.normal(size=(5, 6)).astype(np.float32),
            np.zeros(5),
        )
        for need in (Need.ANCHOR, Need.TARGET)
    }
    vectors = content_vectors(pool.features_ND, pool.step)
    context = Context(find_neighbours(vectors), find_clusters(vectors), references)
    return replace(context, **changes)


def copied(pool, first, second):
    """The pool with row `second` an exact copy of row `first`, but for the id."""
    rows = np.arange(len(pool))
    rows[second] = first
    names = ("features_ND", "n_tokens", "n_response_tokens", "step", "loss", "el2n", "cluster_N")
    arrays = {name: np.asarray(getattr(pool, name))[rows] for name in names}
    by_layer = {
        layer: {name: array[rows] for name, array in by_name.items()}
        for layer, by_name in pool.statistics.items()
    }
    sketches = {layer: sketch[rows] for layer, sketch in pool.sketches.items()}
    return replace(pool, statistics=by_layer, sketches=sketches, **arrays)


def moved_pool(pool, order):
    """The same rows in another order, under ids of that order."""
    names = ("features_ND", "n_tokens", "n_response_tokens", "step", "loss", "el2n")
    arrays = {name: np.asarray(getattr(pool, name))[order] for name in names}
    by_layer = {
        layer: {name: array[order] for name, array in by_name.items()}
        for layer, by_name in pool.statistics.items()
    }
    losses = {name: loss[order] for name, loss in pool.reference_losses.items()}
    return replace(pool, statistics=by_layer, reference_losses=losses, sketches={}, **arrays)


def slow_cosines(x):
    """Cosines, one pair at a time."""
    x = np.asarray(x, dtype=np.float64)
    norms = [np.sqrt(row @ row) for row in x]
    every = range(len(x))
    return np.array([[x[i] @ x[j] / (norms[i] * norms[j]) for j in every] for i in every])


def slow_value(x, score, rows, *, alpha, beta, gamma, similarity_threshold, scale):
    """F from its definition, in plain loops."""
    if len(rows) == 0:
        return 0.0
    cosine, n, tau = slow_cosines(x), len(x), similarity_threshold
    covered = sum(max(max(0.0, cosine[u, i]) for i in rows) for u in range(n))
    pairs = [(i, j) for i in rows for j in rows if i < j]
    near = sum(max(0.0, (cosine[i, j] - tau) / (1 - tau)) for i, j in pairs)
    gradient = sum(score[i] for i in rows)
    return (
        alpha * gradient / scale.gradient
        + beta * covered / n / scale.diversity
        - gamma * near / scale.similarity
    )
