"""Strategies in which what was taken already decides what is taken next.

Shapes: N instances, M rows of a target set, E entries of a gradient sketch or of unit features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradsift.selection.candidates import Need
from gradsift.selection.content import content_vectors, fit_content, k_means_clusters
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import find_neighbours, unit_rows
from gradsift.selection.objective import Objective, Terms
from gradsift.selection.strategies.base import Choice, Task, joint_sketches, ranked, unit

# Weight of SPICE's conflict against its information gain, in nats.
_CONFLICT_WEIGHT = 1.0


def grads(task: Task) -> Choice:
    """Maximise gradient score, content diversity and similarity reduction together, greedily.

    F(S) as in `Objective`. GrADS, arXiv 2511.08620, in our reading of it.
    """
    return Choice(*lazy_greedy(task.objective, task.constraints))


def facility_location(task: Task) -> Choice:
    """Represent the content of the pool: maximise FL(S) = Σ_u max_{i∈S} cosine_ui, greedily.

    The neighbour graph holds near rows only; pairs that are not in it count as 0.
    """
    objective = replace(task.objective, alpha=0.0, beta=1.0, gamma=0.0, scale=Terms())
    return Choice(*lazy_greedy(objective, task.constraints))


def gradient_facility_location(task: Task) -> Choice:
    """Represent the gradients of the pool: facility location on gradient sketches.

    CRAIG (Mirzasoleiman et al., arXiv 1906.01827) represents gradients by facility location over
    their distances; ours goes by the cosines of sketches of the captured layers' gradients.
    """
    neighbours = find_neighbours(joint_sketches(task.pool.sketches))
    n = len(task.pool)
    objective = Objective(np.zeros(n), neighbours, alpha=0.0, beta=1.0, gamma=0.0)
    order_S, gains = lazy_greedy(objective, task.constraints)
    return Choice(order_S, gains, "share of the pool's gradients that it adds", gains.marginal_N)


def k_center(task: Task) -> Choice:
    """Take the row farthest from what was taken, again and again: max_i min_{j∈S} ‖x_i − x_j‖.

    x are the content vectors, of length 1; the first row is drawn with the seed.
    Sener & Savarese, arXiv 1708.00489 (greedy k-center).
    """
    unit_NE = _unit_content(task)
    builder = task.constraints.builder()
    distance_N = np.full(len(unit_NE), np.inf)
    value_N = np.full(len(unit_NE), np.nan)

    def spread(row: int) -> None:
        squared_N = np.maximum(2 - 2 * (unit_NE @ unit_NE[row]), 0)
        np.minimum(distance_N, np.sqrt(squared_N), out=distance_N)

    for row in builder.order:
        spread(row)
    if not builder.order:
        fitting = np.flatnonzero(builder.fitting())
        first = int(np.random.default_rng(task.seed).choice(fitting))
        builder.take(first)
        spread(first)
    while (fits_N := builder.fitting()).any():
        row = int(np.argmax(np.where(fits_N, distance_N, -np.inf)))
        value_N[row] = distance_N[row]
        builder.take(row)
        spread(row)
    value_N[~builder.selected_N] = distance_N[~builder.selected_N]
    return Choice(builder.taken(), None, "distance to the rows taken before", value_N)


def k_means(task: Task) -> Choice:
    """Give each cluster of content its share, and take the best gradient scores of each.

    k-means with √(N/2) clusters on the content vectors (of length 1). Rows are taken by
    (rank within the cluster − ½) / size of the cluster, so that every cluster gives the same share
    of its rows under any budget. After kMQ ("Diversify and Conquer", Yu et al., arXiv 2409.11378),
    which draws from the clusters by quality, at random.
    """
    n = len(task.pool)
    n_clusters = max(1, round((n / 2) ** 0.5))
    cluster_N = k_means_clusters(_unit_content(task), n_clusters, seed=task.seed + 1)
    order_N = np.lexsort((-task.signal.score_N, cluster_N))
    sizes = np.bincount(cluster_N, minlength=n_clusters)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place_N = np.empty(n)
    place_N[order_N] = np.arange(n) - starts[cluster_N[order_N]]
    share_N = (place_N + 0.5) / sizes[cluster_N]
    return ranked(task, share_N, "place in its cluster (0 best, 1 last)", low_first=True)


def deita(task: Task) -> Choice:
    """Go down the gradient score and leave out what repeats a row taken before.

    A row is left out if its cosine with one that was taken is above the similarity threshold; if
    the budget is not spent then, the rows left out follow in the same order. The redundancy filter
    of DEITA, Liu et al., arXiv 2312.15685, whose quality comes from scorers trained on a judge's
    marks; ours is the gradient score.
    """
    builder, threshold = task.constraints.builder(), task.objective.similarity_threshold
    repeats_N = np.zeros(len(task.pool), dtype=bool)

    def mark(row: int) -> None:
        rows, cosines = task.neighbours.of(row)
        repeats_N[rows[cosines > threshold]] = True

    for row in builder.order:
        mark(row)
    order_N = np.argsort(-task.signal.score_N, kind="stable").tolist()
    for row in order_N:
        if not repeats_N[row] and builder.fits(row):
            builder.take(row)
            mark(row)
    order_S = builder.take_in_order(order_N)
    return Choice(order_S, None, "gradient score", task.signal.score_N)


def rds(task: Task) -> Choice:
    """Take the rows whose hidden states are most like those of a target set, target by target.

    The targets take turns; each takes the row with the largest cosine to it that is not taken yet.
    RDS+, Ivison et al., arXiv 2503.01807, with weighted mean pooling there and plain mean pooling
    of the last hidden state here. Both are put on the scale of the pool.
    """
    pool, reference = task.pool, task.references[Need.TARGET]
    scale = fit_content(pool.features_ND, pool.step)
    target_MD = unit(scale.vectors(reference.features_MD, reference.step_M))
    pool_ND = unit(scale.vectors(pool.features_ND, pool.step))
    return _in_turns(task, target_MD @ pool_ND.T, "cosine with a target row")


def target_turns(task: Task) -> Choice:
    """Take the rows whose gradients are most like those of target tasks, task by task.

    A task is a source of the target rows (its direction is the mean of its rows' sketches, each of
    length 1), or each target row where these name no source. The tasks take turns; each takes the
    row with the largest cosine to it that is not taken yet. LESS (Xia et al., arXiv 2402.04333)
    takes the largest over its tasks of the same cosine; it and ours differ in the gradients as
    `target-similarity` says.
    """
    reference = task.references[Need.TARGET]
    shared = sorted(set(task.pool.sketches) & set(reference.sketches))
    target_ME = unit(joint_sketches({layer: reference.sketches[layer] for layer in shared}))
    if reference.source is not None:
        task_M = np.unique(reference.source, return_inverse=True)[1]
        target_ME = unit(np.stack([target_ME[task_M == t].mean(axis=0) for t in np.unique(task_M)]))
    pool_NE = unit(joint_sketches({layer: task.pool.sketches[layer] for layer in shared}))
    return _in_turns(task, target_ME @ pool_NE.T, "gradient cosine with a target task")


def fisher(task: Task) -> Choice:
    """Maximise the information of the gradients: log det(I + Σ_{i∈S} z_i z_iᵀ), greedily.

    z_i are the gradient sketches of the captured layers, scaled so that ‖z‖² is 1 on average. The
    criterion that SPICE (Chang et al., arXiv 2601.23155) starts from.
    """
    return _information(task, 0.0)


def spice(task: Task) -> Choice:
    """Maximise the information of the gradients less their conflict, greedily.

    A row's worth is log(1 + z_iᵀ A⁻¹ z_i) − max(0, −cos(z_i, Σ_{j∈S} z_j)) with
    A = I + Σ_{j∈S} z_j z_jᵀ. SPICE, Chang et al., arXiv 2601.23155; theirs uses gradients of all
    trained weights of a proxy model and stops early, ours sketches of the captured layers and the
    budget.
    """
    return _information(task, _CONFLICT_WEIGHT)


def _in_turns(task: Task, cosine_MN: np.ndarray, measure: str) -> Choice:
    """Let targets take turns: each takes the row most like it that is not taken yet."""
    builder = task.constraints.builder()
    turns = [iter(np.argsort(-cosine_N, kind="stable").tolist()) for cosine_N in cosine_MN]
    while turns and builder.left >= 1:
        still = []
        for turn in turns:
            row = next((row for row in turn if builder.fits(row)), None)
            if row is not None:
                builder.take(row)
                still.append(turn)
        turns = still
    return Choice(builder.taken(), None, measure, cosine_MN.max(axis=0))


def _unit_content(task: Task) -> np.ndarray:
    return unit_rows(content_vectors(task.pool.features_ND, task.pool.step))


def _information(task: Task, conflict_weight: float) -> Choice:
    z_NE = joint_sketches(task.pool.sketches).astype(np.float64)
    mean_square = np.mean(np.sum(z_NE**2, axis=1))
    z_NE /= np.sqrt(mean_square) if mean_square > 0 else 1
    unit_NE = unit(z_NE)
    builder = task.constraints.builder()
    value_N = np.full(len(z_NE), np.nan)
    inverse_EE = np.eye(z_NE.shape[1])
    quadratic_N = np.sum(z_NE**2, axis=1)
    sum_E = np.zeros(z_NE.shape[1])

    def update(row: int) -> None:
        nonlocal inverse_EE, sum_E
        along_E = inverse_EE @ z_NE[row]
        scale = 1 + z_NE[row] @ along_E
        inverse_EE -= np.outer(along_E, along_E) / scale
        np.maximum(quadratic_N - (z_NE @ along_E) ** 2 / scale, 0, out=quadratic_N)
        sum_E += z_NE[row]

    def worth() -> np.ndarray:
        gain_N = np.log1p(quadratic_N)
        norm = np.linalg.norm(sum_E)
        if conflict_weight == 0 or norm == 0:
            return gain_N
        return gain_N - conflict_weight * np.maximum(0, -(unit_NE @ (sum_E / norm)))

    for row in builder.order:
        update(row)
    worth_N = worth()
    while (fits_N := builder.fitting()).any():
        row = int(np.argmax(np.where(fits_N, worth_N / builder.cost_N, -np.inf)))
        value_N[row] = worth_N[row]
        builder.take(row)
        update(row)
        worth_N = worth()
    value_N[~builder.selected_N] = worth_N[~builder.selected_N]
    return Choice(builder.taken(), None, "information gain", value_N)
