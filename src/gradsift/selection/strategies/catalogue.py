"""All strategies by name."""

from __future__ import annotations

from gradsift.config import SelectionConfig
from gradsift.selection.strategies.base import Need, Strategy
from gradsift.selection.strategies.rankings import (
    el2n,
    grand,
    ifd_loss,
    ifd_perplexity,
    longest,
    loss_high,
    loss_low,
    loss_middle,
    perplexity_middle,
    random,
)
from gradsift.selection.strategies.references import ogs_static, rds, target_similarity
from gradsift.selection.strategies.sets import (
    deita,
    facility_location,
    fisher,
    gradient_facility_location,
    grads,
    k_center,
    k_means,
    spice,
)

STRATEGIES: dict[str, Strategy] = {
    "grads": Strategy(grads, (), "gradient score, content diversity, similarity reduction"),
    "random": Strategy(random, (), "drawn with the seed: the control"),
    "longest": Strategy(longest, (), "longest responses"),
    "loss-high": Strategy(loss_high, (), "highest loss"),
    "loss-low": Strategy(loss_low, (), "lowest loss"),
    "loss-middle": Strategy(loss_middle, (), "loss nearest to the pool's median"),
    "perplexity-middle": Strategy(
        perplexity_middle, (Need.LOSSES,), "perplexity of the whole text nearest to the median"
    ),
    "ifd-loss": Strategy(ifd_loss, (Need.LOSSES,), "loss with the prompt / without, high first"),
    "ifd-perplexity": Strategy(
        ifd_perplexity, (Need.LOSSES,), "perplexity with the prompt / without, high first"
    ),
    "grand": Strategy(grand, (), "largest gradient norm"),
    "el2n": Strategy(el2n, (), "largest error of the predicted distribution"),
    "k-center": Strategy(k_center, (Need.FEATURES,), "farthest from what was taken"),
    "facility-location": Strategy(facility_location, (), "content diversity alone"),
    "gradient-facility-location": Strategy(
        gradient_facility_location, (Need.SKETCHES,), "diversity of gradients alone"
    ),
    "k-means": Strategy(k_means, (Need.FEATURES,), "the best of each cluster of content"),
    "deita": Strategy(deita, (), "best gradient score first, near-duplicates left out"),
    "fisher": Strategy(fisher, (Need.SKETCHES,), "Fisher information of the gradients"),
    "spice": Strategy(spice, (Need.SKETCHES,), "Fisher information less gradient conflict"),
    "ogs-static": Strategy(
        ogs_static, (Need.SKETCHES, Need.ANCHOR), "least conflict with a retention anchor"
    ),
    "target-similarity": Strategy(
        target_similarity, (Need.SKETCHES, Need.TARGET), "gradients like those of a target set"
    ),
    "rds": Strategy(rds, (Need.FEATURES, Need.TARGET), "content like that of a target set"),
}


def needs_of(config: SelectionConfig) -> frozenset[Need]:
    """Return what a selection needs beyond the statistics and the neighbour graph."""
    extra = {Need.LOSSES} if config.score == "prompt-gain" else set()
    return frozenset({*STRATEGIES[config.strategy].needs, *extra})
