"""Strategies that compare the pool with other rows, captured with the same model.

Shapes: N instances of the pool, M rows of the reference, E entries of a gradient sketch.
"""

from __future__ import annotations

import numpy as np

from gradsift.selection.content import fit_content
from gradsift.selection.neighbours import blocks
from gradsift.selection.strategies.base import Choice, Need, Task, joint_sketches, ranked, unit


def ogs_static(task: Task) -> Choice:
    """Take the rows whose gradient conflicts least with what general rows ask for.

    The anchor direction a is the mean of the anchor rows' sketches, each of length 1; conflict_i =
    max(0, −cos(z_i, a)). Rows without conflict are alike in that, so the measure goes on beyond 0:
    it is cos(z_i, a), high first. OGS, Zhang et al., arXiv 2602.06359, measured once, where theirs
    follows the training with a small navigator model and a learnt policy.

    Args:
        task: The task.

    Returns:
        The choice; the measure is the cosine with the anchor, negative for conflict.
    """
    return _by_cosine(task, Need.ANCHOR, "gradient cosine with the anchor")


def target_similarity(task: Task) -> Choice:
    """Take the rows whose gradient is most like that of a target set: Σ_m cos(z_i, z_m), mean.

    Like LESS (Xia et al., arXiv 2402.04333) and called otherwise, since it is not LESS: sketches of
    the captured layers' gradients at one state of the model, where theirs are LoRA gradients in
    Adam's geometry, summed over checkpoints.

    Args:
        task: The task.

    Returns:
        The choice; the measure is the cosine with the mean direction of the target.
    """
    return _by_cosine(task, Need.TARGET, "gradient cosine with the target")


def rds(task: Task) -> Choice:
    """Take the rows whose hidden states are most like those of a target set, target by target.

    The targets take turns; each takes the row with the largest cosine to it that is not taken yet.
    RDS+, Ivison et al., arXiv 2503.01807, with weighted mean pooling there and plain mean pooling
    of the last hidden state here. Both are put on the scale of the pool.

    Args:
        task: The task.

    Returns:
        The choice; the measure is the largest cosine with a target row.
    """
    pool, target = task.pool, task.references[Need.TARGET]
    scale = fit_content(pool.features_ND, pool.step)
    target_MD = unit(scale.vectors(target.features_MD, target.step_M))
    pool_ND = unit(scale.vectors(pool.features_ND, pool.step))
    cosine_MN = target_MD @ pool_ND.T
    purse = task.terms.purse()
    turns = [iter(np.argsort(-cosine_N, kind="stable").tolist()) for cosine_N in cosine_MN]
    waiting = list(range(len(target_MD)))
    while waiting and purse.left >= 1:
        still = []
        for target in waiting:
            row = next((row for row in turns[target] if purse.fits(row)), None)
            if row is not None:
                purse.take(row)
                still.append(target)
        waiting = still
    return Choice(purse.taken(), None, "cosine with a target row", cosine_MN.max(axis=0))


def _by_cosine(task: Task, need: Need, measure: str) -> Choice:
    reference = task.references[need]
    shared = sorted(set(task.pool.sketches) & set(reference.sketches))
    direction_E = unit(joint_sketches({k: reference.sketches[k] for k in shared})).mean(axis=0)
    norm = np.linalg.norm(direction_E)
    sketch_NE = joint_sketches({k: task.pool.sketches[k] for k in shared})
    cosine_N = np.empty(len(sketch_NE))
    for rows in blocks(len(sketch_NE), sketch_NE.shape[1]):
        cosine_N[rows] = unit(sketch_NE[rows]) @ (direction_E / norm if norm > 0 else direction_E)
    return ranked(task, cosine_N, measure)
