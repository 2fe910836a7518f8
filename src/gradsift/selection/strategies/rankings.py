"""Strategies that go by one number for each row.

Shapes: N instances of the pool, M rows of a reference, E entries of a gradient sketch.
"""

from __future__ import annotations

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Need
from gradsift.selection.scores import percentiles_from_median
from gradsift.selection.strategies.base import Choice, Task, cosines_with_mean, ranked


def random(task: Task) -> Choice:
    """Draw rows at random, all alike: the control that every other strategy has to beat.

    Under a budget of tokens, rows are taken in a random order, each that still fits.
    """
    order_N = np.random.default_rng(task.seed).permutation(len(task.pool))
    return Choice(task.constraints.builder().take_in_order(order_N.tolist()))


def random_by_cluster(task: Task) -> Choice:
    """Draw rows at random so that each cluster of content keeps its share of them."""
    assert task.pool.cluster_N is not None
    return _drawn_by_group(task, task.pool.cluster_N)


def random_by_source(task: Task) -> Choice:
    """Draw rows at random so that each source keeps its share of them.

    Raises:
        GradsiftError: If no row says where it comes from.
    """
    if task.pool.source is None:
        raise GradsiftError(
            "random-by-source keeps the share of each source, and no row says where it comes from: "
            "name the field with `source_column` when capturing."
        )
    return _drawn_by_group(task, np.unique(task.pool.source, return_inverse=True)[1])


def longest(task: Task) -> Choice:
    """Take the longest responses: n_i response tokens.

    Zhao et al., "Long Is More for Alignment", arXiv 2402.04833.
    """
    return ranked(task, task.pool.n_response_tokens, "response tokens")


def loss_high(task: Task) -> Choice:
    """Take the highest instance loss l_i, recorded in the preliminary epoch.

    The perplexity of the response is exp(l_i), so this is also "highest perplexity".
    """
    return ranked(task, task.pool.loss, "loss")


def loss_low(task: Task) -> Choice:
    """Take the lowest instance loss l_i; also "lowest perplexity"."""
    return ranked(task, task.pool.loss, "loss", low_first=True)


def loss_middle(task: Task) -> Choice:
    """Take the instance losses nearest to the median: least |rank(l_i) − 1/2|."""
    distance_N = percentiles_from_median(task.pool.loss)
    return ranked(task, distance_N, "percentiles from the median loss", low_first=True)


def perplexity_middle(task: Task) -> Choice:
    """Take texts of middling perplexity: least |rank(PPL_i) − 1/2|.

    PPL_i = exp of the mean loss of all tokens of prompt and response, under the untrained model.
    Marion et al., "When Less is More", arXiv 2309.04564, where the middle did best; they prune
    pretraining data with a reference model.
    """
    distance_N = percentiles_from_median(np.exp(task.pool.reference_losses["text"]))
    return ranked(task, distance_N, "percentiles from the median perplexity", low_first=True)


def ifd_loss(task: Task) -> Choice:
    """Take a high instruction-following difficulty, as a ratio of losses.

    IFD_i = L(response | prompt) / L(response), both under the untrained model; rows with a ratio of
    at least 1, where the prompt does not help, come last. Li et al., "From Quantity to Quality"
    (Cherry LLM), arXiv 2308.12032; they use a model that was trained on a small part first.
    """
    losses = task.pool.reference_losses
    return _difficulty(task, losses["response"] / losses["alone"], "IFD (ratio of losses)")


def ifd_perplexity(task: Task) -> Choice:
    """Take a high instruction-following difficulty, as a ratio of perplexities.

    IFD_i = exp L(response | prompt) / exp L(response), rows of at least 1 last. It ranks by the
    difference of the losses, not by their ratio. Li et al., "Superfiltering", arXiv 2402.00530.
    """
    losses = task.pool.reference_losses
    ratio_N = np.exp(losses["response"] - losses["alone"])
    return _difficulty(task, ratio_N, "IFD (ratio of perplexities)")


def grand(task: Task) -> Choice:
    """Take the largest gradient norm: sqrt(Σ_layers ‖G_i‖²).

    GraNd: Paul et al., "Deep Learning on a Data Diet", arXiv 2107.07075. Theirs is the expected
    norm over all weights early in training and over several runs; ours that of the captured layers
    (embedding and LM head) in one run.
    """
    squares = [by_name["l2_norm"] ** 2 for by_name in task.pool.statistics.values()]
    return ranked(task, np.sqrt(np.sum(squares, axis=0)), "gradient norm")


def el2n(task: Task) -> Choice:
    """Take the largest error: mean over response tokens of ‖softmax − one-hot‖₂.

    EL2N: Paul et al., arXiv 2107.07075, there for one label an example and averaged over runs.
    """
    return ranked(task, task.pool.el2n, "EL2N")


def ogs_static(task: Task) -> Choice:
    """Take the rows whose gradient conflicts least with what general rows ask for.

    The anchor direction a is the mean of the anchor rows' sketches, each of length 1; conflict_i =
    max(0, −cos(z_i, a)). Rows without conflict are alike in that, so the measure goes on beyond 0:
    it is cos(z_i, a), high first. OGS, Zhang et al., arXiv 2602.06359, measured once, where theirs
    follows the training with a small navigator model and a learnt policy.
    """
    return _by_cosine(task, Need.ANCHOR, "gradient cosine with the anchor")


def target_similarity(task: Task) -> Choice:
    """Take the rows whose gradient is most like that of a target set: Σ_m cos(z_i, z_m), mean.

    Like LESS (Xia et al., arXiv 2402.04333) and called otherwise, since it is not LESS: sketches of
    the captured layers' gradients at one state of the model, where theirs are LoRA gradients in
    Adam's geometry, summed over checkpoints. The measure is the cosine with the target's mean
    direction.
    """
    return _by_cosine(task, Need.TARGET, "gradient cosine with the target")


def _drawn_by_group(task: Task, group_N: np.ndarray) -> Choice:
    # The k-th drawn of n rows of a group comes at (k + u)/n of the whole order, u drawn for each
    # group: so every row is drawn as likely as any other, also of groups smaller than one share.
    generator = np.random.default_rng(task.seed)
    at_N = np.empty(len(group_N))
    for group in np.unique(group_N):
        rows = generator.permutation(np.flatnonzero(group_N == group))
        at_N[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return Choice(task.constraints.builder().take_in_order(np.argsort(at_N).tolist()))


def _difficulty(task: Task, ratio_N: np.ndarray, measure: str) -> Choice:
    # Below every ratio under 1, and highest first among themselves.
    key_N = np.where(ratio_N < 1, ratio_N, -1 / ratio_N)
    order_N = np.argsort(-key_N, kind="stable")
    return Choice(
        task.constraints.builder().take_in_order(order_N.tolist()), None, measure, ratio_N
    )


def _by_cosine(task: Task, need: Need, measure: str) -> Choice:
    cosine_N = cosines_with_mean(task.pool.sketches, task.references[need].sketches)
    return ranked(task, cosine_N, measure)
