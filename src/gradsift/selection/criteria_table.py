"""The criteria of a subset beside those of its pool and of a random subset, as lines of a table.

A criterion that is worse than that of a random subset is no fault where nothing went by it: it was
traded away on purpose, which is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradsift.config import SelectionConfig
from gradsift.selection.density import UNIT
from gradsift.selection.joined_scores import score_parts
from gradsift.selection.objective import Criteria
from gradsift.selection.strategies.catalogue import STRATEGIES, uses_score

# Of a score that goes by the density.
_BY_DENSITY = ("density", "high-norm-in-density")


def criteria_lines(criteria: Mapping[str, Criteria], config: SelectionConfig) -> list[str]:
    """Return the table; `criteria` are those of `subset`, `pool` and `random`."""
    lines = [f"{'criterion (lower is better)':28}{'subset':>10}{'pool':>10}{'random':>10}"]
    for name in ("density", "content_diversity", "similarity"):
        subset, pool, random = (
            float(getattr(criteria[who], name)) for who in ("subset", "pool", "random")
        )
        why = _not_gone_by(name, config) if subset > random else None
        traded = f"  traded away on purpose: {why}" if why else ""
        lines.append(f"{name:28}{subset:10.4f}{pool:10.4f}{random:10.4f}{traded}")
    return [*lines, f"(density: mean negative log-density, {UNIT})"]


def _not_gone_by(criterion: str, config: SelectionConfig) -> str | None:
    """Say why nothing goes by a criterion; None if something does, or all is left to chance."""
    strategy = STRATEGIES[config.strategy]
    if not strategy.uses_coefficients:
        drawn = config.strategy.startswith("random")
        return None if drawn else f"{config.strategy} does not go by it"
    if criterion == "density":
        by_density = uses_score(config) and {*score_parts(config)} & {*_BY_DENSITY}
        return None if by_density else f"the score {config.score} does not go by it"
    coefficient = {"content_diversity": "beta", "similarity": "gamma"}[criterion]
    return None if getattr(config, coefficient) else f"{coefficient} is 0"
