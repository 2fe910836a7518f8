"""What a selection starts from: the arrays of a pool, and what it may use beside them.

Shapes: N instances, M rows of a reference, D content features, K² entries of a gradient sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.selection.density import Density
from gradsift.selection.neighbours import Neighbours

# One token may have no loss of its own, a row no prompt, a prompt no other beside it.
LOSSES_OF_SOME_ROWS = ("alone", "mismatched", "mismatched_again")


class Need(Enum):
    """What a strategy or a score may need beyond the statistics and the neighbour graph."""

    FEATURES = "content features"
    SKETCHES = "gradient sketches"
    CLUSTERS = "clusters of content"
    SOURCES = "a source for each row"
    REFERENCE_LOSSES = "reference losses"
    ANCHOR = "a retention anchor"
    TARGET = "a target set"


@dataclass(frozen=True)
class Candidates:
    """The instances that can be selected, as arrays in ascending order of their ids.

    Attributes:
        ids: N different instance ids, ascending.
        statistics: layer → statistic → [N], finite.
        n_tokens: [N] all tokens of an instance, its cost under a budget of tokens; above 0.
        n_response_tokens: [N].
        step: [N] optimizer updates made before the gradient was taken.
        loss: [N] instance loss in nats for each response token.
        el2n: [N] mean ‖softmax − one-hot‖₂ over the response tokens.
        source: [N] where each row comes from; None where the pool does not say.
        language: [N] as `source`.
        features_ND: Content features, finite; None where no strategy asks for them.
        cluster_N: Cluster of content of each instance, from 0; None where nothing asks for it.
        sketches: layer → [N, K²], finite; may be empty.
        reference_losses: name → [N]; may be empty. Those of LOSSES_OF_SOME_ROWS are NaN where there
            is none.
    """

    ids: Sequence[str]
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    n_tokens: np.ndarray
    n_response_tokens: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    el2n: np.ndarray
    source: Sequence[str] | None = None
    language: Sequence[str] | None = None
    features_ND: np.ndarray | None = None
    sketches: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference_losses: Mapping[str, np.ndarray] = field(default_factory=dict)
    cluster_N: np.ndarray | None = None
    # Magnitude and density that were computed of these, by the settings that made them.
    densities: dict[tuple, tuple[np.ndarray, Density]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise GradsiftError(
                "no instance can be selected: every row was dropped or has a gradient that is "
                "not finite. Look at the reasons in pool.parquet."
            )
        for before, after in zip(self.ids, self.ids[1:], strict=False):
            assert before != after, f"instance id {after!r} is there twice, expected once"
            assert before < after, f"instance id {after!r} comes after {before!r}: sort them first"
        for name, array in self._arrays().items():
            self._check(name, array)
        if np.min(self.n_tokens) < 1:
            worst = self.ids[int(np.argmin(self.n_tokens))]
            raise GradsiftError(f"instance {worst!r} has no tokens, expected at least 1.")

    def __len__(self) -> int:
        return len(self.ids)

    def covariate(self, name: str) -> np.ndarray:
        """Return what a gradient may depend on beside its instance's worth."""
        return {
            "response_length": self.n_response_tokens,
            "prompt_length": self.n_tokens - self.n_response_tokens,
            "step": self.step,
        }[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            f"{layer} {name}": array
            for layer, by_name in self.statistics.items()
            for name, array in by_name.items()
        }
        names = ("n_tokens", "n_response_tokens", "step", "loss", "el2n")
        arrays |= {name: getattr(self, name) for name in names}
        if self.features_ND is not None:
            arrays["content features"] = self.features_ND
        if self.cluster_N is not None:
            arrays["cluster"] = self.cluster_N
        arrays |= {f"{layer} sketch": sketch for layer, sketch in self.sketches.items()}
        losses = {
            name: loss
            for name, loss in self.reference_losses.items()
            if name not in LOSSES_OF_SOME_ROWS
        }
        return arrays | {f"{name} loss": loss for name, loss in losses.items()}

    def _check(self, name: str, array: np.ndarray) -> None:
        n = len(self.ids)
        assert len(array) == n, f"{name} has {len(array)} entries for {n} instances"
        finite_N = np.isfinite(array).reshape(n, -1).all(axis=1)
        if not finite_N.all():
            raise GradsiftError(
                f"{name} of instance {self.ids[int(np.argmin(finite_N))]!r} is not finite: leave "
                "the instance out, or capture again in float32."
            )


@dataclass(frozen=True)
class Reference:
    """Rows of another capture, with the same model; `source` is None where they have none."""

    sketches: Mapping[str, np.ndarray]  # layer → [M, K²]
    features_MD: np.ndarray
    step_M: np.ndarray
    source: Sequence[str] | None = None


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
    references: Mapping[Need, Reference] = field(default_factory=dict)
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
