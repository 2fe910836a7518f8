"""All strategies by name: each is a function, and one entry here."""

from __future__ import annotations

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.schema import nearest, renamed_value
from gradsift.selection.candidates import Need
from gradsift.selection.joined_scores import needs_of_score, require_known_score
from gradsift.selection.strategies import rankings, sets
from gradsift.selection.strategies.base import Strategy

SLOW_ABOVE = 20_000

STRATEGIES: dict[str, Strategy] = {
    "grads": Strategy(
        sets.grads,
        "gradient score, content diversity, similarity reduction",
        uses_score=True,
        uses_coefficients=True,
        has_gains=True,
    ),
    "random": Strategy(rankings.random, "drawn with the seed: the control", needs_capture=False),
    "random-by-cluster": Strategy(
        rankings.random_by_cluster,
        "drawn, each cluster of content keeping its share",
        needs=(Need.CLUSTERS,),
    ),
    "random-by-source": Strategy(
        rankings.random_by_source,
        "drawn, each source keeping its share",
        needs=(Need.SOURCES,),
        needs_capture=False,
    ),
    "longest": Strategy(rankings.longest, "longest responses", needs_capture=False),
    "loss-high": Strategy(rankings.loss_high, "highest loss"),
    "loss-low": Strategy(rankings.loss_low, "lowest loss"),
    "loss-middle": Strategy(rankings.loss_middle, "loss nearest to the pool's median"),
    "perplexity-middle": Strategy(
        rankings.perplexity_middle,
        "perplexity of the whole text nearest to the median",
        needs=(Need.REFERENCE_LOSSES,),
    ),
    "ifd-loss": Strategy(
        rankings.ifd_loss,
        "loss with the prompt / without, high first",
        needs=(Need.REFERENCE_LOSSES,),
    ),
    "ifd-perplexity": Strategy(
        rankings.ifd_perplexity,
        "perplexity with the prompt / without, high first",
        needs=(Need.REFERENCE_LOSSES,),
    ),
    "grand": Strategy(rankings.grand, "largest gradient norm"),
    "el2n": Strategy(rankings.el2n, "largest error of the predicted distribution"),
    "k-center": Strategy(
        sets.k_center,
        "farthest from what was taken",
        needs=(Need.FEATURES,),
        slow_above=SLOW_ABOVE,
    ),
    "facility-location": Strategy(
        sets.facility_location, "content diversity alone", has_gains=True
    ),
    "gradient-facility-location": Strategy(
        sets.gradient_facility_location,
        "diversity of gradients alone",
        needs=(Need.SKETCHES,),
        has_gains=True,
    ),
    "k-means": Strategy(
        sets.k_means, "the best of each cluster of content", needs=(Need.FEATURES,), uses_score=True
    ),
    "deita": Strategy(
        sets.deita, "best gradient score first, near-duplicates left out", uses_score=True
    ),
    "fisher": Strategy(
        sets.fisher,
        "Fisher information of the gradients",
        needs=(Need.SKETCHES,),
        slow_above=SLOW_ABOVE,
    ),
    "spice": Strategy(
        sets.spice,
        "Fisher information less gradient conflict",
        needs=(Need.SKETCHES,),
        slow_above=SLOW_ABOVE,
    ),
    "ogs-static": Strategy(
        rankings.ogs_static,
        "least conflict with a retention anchor",
        needs=(Need.SKETCHES, Need.ANCHOR),
    ),
    "target-similarity": Strategy(
        rankings.target_similarity,
        "gradients like those of a target set",
        needs=(Need.SKETCHES, Need.TARGET),
    ),
    "target-turns": Strategy(
        sets.target_turns,
        "gradients like those of target tasks, which take turns",
        needs=(Need.SKETCHES, Need.TARGET),
    ),
    "rds": Strategy(
        sets.rds,
        "content like that of a target set",
        needs=(Need.FEATURES, Need.TARGET),
        slow_above=SLOW_ABOVE,
    ),
}


def require_known_names(config: SelectionConfig, where: str = "") -> None:
    """Refuse a strategy or a gradient score that there is none of."""
    name = config.strategy
    if name not in STRATEGIES:
        today = renamed_value("strategy", name)
        hint = f"it is now called {today}" if today else nearest(name, STRATEGIES, len(STRATEGIES))
        raise GradsiftError(f"{where}`strategy` is {name!r}, which is unknown: {hint}.")
    require_known_score(config, where)


def needs_of(config: SelectionConfig) -> frozenset[Need]:
    """Return what a selection needs beyond the statistics and the neighbour graph."""
    require_known_names(config)
    gate = {Need.REFERENCE_LOSSES} if config.gate else {}
    return frozenset({*STRATEGIES[config.strategy].needs, *needs_of_score(config), *gate})


def uses_score(config: SelectionConfig) -> bool:
    """Say whether a selection goes by the gradient score."""
    strategy = STRATEGIES[config.strategy]
    return strategy.uses_score and (config.alpha > 0 or not strategy.uses_coefficients)
