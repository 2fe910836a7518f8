"""Select from a pool, and say for every instance what was decided and why.

Shapes: N instances of the pool, S selected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.selection.audit import Audit, audit_of
from gradsift.selection.candidates import Candidates, Context
from gradsift.selection.conditions import conditions_of
from gradsift.selection.constraints import Budget, ResolvedBudget
from gradsift.selection.density import estimate_density
from gradsift.selection.gate import Gate
from gradsift.selection.greedy import elbow
from gradsift.selection.joined_scores import cuts_tail, score_pool
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import (
    Criteria,
    Objective,
    Terms,
    criteria_of,
    nearest_selected,
)
from gradsift.selection.possible_gains import PossibleGains, possible_gains, with_a_choice
from gradsift.selection.reasons import Evidence, write_reasons
from gradsift.selection.scores import (
    ScoreInput,
    gradient_signal,
    percentile_rank,
    rank_correlation,
    typical_region,
)
from gradsift.selection.strategies.base import Choice, Signal, Task
from gradsift.selection.strategies.catalogue import STRATEGIES, require_known_names

# Why the gate drops a row, a column of the decisions.
DROPPED_BY = "dropped_by"


@dataclass(frozen=True)
class Selection:
    """A subset of a pool, the parameters that made it, and what was decided on every instance.

    Attributes:
        config: The parameters.
        budget: As it was given.
        resolved_budget: On this pool.
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
            itself, among its neighbours) and its cosine `nearest_similarity`, `reason`. With a
            gate also `prompt_advantage`, `gate_p`, and `dropped_by`, why the gate dropped the row.
        criteria: Of `subset`, `pool` and `random` (as many rows, drawn with the seed).
        audit: The subset beside the pool.
        signal: What the selection went by.
        cut_share: Share of the pool outside the typical region; None where the score does not cut.
        step_correlation: Rank correlation of the gradient score with the step; None where it is
            not defined.
        curve_S: For the budget "auto": the marginal gains of all rows that were tried, in order.
        scale: What the terms of the objective were divided by; None for strategies without
            coefficients.
        attained: Which share of what each term alone could gain over a random subset under this
            budget the subset attains (`gradient`, `diversity`, `similarity`); None where a term
            can gain nothing. None for strategies without coefficients.
        gate: Which rows are faulty, where that was asked for.
    """

    config: SelectionConfig
    budget: Budget
    resolved_budget: ResolvedBudget
    rows_S: np.ndarray
    ids: tuple[str, ...]
    n_tokens: int
    table: dict[str, np.ndarray | list]
    criteria: dict[str, Criteria]
    audit: Audit
    signal: Signal
    cut_share: float | None
    step_correlation: float | None
    curve_S: np.ndarray | None
    scale: Terms | None
    attained: dict[str, float | None] | None
    gate: Gate | None

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        n_rows = len(self.table["instance_id"])
        return (
            f"Selection({len(self.rows_S)} of {n_rows} rows, {self.n_tokens} tokens, by "
            f"{self.config.strategy}, budget {self.budget})"
        )


def select_rows(
    pool: Candidates, budget: Budget, config: SelectionConfig, context: Context
) -> Selection:
    """Select instances under a budget; the same for the same pool and settings."""
    signal = make_signal(pool, config)
    strategy, curve_S = STRATEGIES[config.strategy], None
    task, possible = _scaled(_task(pool, budget, config, context, signal), budget, config)
    choice = strategy.choose(task)
    if budget.kind == "auto" and strategy.has_gains:
        task, curve_S = _cut_at_elbow(task, choice)
        choice, possible = strategy.choose(task), None
    order_S = choice.order_S
    neighbours, threshold = context.neighbours, config.similarity_threshold
    cut_share = None
    if cuts_tail(config):
        cut_share = float(1 - typical_region(signal.density.log_N).mean())
    return Selection(
        config=config,
        budget=budget,
        resolved_budget=task.constraints.budget,
        rows_S=order_S,
        ids=tuple(pool.ids[row] for row in order_S),
        n_tokens=int(np.sum(pool.n_tokens[order_S])),
        table=_table(task, choice, config),
        criteria=_compare(order_S, signal, neighbours, config),
        audit=audit_of(
            pool,
            order_S,
            signal.score_N,
            context.cluster_N,
            neighbours,
            threshold,
            task.constraints.may_be_chosen(),
        ),
        signal=signal,
        cut_share=cut_share,
        step_correlation=rank_correlation(signal.score_N, pool.step),
        curve_S=curve_S,
        scale=task.objective.scale if strategy.uses_coefficients else None,
        attained=_attained(task, choice, possible) if strategy.uses_coefficients else None,
        gate=task.gate,
    )


def choose_rows(
    pool: Candidates, budget: Budget, config: SelectionConfig, context: Context
) -> np.ndarray:
    """Return order_S alone, without table, criteria and audit; the budget is not "auto"."""
    task = _task(pool, budget, config, context, make_signal(pool, config))
    return STRATEGIES[config.strategy].choose(_scaled(task, budget, config)[0]).order_S


def make_signal(pool: Candidates, config: SelectionConfig) -> Signal:
    """Compute the gradient score of a pool, and what it is made of: once for all scores."""
    require_known_names(config)
    layers = tuple(pool.statistics) if config.layers is None else config.layers
    covariates = [pool.covariate(name) for name in config.detrend]
    made_with = (layers, config.signal_statistics, config.detrend)
    if made_with not in pool.densities:
        signal_NK, magnitude_N = gradient_signal(
            pool.statistics,
            layers=layers,
            statistics=config.signal_statistics,
            covariates=covariates,
        )
        pool.densities[made_with] = magnitude_N, estimate_density(signal_NK)
    magnitude_N, density = pool.densities[made_with]
    of_pool = ScoreInput(
        magnitude_N,
        density.log_N,
        covariates,
        pool.reference_losses,
        pool.cluster_N,
        [pool.covariate(name) for name in config.detrend if name != "step"],
        pool.n_response_tokens,
    )
    score_N, parts = score_pool(config, of_pool)
    return Signal(score_N, magnitude_N, density, parts)


def _task(
    pool: Candidates, budget: Budget, config: SelectionConfig, context: Context, signal: Signal
) -> Task:
    constraints, gate = conditions_of(pool, budget, config, context)
    objective = Objective(
        score_N=signal.score_N,
        neighbours=context.neighbours,
        alpha=config.alpha,
        beta=config.beta,
        gamma=config.gamma,
        similarity_threshold=config.similarity_threshold,
    )
    return Task(
        pool,
        signal,
        context.neighbours,
        objective,
        constraints,
        config.seed,
        context.references,
        gate,
    )


def _cut_at_elbow(task: Task, choice: Choice) -> tuple[Task, np.ndarray]:
    assert choice.gains is not None
    curve_S = choice.gains.marginal_N[choice.order_S]
    n_kept = len(task.constraints.keep)
    amount = n_kept + elbow(curve_S[n_kept:]) if len(curve_S) > n_kept else n_kept
    budget = replace(task.constraints.budget, amount=amount)
    return replace(task, constraints=replace(task.constraints, budget=budget)), curve_S


def _scaled(
    task: Task, budget: Budget, config: SelectionConfig
) -> tuple[Task, PossibleGains | None]:
    """Bring the terms of the objective to one scale, for strategies with coefficients.

    Also returns what each can gain under the task's own conditions, if that is the scale.
    """
    if not STRATEGIES[config.strategy].uses_coefficients:
        return task, None
    conditions = with_a_choice(task.constraints, half=budget.kind == "auto")
    possible = possible_gains(task.objective, conditions)
    task = replace(task, objective=replace(task.objective, scale=possible.scale))
    return task, possible if conditions is task.constraints else None


def _attained(
    task: Task, choice: Choice, possible: PossibleGains | None
) -> dict[str, float | None]:
    possible = possible or possible_gains(task.objective, task.constraints)
    return possible.attained(task.objective.terms(choice.order_S))


def _table(task: Task, choice: Choice, config: SelectionConfig) -> dict[str, np.ndarray | list]:
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
        parts=signal.parts,
    )
    rank_N = np.zeros(len(pool), dtype=np.int64)
    rank_N[choice.order_S] = np.arange(1, len(choice.order_S) + 1)
    nothing_N = np.full(len(pool), np.nan)
    gains, gate = choice.gains, task.gate
    reasons, of_gate = write_reasons(choice, evidence, config, task.constraints), {}
    if gate is not None:
        dropped_by = [
            None if kept else reason
            for reason, kept in zip(gate.reasons, (rank_N > 0).tolist(), strict=True)
        ]
        for row, reason in enumerate(dropped_by):
            if reason is not None:
                reasons[row] = f"dropped: {reason}: {gate.detail(row)}"
        of_gate = {
            "prompt_advantage": gate.advantage_N,
            "gate_p": gate.p_N,
            DROPPED_BY: dropped_by,
        }
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
        "reason": reasons,
        **of_gate,
    }


def _compare(
    order_S: np.ndarray, signal: Signal, neighbours: Neighbours, config: SelectionConfig
) -> dict[str, Criteria]:
    n = len(neighbours)
    # A stream of its own, so that it is no copy of what the strategy random draws.
    generator = np.random.default_rng([config.seed, 1])
    drawn_S = generator.choice(n, size=len(order_S), replace=False)
    subsets = {"subset": order_S, "pool": np.arange(n), "random": drawn_S}
    return {
        name: criteria_of(rows_S, signal.density.log_N, neighbours, config.similarity_threshold)
        for name, rows_S in subsets.items()
    }
