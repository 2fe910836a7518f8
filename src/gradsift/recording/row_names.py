"""What a row of a loop's batch is called: by its content, or by a column of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.seals import short_sha256
from gradsift.terms import IGNORED_LABEL


class RowNames(Protocol):
    """Names the rows of a batch.

    Attributes:
        column: Batch column that has to be taken out before the model is called, or None.
    """

    column: str | None

    def lookup(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return the name of each row, None for one that is not of the pool.

        Given what the batch column held, and each row's tokens and labels, without padding.
        """


class ByContent:
    """By a hash of what a row says, where nobody says what it is called."""

    column = None

    def lookup(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return hashes, equal for equal rows."""
        return [row_key(*row) for row in zip(tokens, labels, strict=True)]


def row_key(tokens_T: torch.Tensor, labels_T: torch.Tensor) -> str:
    """Name a row by a hash of its tokens, and of which of them are labelled."""
    text = f"{tokens_T.tolist()}{(labels_T != IGNORED_LABEL).int().tolist()}"
    return f"sha256-{short_sha256(text)}"


class ByColumn:
    """By a column of the batch: positions in a pool, its instance ids, or anything without one."""

    def __init__(self, column: str, pool: Pool | None):
        """Look up the ids of the pool."""
        self.column, self._pool = column, pool
        self._known = set() if pool is None else {row.instance_id for row in pool.rows}

    def lookup(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return what the column says; refuse an id that the pool does not have."""
        # Numbers of whatever library, in whatever box, become Python's own.
        plain = [id_.item() if hasattr(id_, "item") else id_ for id_ in unboxed(ids)]
        return [str(id_) if self._pool is None else self._of_pool(id_) for id_ in plain]

    def _of_pool(self, id_: int | str) -> str:
        rows = self._pool.rows
        if isinstance(id_, int) and 0 <= id_ < len(rows):
            return rows[id_].instance_id
        if id_ in self._known:
            return id_
        raise GradsiftError(
            f"the id {id_!r} in {self.column!r} is no row of the pool: expected a position from 0 "
            f"to {len(rows) - 1}, or an instance id such as {rows[0].instance_id!r}."
        )


def unboxed(ids: Any) -> list[Any]:
    """Return ids one by one, out of whatever a loop has put them into."""
    if isinstance(ids, int | str):
        return [ids]
    values = ids.flatten().tolist() if hasattr(ids, "flatten") else list(ids)
    return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
            for value in values]  # fmt: skip
