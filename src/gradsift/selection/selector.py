"""Select from a pool, and say for every instance what was decided and why.

Shapes: N instances of the pool, S selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.audit import Audit, audit
from gradsift.selection.candidates import Candidates
from gradsift.selection.constraints import Budget, Constraints, ResolvedBudget, quotas
from gradsift.selection.density import estimate_density
from gradsift.selection.greedy import elbow
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Losses, Objective, losses, nearest_selected
from gradsift.selection.reasons import Evidence, write_reasons
from gradsift.selection.scores import (
    combined_signal,
    detrended,
    gradient_score,
    magnitude,
    percentile_rank,
    rank_correlation,
    typical_region,
)
from gradsift.selection.strategies.base import Choice, Need, Reference, Signal, Task
from gradsift.selection.strategies.catalogue import STRATEGIES


@dataclass(frozen=True)
class Context:
    """What a selection may use beside the pool's own arrays.

    Attributes:
        neighbours: Of the pool's content.
        cluster_N: Cluster of content of each instance.
        references: Other captured rows, by what they are needed for.
        keep: Ids that are selected first, in this order.
        drop: Ids that are never selected; they stay part of the pool that is represented.
    """

    neighbours: Neighbours
    cluster_N: np.ndarray
    references: Mapping[Need, Reference]
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()


@dataclass(frozen=True)
class Selection:
    """A subset of a pool, the parameters that made it, and what was decided on every instance.

    Attributes:
        settings: The parameters.
        budget: As it was given.
        limit: The budget on this pool.
        rows_S: Selected positions in the order of selection.
        ids: Their ids.
        n_tokens: Tokens of the selected instances together.
        table: Column → one value for each instance, in the order of the pool; NaN or None where
            there is no value. Columns: `instance_id`, `selected`, `rank` (1 is the first selected,
            0 not selected), `marginal_gain` = `gradient_gain` + `diversity_gain` −
            `similarity_penalty` (with their coefficients; at the time of selection, or at the end
            for the others; NaN for strategies without gains), `measure` (what strategies without
            gains go by), `gradient_score` (0 to 1), a percentile from 0 to 100 of each statistic,
            such as `embedding_l2_norm_pct`, and of density and magnitude (`density_pct`,
            `magnitude_pct`), `nearest_selected` (the most similar selected instance other than
            itself, among its neighbours) and its cosine `nearest_similarity`, `reason`.
        losses: `subset`, `pool` and `random` (as many rows, drawn with the seed) → losses.
        audit: The subset beside the pool; without warnings.
        signal: What the selection went by.
        cut_share: Share of the pool that the density cut removes; None where there is no cut.
        step_correlation: Rank correlation of the gradient score with the step; None where it is
            not defined.
        curve_S: For the budget "auto": the marginal gains of all rows that were tried, in order.
    """

    settings: SelectionConfig
    budget: Budget
    limit: ResolvedBudget
    rows_S: np.ndarray
    ids: tuple[str, ...]
    n_tokens: int
    table: dict[str, np.ndarray | list]
    losses: dict[str, Losses]
    audit: Audit
    signal: Signal
    cut_share: float | None
    step_correlation: float | None
    curve_S: np.ndarray | None


def select_rows(
    pool: Candidates, budget: Budget, settings: SelectionConfig, context: Context
) -> Selection:
    """Select instances under a budget.

    Args:
        pool: The instances that can be selected.
        budget: How much to select.
        settings: How to select.
        context: Neighbours and whatever else the strategy needs.

    Returns:
        The selection; the same for the same pool and settings.

    Raises:
        ValueError: If a setting is out of range or does not fit the pool.
    """
    signal = make_signal(pool, settings)
    task, limit = _task(pool, budget, settings, context, signal)
    choose = STRATEGIES[settings.strategy].choose
    choice, curve_S = choose(task), None
    if budget.kind == "auto":
        task, choice, curve_S = _cut_at_elbow(task, choice, settings)
        limit = task.terms.limit
    order_S = choice.order_S
    return Selection(
        settings=settings,
        budget=budget,
        limit=limit,
        rows_S=order_S,
        ids=tuple(pool.ids[row] for row in order_S),
        n_tokens=int(np.sum(pool.n_tokens[order_S])),
        table=_table(task, choice, settings),
        losses=_compare(order_S, signal, context.neighbours, settings),
        audit=audit(
            pool,
            order_S,
            signal.score_N,
            context.cluster_N,
            context.neighbours,
            settings.similarity_threshold,
        ),
        signal=signal,
        cut_share=_cut_share(signal, settings),
        step_correlation=rank_correlation(signal.score_N, pool.step),
        curve_S=curve_S,
    )


def choose_rows(
    pool: Candidates, budget: Budget, settings: SelectionConfig, context: Context
) -> np.ndarray:
    """Select, without the table, the losses and the audit.

    Args:
        pool: The instances that can be selected.
        budget: How much to select; not "auto".
        settings: How to select.
        context: Neighbours and whatever else the strategy needs.

    Returns:
        order_S, positions in the order of selection.
    """
    task, _ = _task(pool, budget, settings, context, make_signal(pool, settings))
    return STRATEGIES[settings.strategy].choose(task).order_S


def make_signal(pool: Candidates, settings: SelectionConfig) -> Signal:
    """Compute the gradient score of a pool, and what it is made of.

    Args:
        pool: The instances.
        settings: Layers, statistics, what is taken off, and the side.

    Returns:
        The signal.

    Raises:
        ValueError: If a layer was not captured.
    """
    layers = tuple(pool.statistics) if settings.layers is None else settings.layers
    choices = {
        "layers": layers,
        "statistics": settings.signal_statistics,
        "covariates": [pool.covariate(name) for name in settings.detrend],
    }
    signal_NK = combined_signal(pool.statistics, **choices)
    density = estimate_density(signal_NK)
    # Of one statistic the columns are not whitened: their mean is the magnitude already.
    one = len(settings.signal_statistics) == 1
    magnitude_N = signal_NK.mean(axis=1) if one else magnitude(pool.statistics, **choices)
    difficulty_N = _difficulty(pool, settings) if settings.score == "prompt-gain" else None
    score_N = gradient_score(magnitude_N, density.log_N, settings.score, difficulty_N)
    return Signal(score_N, magnitude_N, density)


def _difficulty(pool: Candidates, settings: SelectionConfig) -> np.ndarray:
    ratio_N = pool.losses["response"] / pool.losses["alone"]
    known_N = np.isfinite(ratio_N) & (ratio_N > 0)
    covariates = [pool.covariate(name)[known_N] for name in settings.detrend]
    difficulty_N = np.full(len(pool), np.inf)
    difficulty_N[known_N] = detrended(np.log(ratio_N[known_N]), covariates)
    return difficulty_N


def _task(
    pool: Candidates, budget: Budget, settings: SelectionConfig, context: Context, signal: Signal
) -> tuple[Task, ResolvedBudget]:
    limit = budget.resolve(len(pool), int(np.sum(pool.n_tokens)))
    if both := sorted(set(context.keep) & set(context.drop)):
        raise GradsiftError(
            f"row {both[0]!r} is on the list of rows to keep and on that of rows to drop "
            f"({len(both)} such in all): take it off one of them."
        )
    groups = quotas(pool.source, settings.quota)
    terms = Constraints(
        np.asarray(pool.n_tokens),
        limit,
        _positions(pool, context.keep, "keep"),
        *groups,
        _positions(pool, context.drop, "drop"),
    )
    if budget.kind == "auto":
        limit = replace(limit, amount=terms.room())
        terms = replace(terms, limit=limit)
    objective = Objective(
        score_N=signal.score_N,
        neighbours=context.neighbours,
        expected_rows=limit.expected_rows,
        alpha=settings.alpha,
        beta=settings.beta,
        gamma=settings.gamma,
        similarity_threshold=settings.similarity_threshold,
    )
    task = Task(
        pool, signal, context.neighbours, objective, terms, settings.seed, context.references
    )
    return task, limit


def _cut_at_elbow(
    task: Task, choice: Choice, settings: SelectionConfig
) -> tuple[Task, Choice, np.ndarray]:
    if choice.gains is None:
        raise GradsiftError(
            f"budget auto looks at marginal gains, and {settings.strategy} has none: give a "
            "number, or use grads, facility-location or gradient-facility-location."
        )
    curve_S = choice.gains.marginal_N[choice.order_S]
    n_kept = len(task.terms.keep)
    amount = n_kept + elbow(curve_S[n_kept:]) if len(curve_S) > n_kept else n_kept
    limit = replace(task.terms.limit, amount=amount)
    task = replace(task, terms=replace(task.terms, limit=limit))
    return task, STRATEGIES[settings.strategy].choose(task), curve_S


def _positions(pool: Candidates, ids: Sequence[str], which: str) -> tuple[int, ...]:
    if not ids:
        return ()
    place = {i: at for at, i in enumerate(pool.ids)}
    unknown = [i for i in ids if i not in place]
    if unknown and which == "keep":
        raise GradsiftError(
            f"the list of rows to keep names {unknown[0]!r}, which is no row that can be selected "
            f"({len(unknown)} such in all). gradsift explain says what became of it."
        )
    # A row that was dropped anyway need not be dropped again.
    return tuple(dict.fromkeys(place[i] for i in ids if i in place))


def _cut_share(signal: Signal, settings: SelectionConfig) -> float | None:
    if settings.score != "high-norm-in-density":
        return None
    return float(1 - typical_region(signal.density.log_N).mean())


def _table(task: Task, choice: Choice, settings: SelectionConfig) -> dict[str, np.ndarray | list]:
    pool, signal = task.pool, task.signal
    nearest_N, cosine_N = nearest_selected(task.neighbours, choice.order_S)
    evidence = Evidence(
        ids=pool.ids,
        score_N=signal.score_N,
        density_pct_N=100 * percentile_rank(signal.density.log_N),
        magnitude_pct_N=100 * percentile_rank(signal.magnitude_N),
        nearest_N=nearest_N,
        cosine_N=cosine_N,
        source=pool.source,
    )
    rank_N = np.zeros(len(pool), dtype=np.int64)
    rank_N[choice.order_S] = np.arange(1, len(choice.order_S) + 1)
    nothing_N = np.full(len(pool), np.nan)
    gains = choice.gains
    return {
        "instance_id": list(pool.ids),
        "selected": rank_N > 0,
        "rank": rank_N,
        "marginal_gain": nothing_N if gains is None else gains.marginal_N,
        "gradient_gain": nothing_N if gains is None else gains.gradient_N,
        "diversity_gain": nothing_N if gains is None else gains.diversity_N,
        "similarity_penalty": nothing_N if gains is None else gains.penalty_N,
        "measure": nothing_N if choice.value_N is None else choice.value_N,
        "gradient_score": signal.score_N,
        **{
            f"{layer}_{name}_pct": 100 * percentile_rank(array)
            for layer, by_name in pool.statistics.items()
            for name, array in by_name.items()
        },
        "density_pct": evidence.density_pct_N,
        "magnitude_pct": evidence.magnitude_pct_N,
        "nearest_selected": [pool.ids[row] if row >= 0 else None for row in nearest_N.tolist()],
        "nearest_similarity": cosine_N,
        "reason": write_reasons(choice, evidence, settings, task.terms),
    }


def _compare(
    order_S: np.ndarray, signal: Signal, neighbours: Neighbours, settings: SelectionConfig
) -> dict[str, Losses]:
    n = len(neighbours)
    # A stream of its own, so that it is no copy of what the strategy random draws.
    generator = np.random.default_rng([settings.seed, 1])
    drawn_S = generator.choice(n, size=len(order_S), replace=False)
    subsets = {"subset": order_S, "pool": np.arange(n), "random": drawn_S}
    return {
        name: losses(rows_S, signal.density.log_N, neighbours, settings.similarity_threshold)
        for name, rows_S in subsets.items()
    }
