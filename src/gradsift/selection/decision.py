"""Select from a pool, and say for every instance what was decided and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Limit
from gradsift.selection.candidates import Candidates, Settings
from gradsift.selection.greedy import Choice
from gradsift.selection.objective import (
    Losses,
    Objective,
    Similarity,
    blocks,
    content_similarity,
    losses,
)
from gradsift.selection.reasons import Evidence, write_reasons
from gradsift.selection.signal import (
    SIDES,
    combined_signal,
    gradient_score,
    log_density,
    magnitude,
    percentile_rank,
    rank_correlation,
)
from gradsift.selection.strategies import STRATEGIES, Task


@dataclass(frozen=True)
class Selection:
    """A subset of a pool, the parameters that made it, and what was decided on every instance.

    Attributes:
        settings: The parameters.
        limit: The budget on this pool.
        ids: Selected ids in the order of selection.
        n_tokens: Tokens of the selected instances together.
        table: Column → one value for each instance, in the order of the pool as it was given; None
            where there is no value. Columns: `instance_id`, `selected`, `rank` (1 is the first
            selected), `marginal_gain` = `gradient_gain` + `diversity_gain` − `similarity_penalty`
            (with their coefficients; at the time of selection, or at the end for the others; None
            for strategies without gains), `gradient_score` (0 to 1), a percentile from 0 to 100 of
            each statistic, such as `embedding_l2_norm_pct`, and of density and magnitude
            (`density_pct`, `magnitude_pct`), `nearest_selected` (the most similar selected
            instance other than itself) and its cosine `nearest_similarity`, `reason`.
        losses: `subset`, `pool` and `random` (as many rows, drawn with the seed) → losses.
        length_correlation: Spearman's correlation of the gradient score with the response length;
            None where it is not defined.
        step_correlation: The same with the step.
    """

    settings: Settings
    limit: Limit
    ids: tuple[str, ...]
    n_tokens: int
    table: dict[str, list]
    losses: dict[str, Losses]
    length_correlation: float | None
    step_correlation: float | None


@dataclass(frozen=True)
class _Signal:
    score_N: np.ndarray
    log_density_N: np.ndarray
    magnitude_N: np.ndarray


def select_rows(pool: Candidates, settings: Settings) -> Selection:
    """Select instances under a budget.

    Everything is computed in the order of the ids, so the order of the pool changes nothing.

    Args:
        pool: The instances that can be selected.
        settings: How to select.

    Returns:
        The selection; the same for the same pool and settings.

    Raises:
        ValueError: If a setting is unknown, out of range or does not fit the pool, or the pool is
            too large.
    """
    require_possible(settings)
    by_id = np.array(sorted(range(len(pool)), key=lambda row: pool.ids[row]), dtype=np.intp)
    pool = pool.take(by_id)
    limit = settings.budget.resolve(len(pool), int(np.sum(pool.n_tokens)))
    signal = _signal(pool, settings)
    similarity = content_similarity(pool.features_ND, settings.near_threshold)
    objective = Objective(
        score_N=signal.score_N,
        similarity=similarity,
        expected_rows=limit.expected_rows,
        alpha=settings.alpha,
        beta=settings.beta,
        gamma=settings.gamma,
    )
    task = Task(objective, np.asarray(pool.n_tokens), limit, settings.seed)
    choice = STRATEGIES[settings.strategy](task)
    table = _table(pool, settings, limit, signal, similarity, choice)
    place_N = np.argsort(by_id)
    return Selection(
        settings=settings,
        limit=limit,
        ids=tuple(pool.ids[row] for row in choice.order_S),
        n_tokens=int(np.sum(pool.n_tokens[choice.order_S])),
        table={name: [column[place] for place in place_N] for name, column in table.items()},
        losses=_compare(choice.order_S, signal.log_density_N, similarity, settings.seed),
        length_correlation=rank_correlation(signal.score_N, pool.n_response_tokens),
        step_correlation=rank_correlation(signal.score_N, pool.step),
    )


def require_possible(settings: Settings) -> None:
    """Refuse settings that no pool could be selected with, before anything costly is done.

    Args:
        settings: How to select.

    Raises:
        ValueError: Naming the setting, its value and what is expected.
    """
    if settings.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"strategy is {settings.strategy!r}, expected one of {known}.")
    if settings.side not in SIDES:
        raise ValueError(f"side is {settings.side!r}, expected one of {', '.join(SIDES)}.")
    if settings.layers is not None and not settings.layers:
        raise ValueError("layers is empty, expected embedding, lm_head or both.")
    if settings.seed < 0:
        raise ValueError(f"seed is {settings.seed}, expected at least 0.")
    # These two check the rest when they are made; a pool of one row will do.
    similarity = content_similarity(np.zeros((1, 1)), settings.near_threshold)
    Objective(np.zeros(1), similarity, 1.0, settings.alpha, settings.beta, settings.gamma)


def nearest_selected(
    similarity: Similarity, selected_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the selected instance most similar to each instance of the pool, itself left out.

    Args:
        similarity: Of the pool.
        selected_S: Positions of the selected instances.

    Returns:
        nearest_N, its position, the smallest on ties, −1 where there is none; and cosine_N, its
        cosine, NaN where there is none.
    """
    n = len(similarity)
    nearest_N, cosine_N = np.full(n, -1), np.full(n, np.nan)
    columns_S = np.sort(selected_S)
    for rows_R in blocks(n):
        cosine_RS = similarity.cosines(rows_R)[:, columns_S]
        cosine_RS[rows_R[:, None] == columns_S] = -np.inf
        best_R = cosine_RS.argmax(axis=1)
        value_R = np.take_along_axis(cosine_RS, best_R[:, None], axis=1)[:, 0]
        found_R = np.isfinite(value_R)
        nearest_N[rows_R[found_R]] = columns_S[best_R[found_R]]
        cosine_N[rows_R[found_R]] = value_R[found_R]
    return nearest_N, cosine_N


def _signal(pool: Candidates, settings: Settings) -> _Signal:
    layers = tuple(pool.statistics) if settings.layers is None else settings.layers
    signal_NK = combined_signal(
        pool.statistics, layers=layers, statistics=settings.signal_statistics
    )
    log_density_N = log_density(signal_NK)
    magnitude_N = magnitude(pool.statistics, layers)
    score_N = gradient_score(magnitude_N, log_density_N, settings.side)
    return _Signal(score_N, log_density_N, magnitude_N)


def _table(
    pool: Candidates,
    settings: Settings,
    limit: Limit,
    signal: _Signal,
    similarity: Similarity,
    choice: Choice,
) -> dict[str, list]:
    nearest_N, cosine_N = nearest_selected(similarity, choice.order_S)
    evidence = Evidence(
        ids=list(pool.ids),
        score_N=signal.score_N,
        density_pct_N=100 * percentile_rank(signal.log_density_N),
        magnitude_pct_N=100 * percentile_rank(signal.magnitude_N),
        nearest_N=nearest_N,
        cosine_N=cosine_N,
        costs_N=np.asarray(pool.n_tokens),
    )
    rank_N: list[int | None] = [None] * len(pool)
    for rank, row in enumerate(choice.order_S, start=1):
        rank_N[row] = rank
    return {
        "instance_id": evidence.ids,
        "selected": [rank is not None for rank in rank_N],
        "rank": rank_N,
        **_gain_columns(choice, len(pool)),
        "gradient_score": signal.score_N.tolist(),
        **_percentile_columns(pool),
        "density_pct": evidence.density_pct_N.tolist(),
        "magnitude_pct": evidence.magnitude_pct_N.tolist(),
        "nearest_selected": [pool.ids[row] if row >= 0 else None for row in nearest_N],
        "nearest_similarity": [None if np.isnan(c) else float(c) for c in cosine_N],
        "reason": write_reasons(choice, evidence, settings, limit),
    }


def _gain_columns(choice: Choice, n: int) -> dict[str, list]:
    names = ("marginal_gain", "gradient_gain", "diversity_gain", "similarity_penalty")
    if choice.gains is None:
        return {name: [None] * n for name in names}
    gains = choice.gains
    columns = (gains.marginal_N, gains.gradient_N, gains.diversity_N, gains.penalty_N)
    return {name: column.tolist() for name, column in zip(names, columns, strict=True)}


def _percentile_columns(pool: Candidates) -> dict[str, list]:
    return {
        f"{layer}_{name}_pct": (100 * percentile_rank(array)).tolist()
        for layer, by_name in pool.statistics.items()
        for name, array in by_name.items()
    }


def _compare(
    order_S: np.ndarray, log_density_N: np.ndarray, similarity: Similarity, seed: int
) -> dict[str, Losses]:
    n = len(similarity)
    # A stream of its own, so that it is no copy of what the strategy random draws.
    generator = np.random.default_rng([seed, 1])
    drawn_S = generator.choice(n, size=len(order_S), replace=False)
    subsets = {"subset": order_S, "pool": np.arange(n), "random": drawn_S}
    return {name: losses(rows, log_density_N, similarity) for name, rows in subsets.items()}
