"""What a strategy is given, and what it gives back.

Shapes: N instances of the pool, S selected, E entries of a gradient sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from gradsift.selection.candidates import Candidates, Need, Reference
from gradsift.selection.constraints import Constraints
from gradsift.selection.density import Density
from gradsift.selection.gate import Gate
from gradsift.selection.greedy import Gains
from gradsift.selection.neighbours import Neighbours, blocks
from gradsift.selection.objective import Objective


@dataclass(frozen=True)
class Signal:
    """The gradient score of a pool; the magnitude is in robust standard deviations.

    `parts` are the scores that it was joined from, as in `score_pool`.
    """

    score_N: np.ndarray
    magnitude_N: np.ndarray
    density: Density
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a strategy may look at; instances are in the order of their ids."""

    pool: Candidates
    signal: Signal
    neighbours: Neighbours
    objective: Objective
    constraints: Constraints
    seed: int
    references: Mapping[Need, Reference] = field(default_factory=dict)
    gate: Gate | None = None


@dataclass(frozen=True)
class Choice:
    """What a strategy chose.

    Attributes:
        order_S: Positions in the order of their selection.
        gains: Of the objective, for strategies that maximise it.
        measure: What the strategy went by otherwise, in words; None for a draw.
        value_N: That measure, for each instance it was computed for, else NaN.
        low_first: Whether small values of the measure are taken first.
    """

    order_S: np.ndarray
    gains: Gains | None = None
    measure: str | None = None
    value_N: np.ndarray | None = None
    low_first: bool = False


@dataclass(frozen=True)
class Strategy:
    """A way to choose, and all that is to be known of it elsewhere.

    Attributes:
        choose: The function.
        summary: One line for people.
        needs: Beyond the statistics and the neighbour graph.
        slow_above: Rows above which it takes long, its cost growing with their square.
        needs_capture: Whether it looks at anything that a model computes: records of a capture,
            or reference losses.
        uses_score: Whether it goes by the gradient score.
        uses_coefficients: Whether alpha, beta and gamma matter to it.
        has_gains: Whether its choice has marginal gains, which the budget "auto" looks at.
    """

    choose: Callable[[Task], Choice]
    summary: str
    needs: tuple[Need, ...] = ()
    slow_above: int | None = None
    needs_capture: bool = True
    uses_score: bool = False
    uses_coefficients: bool = False
    has_gains: bool = False


def ranked(task: Task, value_N: np.ndarray, measure: str, *, low_first: bool = False) -> Choice:
    """Take rows by one number, as far as the budget reaches; the smaller id on ties, NaN last."""
    value_N = np.asarray(value_N, dtype=np.float64)
    # NaN sorts last in both directions.
    order_N = np.argsort(value_N if low_first else -value_N, kind="stable")
    order_S = task.constraints.builder().take_in_order(order_N.tolist())
    return Choice(order_S, None, measure, value_N, low_first)


def joint_sketches(sketches: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put the sketches of the layers side by side: layer → [N, K²] to sketch_NE.

    Inner products of the result estimate those of the gradients of all layers together.
    """
    return np.hstack([sketches[layer] for layer in sorted(sketches)])


def unit(x_NE: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, in float64; zero rows stay zero."""
    x_NE = np.asarray(x_NE, dtype=np.float64)
    norm_N1 = np.linalg.norm(x_NE, axis=1, keepdims=True)
    return x_NE / np.where(norm_N1 > 0, norm_N1, 1)


def cosines_with_mean(
    sketches: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return cosine_N of rows' gradients with the mean direction of a reference's.

    Both are layer → sketches, [N, K²] and [M, K²]; the layers that both have count.
    """
    shared = sorted(set(sketches) & set(reference))
    direction_E = unit(joint_sketches({k: reference[k] for k in shared})).mean(axis=0)
    norm = np.linalg.norm(direction_E)
    sketch_NE = joint_sketches({k: sketches[k] for k in shared})
    cosine_N = np.empty(len(sketch_NE))
    for rows in blocks(len(sketch_NE), sketch_NE.shape[1]):
        cosine_N[rows] = unit(sketch_NE[rows]) @ (direction_E / norm if norm > 0 else direction_E)
    return cosine_N
