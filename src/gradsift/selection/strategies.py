"""The strategies: one short function each, from a pool and a budget to a choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Limit
from gradsift.selection.greedy import Choice, lazy_greedy, refuse_if_nothing_fits
from gradsift.selection.objective import Objective


@dataclass(frozen=True)
class Task:
    """What a strategy may look at; instances are in the order of their ids.

    `costs_N` are all tokens of each instance.
    """

    objective: Objective
    costs_N: np.ndarray
    limit: Limit
    seed: int


def grads(task: Task) -> Choice:
    """Maximise gradient score, content diversity and similarity reduction together, greedily.

    Args:
        task: The task.

    Returns:
        The choice, with gains.

    Raises:
        ValueError: If no instance fits a budget of tokens.
    """
    return lazy_greedy(task.objective, task.costs_N, task.limit)


def random(task: Task) -> Choice:
    """Draw rows at random, all alike: the control that every other strategy has to beat.

    Under a budget of tokens, rows are taken in a random order, each that still fits.

    Args:
        task: The task.

    Returns:
        The choice, without gains.

    Raises:
        ValueError: If no instance fits a budget of tokens.
    """
    refuse_if_nothing_fits(task.costs_N, task.limit)
    order_N = np.random.default_rng(task.seed).permutation(len(task.costs_N))
    if task.limit.kind == "rows":
        return Choice(order_N[: task.limit.amount], None)
    left, taken = task.limit.amount, []
    for row in order_N:
        if task.costs_N[row] <= left:
            left -= task.costs_N[row]
            taken.append(row)
    return Choice(np.array(taken, dtype=np.intp), None)


STRATEGIES: dict[str, Callable[[Task], Choice]] = {"grads": grads, "random": random}
