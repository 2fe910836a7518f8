"""Which rows may be taken, and how many: budget, quotas, lists and the gate.

Shapes: N instances of the pool, S selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradsift.config import GateConfig, SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Candidates, Context
from gradsift.selection.constraints import Budget, Constraints, ResolvedBudget, quotas
from gradsift.selection.gate import Gate, judge
from gradsift.selection.strategies.catalogue import STRATEGIES


def conditions_of(
    pool: Candidates, budget: Budget, config: SelectionConfig, context: Context
) -> tuple[Constraints, Gate | None]:
    """Return the conditions of a selection, and what the gate says if it is asked for.

    Raises:
        GradsiftError: If they contradict each other, or leave nothing.
    """
    if budget.kind == "auto" and not STRATEGIES[config.strategy].has_gains and not config.gate:
        *names, last = (name for name, strategy in STRATEGIES.items() if strategy.has_gains)
        raise GradsiftError(
            f"budget auto looks at marginal gains, and {config.strategy} has none: give a "
            f"number, use {', '.join(names)} or {last}, or add `gate`, for all rows that pass it."
        )
    if both := sorted(set(context.keep) & set(context.drop)):
        raise GradsiftError(
            f"row {both[0]!r} is on the list of rows to keep and on that of rows to drop "
            f"({len(both)} such in all): take it off one of them."
        )
    resolved = budget.resolve(len(pool), int(np.sum(pool.n_tokens)))
    constraints = Constraints(
        np.asarray(pool.n_tokens),
        resolved,
        _positions(pool, context.keep, "keep"),
        *quotas(pool.source, config.quota),
        _positions(pool, context.drop, "drop"),
    )
    gate = gate_of(pool, config) if config.gate else None
    if gate is not None:
        constraints = _without_named(constraints, gate, budget)
        resolved = constraints.budget
    if budget.kind == "auto":
        resolved = replace(resolved, amount=constraints.capacity())
        constraints = replace(constraints, budget=resolved)
    return constraints, gate


def _without_named(constraints: Constraints, gate: Gate, budget: Budget) -> Constraints:
    """Leave the rows out that the gate names, but for those to keep; fewer may be left then."""
    if budget.kind != "auto":
        # Too much for what quotas and lists leave is told as ever.
        constraints.require_capacity()
    kept = set(constraints.keep)
    named = [row for row in np.flatnonzero(gate.named_N).tolist() if row not in kept]
    passing = replace(constraints, excluded=(*constraints.excluded, *named))
    capacity, asked = passing.capacity(), constraints.budget
    if constraints.capacity() and not capacity:
        raise GradsiftError(
            f"the gate leaves no row: of {len(gate.p_N)} {gate.n_passing} pass, which quotas and "
            "lists leave out. gradsift audit shows the others; leave out `gate`, or raise "
            "`gate_threshold`."
        )
    if asked.kind == "tokens" or asked.amount <= capacity:
        return passing
    return replace(passing, budget=ResolvedBudget("rows", capacity, float(capacity)))


def gate_of(pool: Candidates, config: GateConfig) -> Gate:
    """Judge the rows of a pool whose reference losses are known.

    Raises:
        CannotJudge: If nothing can be said of it.
    """
    return judge(pool.reference_losses, pool.n_response_tokens, config.gate_threshold)


def gate_shortage(
    pool: Candidates,
    budget: Budget,
    config: SelectionConfig,
    context: Context,
    rows_S: np.ndarray,
) -> list[str]:
    """Say so where fewer rows pass the gate, and may be taken, than the budget asks for."""
    if not config.gate or budget.kind == "auto":
        return []
    asked = budget.resolve(len(pool), int(np.sum(pool.n_tokens)))
    if asked.kind == "tokens":
        n_left = n_open(pool, budget, config, context)
        is_short = len(rows_S) >= n_left and pool.n_tokens[rows_S].sum() < asked.amount
    else:
        is_short = len(rows_S) < asked.amount
    if not is_short:
        return []
    return [
        f"budget {budget} asks for {asked.amount} {asked.kind}, but only {len(rows_S)} rows pass "
        "the gate and may be taken: all of them are"
    ]


def n_open(pool: Candidates, budget: Budget, config: SelectionConfig, context: Context) -> int:
    """Count the rows that gate, quotas and lists leave, whatever the budget."""
    return conditions_of(pool, budget, config, context)[0].capacity()


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
