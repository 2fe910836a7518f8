"""Which row of the pool a row of somebody's batch is."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from gradsift.data.example import Example, Plain
from gradsift.data.instances import build_instances
from gradsift.data.pool import Pool
from gradsift.gradients.tokens import IGNORED_LABEL

NO_LIMIT = 2**31
# Characters of a response's end by which it is looked up, and the least of a row that tell it.
ENDING = 16


class RowNames(Protocol):
    """Names the rows of a batch.

    Attributes:
        column: Batch column that has to be taken out before the model is called, or None.
    """

    column: str | None

    def of(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return the name of each row, None for one that is not of the pool.

        Args:
            ids: What the batch column held.
            tokens: Of each row, without padding.
            labels: Of each row.
        """


class ByContent:
    """By a hash of what a row says, where nobody says what it is called."""

    column = None

    def of(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return hashes, equal for equal rows."""
        return [row_key(*row) for row in zip(tokens, labels, strict=True)]


def row_key(tokens_T: torch.Tensor, labels_T: torch.Tensor) -> str:
    """Name a row by what it says.

    Args:
        tokens_T: Its tokens, without padding.
        labels_T: Its labels.

    Returns:
        A hash, equal for equal rows.
    """
    text = f"{tokens_T.tolist()}{(labels_T != IGNORED_LABEL).int().tolist()}"
    return "sha256-" + hashlib.sha256(text.encode()).hexdigest()[:16]


class ByColumn:
    """By a column of the batch: positions in a pool, its instance ids, or anything without one."""

    def __init__(self, column: str, pool: Pool | None):
        """Look up the ids of the pool.

        Args:
            column: Of the batch.
            pool: Where the rows come from, or None.
        """
        self.column, self._pool = column, pool
        self._known = set() if pool is None else {row.instance_id for row in pool.rows}

    def of(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return what the column says.

        Raises:
            ValueError: For an id that the pool does not have.
        """
        # Numbers of whatever library, in whatever box, become Python's own.
        found = [id_.item() if hasattr(id_, "item") else id_ for id_ in _unboxed(ids)]
        return [str(id_) if self._pool is None else self._of_pool(id_) for id_ in found]

    def _of_pool(self, id_: int | str) -> str:
        rows = self._pool.rows
        if isinstance(id_, int) and 0 <= id_ < len(rows):
            return rows[id_].instance_id
        if id_ in self._known:
            return id_
        raise ValueError(
            f"the id {id_!r} in {self.column!r} is no row of the pool: expected a position from 0 "
            f"to {len(rows) - 1}, or an instance id such as {rows[0].instance_id!r}."
        )


class ByText:
    """By what a row says: its tokens, as the loop's tokenizer gives them to a row of the pool.

    A row may have been put into words otherwise (a format of one's own); then it is the row of the
    pool whose response it ends with, and whose prompt stands before that.
    """

    column = None

    def __init__(self, pool: Pool, tokenizer: PreTrainedTokenizerBase, max_length: int, cut: str):
        """Render and tokenize the pool.

        Args:
            pool: Where the rows come from.
            tokenizer: Of the loop.
            max_length: Tokens after which the loop truncates.
            cut: keep_start or keep_end.
        """
        self._tokenizer = tokenizer
        examples = [(row.instance_id, row.example) for row in pool.rows if row.example is not None]
        self._pairs = {id_: pair for id_, example in examples if (pair := _pair(example))}
        self._by_ending: dict[str, list[str]] = defaultdict(list)
        for id_, (_, response) in self._pairs.items():
            self._by_ending[response.strip()[-ENDING:]].append(id_)
        self._ids: dict[tuple[int, ...], list[str]] = defaultdict(list)
        self._first: list[int] = []
        # Questions and answers are a conversation to some tools, and running text to others.
        as_text = [(id_, Plain(*pair)) for id_, pair in self._pairs.items()]
        for rendered in (examples, as_text):
            instances = build_instances(rendered, tokenizer, max_length=max_length, truncation=cut)
            for item in instances.items:
                self._first = self._first or item.input_ids
                ids = self._ids[self._key(item.input_ids)]
                if item.instance_id not in ids:
                    ids.append(item.instance_id)
        self._taken: dict[tuple[int, ...], int] = defaultdict(int)
        self._found_any = False

    def of(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return the row of the pool that each row is; equal rows take turns.

        Raises:
            ValueError: If none is of the pool, in the first batch.
        """
        names = [self._take(tokens_T.tolist()) for tokens_T in tokens]
        self._found_any |= any(name is not None for name in names)
        if not self._found_any:
            raise ValueError(self._none_is_known(tokens[0].tolist()))
        return names

    def require_rows(self, rows: Iterable[Sequence[int]]) -> None:
        """Warn of rows that are not of the pool, before anything is trained on.

        Args:
            rows: Tokens of each row that will be trained on.

        Raises:
            ValueError: If none is.
        """
        rows = list(rows)
        unknown = [row for row in rows if not self._known(row)]
        if rows and len(unknown) == len(rows):
            raise ValueError(self._none_is_known(rows[0]))
        if unknown:
            warnings.warn(
                f"{len(unknown)} of {len(rows)} rows of the loop are not in the pool, and will not "
                f"be recorded; the first: {self._tokenizer.decode(unknown[0])[:200]!r}",
                stacklevel=4,
            )

    def _key(self, tokens: Iterable[int]) -> tuple[int, ...]:
        # Whether an end is added where a template has one already differs between tools.
        key = list(tokens)
        while key and key[-1] == self._tokenizer.eos_token_id:
            key.pop()
        return tuple(key)

    def _known(self, tokens: Sequence[int]) -> list[str]:
        key = self._key(tokens)
        if key not in self._ids:
            self._ids[key] = self._by_words(key)
        return self._ids[key]

    def _by_words(self, tokens: Sequence[int]) -> list[str]:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        endings = (text[-n:] for n in range(1, ENDING + 1))
        lengths: dict[str, int] = {}
        for id_ in {id_: None for ending in endings for id_ in self._by_ending.get(ending, ())}:
            prompt, response = (part.strip() for part in self._pairs[id_])
            length = len(prompt) + len(response)
            before = text[: len(text) - len(response)]
            if length >= ENDING and text.endswith(response) and prompt in before:
                lengths[id_] = length
        # Of several, the one of which most is there; those that say the same take turns.
        return [id_ for id_, length in lengths.items() if length == max(lengths.values())]

    def _take(self, tokens: Sequence[int]) -> str | None:
        ids, key = self._known(tokens), self._key(tokens)
        if not ids:
            return None
        self._taken[key] += 1
        return ids[(self._taken[key] - 1) % len(ids)]

    def _none_is_known(self, tokens: Sequence[int]) -> str:
        return (
            "the loop's rows are not those of the pool: rendered by the loop's tokenizer and chat "
            "template, no row has the same tokens, and none ends with a response of the pool. A "
            f"row of the loop: {self._tokenizer.decode(tokens)[:200]!r}; of the pool: "
            f"{self._tokenizer.decode(self._first)[:200]!r}. Give the pool of the file that is "
            "trained on, or name a batch column with `ids`."
        )


def _pair(example: Example) -> tuple[str, str] | None:
    """Return the last prompt and the last response of a row, if they are texts."""
    if isinstance(example, Plain):
        return example.prompt, example.response
    by_role = {message["role"]: message.get("content") for message in example.messages}
    prompt, response = by_role.get("user", ""), by_role.get("assistant")
    is_text = isinstance(prompt, str) and isinstance(response, str) and response.strip()
    return (prompt, response) if is_text else None


def names_by_text(pool: Pool, trainer: Trainer) -> ByText:
    """Find rows by what a trainer's own tokenizer makes of them.

    Args:
        pool: Where the rows come from.
        trainer: Of transformers or trl.

    Returns:
        The names.

    Raises:
        ValueError: If the trainer has no tokenizer, or trains on none of the pool's rows.
    """
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            "the trainer has no tokenizer (processing_class), so its rows cannot be found in the "
            "pool by what they say: give it one, or name a batch column with `ids`."
        )
    args = trainer.args
    limit = getattr(args, "max_length", None) or NO_LIMIT
    names = ByText(pool, tokenizer, limit, getattr(args, "truncation_mode", "keep_start"))
    dataset = trainer.train_dataset
    if "input_ids" in (getattr(dataset, "column_names", None) or ()):
        names.require_rows(_rows_of(dataset))
    return names


def _rows_of(dataset: Any) -> Iterable[Sequence[int]]:
    columns = ("input_ids", *({"seq_lengths"} & set(dataset.column_names)))
    for row in dataset.select_columns(list(columns)):
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            yield row["input_ids"][start : start + length]
            start += length


def _unboxed(ids: Any) -> list[Any]:
    values = ids.flatten().tolist() if hasattr(ids, "flatten") else list(ids)
    return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
            for value in values]  # fmt: skip
