"""What a selection starts from: the arrays of a pool, and the settings.

Shapes: N instances, D content features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradsift.selection.budget import Budget
from gradsift.selection.signal import Side


@dataclass(frozen=True)
class Candidates:
    """The instances that can be selected, as arrays in one order; checked when it is made.

    Attributes:
        ids: N different instance ids.
        statistics: layer → statistic → [N], finite.
        features_ND: Content features, finite.
        n_tokens: [N] all tokens of an instance, its cost under a budget of tokens; above 0.
        n_response_tokens: [N].
        step: [N] optimizer updates made before the gradient was taken.
        loss: [N] instance loss in nats for each response token.

    Raises:
        ValueError: If there is no instance, an id is there twice, or a value is not finite; the
            message names the instance.
    """

    ids: Sequence[str]
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    features_ND: np.ndarray
    n_tokens: np.ndarray
    n_response_tokens: np.ndarray
    step: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise ValueError(
                "no instance can be selected: every row was dropped or has a gradient that is "
                "not finite. Look at the reasons in pool.parquet."
            )
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))
            raise ValueError(f"instance id {twice!r} is there twice, expected once.")
        for name, array in self._arrays().items():
            self._check(name, array)
        if np.min(self.n_tokens) < 1:
            worst = self.ids[int(np.argmin(self.n_tokens))]
            raise ValueError(f"instance {worst!r} has no tokens, expected at least 1.")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Candidates:
        """Return some instances in another order.

        Args:
            rows: Positions.

        Returns:
            A pool of these.
        """
        return Candidates(
            ids=[self.ids[row] for row in rows],
            statistics={
                layer: {name: np.asarray(array)[rows] for name, array in by_name.items()}
                for layer, by_name in self.statistics.items()
            },
            features_ND=np.asarray(self.features_ND)[rows],
            n_tokens=np.asarray(self.n_tokens)[rows],
            n_response_tokens=np.asarray(self.n_response_tokens)[rows],
            step=np.asarray(self.step)[rows],
            loss=np.asarray(self.loss)[rows],
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        by_statistic = {
            f"{layer} {name}": array
            for layer, by_name in self.statistics.items()
            for name, array in by_name.items()
        }
        return by_statistic | {
            "content features": self.features_ND,
            "n_tokens": self.n_tokens,
            "n_response_tokens": self.n_response_tokens,
            "step": self.step,
            "loss": self.loss,
        }

    def _check(self, name: str, array: np.ndarray) -> None:
        if len(array) != len(self.ids):
            raise ValueError(f"{name} has {len(array)} entries for {len(self.ids)} instances.")
        finite_N = np.isfinite(array).reshape(len(self.ids), -1).all(axis=1)
        if not finite_N.all():
            raise ValueError(
                f"{name} of instance {self.ids[int(np.argmin(finite_N))]!r} is not finite: leave "
                "the instance out, or capture again in float32."
            )


@dataclass(frozen=True)
class Settings:
    """The parameters of a selection, see `Objective` for the coefficients.

    Attributes:
        budget: How much to select.
        strategy: A name in STRATEGIES.
        side: What makes a good gradient, see `gradient_score`.
        layers: Layers whose statistics make the signal; None for all there are.
        signal_statistics: Statistics that make the signal, see `combined_signal`.
        alpha: Weight of the gradient score.
        beta: Weight of content diversity.
        gamma: Weight of similarity reduction.
        near_threshold: Cosine above which two instances count as near-duplicates.
        seed: For the strategy random, and for the random subset that losses are compared with.
    """

    budget: Budget
    strategy: str = "grads"
    side: Side = "representative"
    layers: tuple[str, ...] | None = None
    signal_statistics: tuple[str, ...] = ("l2_norm",)
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    near_threshold: float = 0.8
    seed: int = 0
