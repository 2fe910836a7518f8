"""What a strategy is given, and what it gives back.

Shapes: N instances of the pool, S selected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from gradsift.selection.candidates import Candidates
from gradsift.selection.constraints import Constraints
from gradsift.selection.density import Density
from gradsift.selection.greedy import Gains
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.objective import Objective


class Need(Enum):
    """What a strategy needs beyond the statistics and the neighbour graph."""

    FEATURES = "content features"
    SKETCHES = "gradient sketches"
    LOSSES = "losses of a further pass"
    ANCHOR = "a retention anchor"
    TARGET = "a target set"


@dataclass(frozen=True)
class Signal:
    """What the gradient statistics of a pool say of each instance.

    `score_N` is the gradient score, `magnitude_N` in robust standard deviations.
    """

    score_N: np.ndarray
    magnitude_N: np.ndarray
    density: Density


@dataclass(frozen=True)
class Reference:
    """Rows of another capture, with the same model: sketches by layer, features, and steps."""

    sketches: Mapping[str, np.ndarray]
    features_MD: np.ndarray
    step_M: np.ndarray


@dataclass(frozen=True)
class Task:
    """What a strategy may look at; instances are in the order of their ids."""

    pool: Candidates
    signal: Signal
    neighbours: Neighbours
    objective: Objective
    terms: Constraints
    seed: int
    references: Mapping[Need, Reference] = field(default_factory=dict)


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
    """A way to choose: the function, what it needs, and one line for people."""

    choose: Callable[[Task], Choice]
    needs: tuple[Need, ...]
    summary: str


def ranked(task: Task, value_N: np.ndarray, measure: str, *, low_first: bool = False) -> Choice:
    """Take rows by one number, as far as the budget reaches; the smaller id on ties.

    Args:
        task: The task.
        value_N: The number; rows where it is NaN come last.
        measure: What it is, in words.
        low_first: Whether small values are taken first.

    Returns:
        The choice.
    """
    value_N = np.asarray(value_N, dtype=np.float64)
    # NaN sorts last in both directions.
    order_N = np.argsort(value_N if low_first else -value_N, kind="stable")
    order_S = task.terms.purse().take_in_order(order_N.tolist())
    return Choice(order_S, None, measure, value_N, low_first)


def joint_sketches(sketches: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put the sketches of the layers side by side.

    Inner products of the result estimate those of the gradients of all layers together.

    Args:
        sketches: Layer → [N, K²].

    Returns:
        sketch_NE.
    """
    return np.hstack([sketches[layer] for layer in sorted(sketches)])


def unit(x_NE: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; zero rows stay zero.

    Args:
        x_NE: Rows.

    Returns:
        The same in float64, scaled.
    """
    x_NE = np.asarray(x_NE, dtype=np.float64)
    norm_N1 = np.linalg.norm(x_NE, axis=1, keepdims=True)
    return x_NE / np.where(norm_N1 > 0, norm_N1, 1)
