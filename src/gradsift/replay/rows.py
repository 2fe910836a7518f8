"""Rows of replay, and what of them stands beside the rows of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradsift.data.example import Example
from gradsift.data.tokenization import Instance
from gradsift.replay.shares import missed, share_of, spread

# Before the ids of rows of replay: those of an arm's own may be the same.
MARK = "replay/"


@dataclass(frozen=True)
class ReplayRow:
    """A row of replay.

    Attributes:
        instance: Its tokens, as they are trained on; its id begins with MARK.
        example: What it says; None where only its size is known yet.
        source: Where it says that it comes from.
        content_hash: Equal for rows that say the same; None for what a model wrote.
        finished: Whether it ends by itself; a model may have been stopped while it wrote.
    """

    instance: Instance
    example: Example | None
    source: str | None = None
    content_hash: str | None = None
    finished: bool = True


@dataclass(frozen=True)
class Replayed:
    """Rows of replay beside those of an arm.

    Attributes:
        of: Where they come from, as the user said it.
        ratio: The share that was asked for.
        n_own: Tokens of the arm's own rows that have a loss.
    """

    rows: tuple[ReplayRow, ...] = field(repr=False)
    of: str
    ratio: float
    n_own: int

    @property
    def instances(self) -> list[Instance]:
        """Their tokens."""
        return [row.instance for row in self.rows]

    @property
    def n_trained(self) -> int:
        """Their tokens that have a loss."""
        return sum(item.n_response_tokens for item in self.instances)

    @property
    def share(self) -> float:
        """Their share of the tokens that have a loss."""
        return share_of(self.n_trained, self.n_own)

    def summary(self) -> dict[str, Any]:
        """Return what a program wants to know."""
        return {
            "rows_of": self.of,
            "ratio": self.ratio,
            "share": self.share,
            "n_rows": len(self.rows),
            "n_tokens": sum(len(item.input_ids) for item in self.instances),
        }

    def warning(self) -> str | None:
        """Return what is to be said where whole rows do not come to the ratio."""
        if any(row.example is None for row in self.rows):
            return None
        return missed(self.ratio, self.share, self.of)


def mixed(own: Sequence[Instance], replayed: Replayed | None) -> list[Instance]:
    """Return an arm's own rows in their order, with those of replay evenly between them."""
    return list(own) if replayed is None else spread(own, replayed.instances)
