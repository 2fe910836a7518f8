"""What the answers of a subset are like beside those of its pool, and what ought to worry the user.

From what `data.answers` tells of each row. A warning needs two things: a difference that matters,
and one that a random subset of that size shows less than once in a hundred times (`chance`).

Shapes: N instances of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradsift.selection.chance import (
    RARE,
    RARE_DEVIATIONS_EITHER_SIDE,
    chance_of_so_many,
    deviations,
)

# Answers of a kind are told where their share grew by this factor, and they are so many at least.
_GROWN = 1.5
_FEWEST = 3
# The same of the share of an answer's words that stand in its prompt: a difference of so much.
_REPEATS_MORE = 0.1


@dataclass(frozen=True)
class Share:
    """How many answers are of a kind. Pairs are (pool, subset).

    Attributes:
        of_kind: Of that kind.
        known: Of which it can be told.
    """

    of_kind: tuple[int, int]
    known: tuple[int, int]

    @property
    def shares(self) -> tuple[float, float]:
        """As shares; 0 where it can be told of none."""
        pool, subset = (a / b if b else 0.0 for a, b in zip(self.of_kind, self.known, strict=True))
        return pool, subset

    @property
    def has_grown(self) -> bool:
        """Whether the subset has more of them than it ought to, and than chance makes."""
        pool, subset = self.shares
        grown = self.of_kind[1] >= _FEWEST and subset > _GROWN * pool
        return grown and self.chance < RARE

    @property
    def chance(self) -> float:
        """How often a random subset has as many."""
        return chance_of_so_many(self.of_kind[1], self.known[1], self.of_kind[0], self.known[0])


@dataclass(frozen=True)
class Answers:
    """Answers of a subset beside those of its pool.

    Attributes:
        repeats: Mean share of an answer's words that stand in its prompt, (pool, subset); None
            where no row has a prompt and an answer.
        repeats_deviations: How far the subset's is above the pool's, beside what chance does.
        boilerplate: Whose last answer is a refusal or the like.
        near_empty: Whose answers together say next to nothing.
        other_language: Whose last answer is in another language than its prompt.
    """

    repeats: tuple[float, float] | None
    repeats_deviations: float
    boilerplate: Share
    near_empty: Share
    other_language: Share

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know: values by name; pairs are `pool` and `subset`."""
        shares = {
            name: dict(zip(("pool", "subset"), getattr(self, name).shares, strict=True))
            for name in ("boilerplate", "near_empty", "other_language")
        }
        repeats = self.repeats and dict(zip(("pool", "subset"), self.repeats, strict=True))
        return {"repeats": repeats, **shares}

    def pairs(self) -> list[tuple[str, tuple[float, float]]]:
        """Return what a table shows: label, and shares of pool and of subset."""
        shown = [
            ("last answers that refuse or cannot say", self.boilerplate.shares),
            ("answers of fewer than 15 letters", self.near_empty.shares),
            ("last answers in another language than asked", self.other_language.shares),
        ]
        if self.repeats is not None:
            shown.insert(0, ("the last answer's words that are in its prompt", self.repeats))
        return shown

    def warnings(self) -> list[str]:
        """Say what ought to worry the user."""
        lines = []
        if self.repeats is not None and self.repeats_deviations > RARE_DEVIATIONS_EITHER_SIDE:
            pool, subset = self.repeats
            if subset - pool >= _REPEATS_MORE:
                lines.append(
                    f"last answers repeat the question: {100 * subset:.0f} % of their words stand "
                    f"in the prompt, {100 * pool:.0f} % in the pool; look at some of them"
                )
        for share, what in (
            (
                self.boilerplate,
                "rows refuse in their last answer, or say that they cannot tell "
                '("as an AI", "the text does not"; a short list of phrases)',
            ),
            (
                self.near_empty,
                "rows say next to nothing in all their answers (fewer than 15 letters or digits)",
            ),
            (
                self.other_language,
                "rows have their last answer in another language than its prompt",
            ),
        ):
            if share.has_grown:
                pool, subset = share.shares
                lines.append(
                    f"{share.of_kind[1]} of the kept {what}: {100 * subset:.1f} % of the subset, "
                    f"{100 * pool:.1f} % of the pool"
                )
        return lines


def answers_of(traits: Mapping[str, np.ndarray], selected_N: np.ndarray) -> Answers:
    """Compare the answers of a subset with those of its pool.

    Args:
        traits: `repeats`, `boilerplate`, `near_empty`, `other_language` → [N], of which the last
            three are 0 or 1; NaN where it cannot be told.
        selected_N: Which rows are selected.
    """
    repeats_N = traits["repeats"]
    known_N = ~np.isnan(repeats_N)
    repeats, above = None, 0.0
    if (known_N & selected_N).any():
        values, chosen = repeats_N[known_N], selected_N[known_N]
        repeats = float(values.mean()), float(values[chosen].mean())
        above = deviations(values, chosen)
    return Answers(
        repeats,
        above,
        *(
            _share(traits[name], selected_N)
            for name in ("boilerplate", "near_empty", "other_language")
        ),
    )


def _share(trait_N: np.ndarray, selected_N: np.ndarray) -> Share:
    known_N, of_kind_N = ~np.isnan(trait_N), trait_N == 1
    return Share(
        (int(of_kind_N.sum()), int((of_kind_N & selected_N).sum())),
        (int(known_N.sum()), int((known_N & selected_N).sum())),
    )
