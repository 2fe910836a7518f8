"""What a selection starts from: the arrays of a pool.

Shapes: N instances, D content features, K² entries of a gradient sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradsift.errors import GradsiftError


@dataclass(frozen=True)
class Candidates:
    """The instances that can be selected, as arrays in ascending order of their ids.

    Checked when it is made.

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
        sketches: layer → [N, K²], finite; may be empty.
        losses: `response`, `alone` and `text` → [N], of the further pass; may be empty. `alone` is
            NaN where there is none.

    Raises:
        ValueError: If there is no instance, an id is there twice or out of order, or a value is
            not finite; the message names the instance.
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
    losses: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise GradsiftError(
                "no instance can be selected: every row was dropped or has a gradient that is "
                "not finite. Look at the reasons in pool.parquet."
            )
        for before, after in zip(self.ids, self.ids[1:], strict=False):
            if before == after:
                raise GradsiftError(f"instance id {after!r} is there twice, expected once.")
            if before > after:
                raise GradsiftError(
                    f"instance id {after!r} comes after {before!r}: sort them first."
                )
        for name, array in self._arrays().items():
            self._check(name, array)
        if np.min(self.n_tokens) < 1:
            worst = self.ids[int(np.argmin(self.n_tokens))]
            raise GradsiftError(f"instance {worst!r} has no tokens, expected at least 1.")

    def __len__(self) -> int:
        return len(self.ids)

    def covariate(self, name: str) -> np.ndarray:
        """Return what a gradient may depend on beside its instance's worth.

        Args:
            name: response_length, prompt_length or step.

        Returns:
            values_N.
        """
        return {
            "response_length": self.n_response_tokens,
            "prompt_length": self.n_tokens - self.n_response_tokens,
            "step": self.step,
        }[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        by_statistic = {
            f"{layer} {name}": array
            for layer, by_name in self.statistics.items()
            for name, array in by_name.items()
        }
        arrays = by_statistic | {
            "n_tokens": self.n_tokens,
            "n_response_tokens": self.n_response_tokens,
            "step": self.step,
            "loss": self.loss,
            "el2n": self.el2n,
        }
        if self.features_ND is not None:
            arrays["content features"] = self.features_ND
        arrays |= {f"{layer} sketch": sketch for layer, sketch in self.sketches.items()}
        # A response of one token has no loss of its own.
        return arrays | {f"{k} loss": array for k, array in self.losses.items() if k != "alone"}

    def _check(self, name: str, array: np.ndarray) -> None:
        if len(array) != len(self.ids):
            raise GradsiftError(f"{name} has {len(array)} entries for {len(self.ids)} instances.")
        finite_N = np.isfinite(array).reshape(len(self.ids), -1).all(axis=1)
        if not finite_N.all():
            raise GradsiftError(
                f"{name} of instance {self.ids[int(np.argmin(finite_N))]!r} is not finite: leave "
                "the instance out, or capture again in float32."
            )
