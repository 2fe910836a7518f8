"""Which row of the pool a row of somebody's batch is."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from gradsift.data.example import Example, Plain
from gradsift.data.pool import Pool
from gradsift.data.tokenization import build_instances
from gradsift.errors import GradsiftError
from gradsift.terms import IGNORED_LABEL
from gradsift.utils import short_sha256

NO_LIMIT = 2**31
# Characters of a response's end by which it is looked up, and the least of a row that tell it.
ENDING = 16
# Rows of a stream after which it is no stream of the pool's.
ROWS_TO_TRY = 256


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
    return f"sha256-{short_sha256(text)}"


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
        found = [id_.item() if hasattr(id_, "item") else id_ for id_ in unboxed(ids)]
        return [str(id_) if self._pool is None else self._of_pool(id_) for id_ in found]

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


@dataclass(frozen=True)
class _Form:
    """A row of the pool in one of its forms: tokens, and which of them are labelled."""

    says: tuple[str, ...]
    labelled: tuple[bool, ...]


@dataclass(frozen=True)
class _Fit:
    """How the turns of a row of the pool stand in a row of the loop.

    Attributes:
        end: Of the last prompt.
        gap: What the loop writes between it and the response.
        length: Of all turns together.
    """

    end: int
    gap: str
    length: int


class ByText:
    """By what a row says: its tokens, as the loop's tokenizer gives them to a row of the pool.

    A row may have been put into words otherwise (a format of one's own); then it is the row of the
    pool all of whose turns stand in it in their order, the last one at its end. Rows of the pool
    that say the same take turns; where rows that say different things fit equally, none is taken.
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
        turns = {id_: turns for id_, example in examples if (turns := _turns(example))}
        # Ids of the rows that say the same.
        self._ids: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for id_, says in turns.items():
            self._ids[says].append(id_)
        self._by_ending: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for says in self._ids:
            self._by_ending[says[-1][-ENDING:]].append(says)
        self._forms: dict[tuple[int, ...], set[_Form]] = defaultdict(set)
        self._first: list[int] = []
        # Questions and answers are a conversation to some tools, and running text to others.
        pairs = [
            (id_, Plain(*pair)) for id_, example in examples if (pair := _pair(example)) is not None
        ]
        for rendered in (examples, pairs):
            instances = build_instances(rendered, tokenizer, max_length=max_length, truncation=cut)
            for item in instances.items:
                self._first = self._first or item.input_ids
                key = self._key(item.input_ids)
                labelled = tuple(label != IGNORED_LABEL for label in item.labels[: len(key)])
                says = turns.get(item.instance_id, (item.instance_id,))
                self._ids.setdefault(says, [item.instance_id])
                self._forms[key].add(_Form(says, labelled))
        self._gap: str | None = None
        self._owner: dict[str, tuple[int, ...]] = {}
        self._mine: dict[tuple[int, ...], list[str]] = defaultdict(list)
        self._times: dict[tuple[int, ...], int] = defaultdict(int)
        self._is_of_pool = False
        self._n_tried = 0

    def of(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return the row of the pool that each row is.

        Raises:
            ValueError: If none of the first rows is of the pool.
        """
        names = [
            self._take(tokens_T.tolist(), (labels_T != IGNORED_LABEL).tolist())
            for tokens_T, labels_T in zip(tokens, labels, strict=True)
        ]
        self._is_of_pool |= any(name is not None for name in names)
        self._n_tried += len(names)
        if not self._is_of_pool and self._n_tried >= ROWS_TO_TRY:
            raise GradsiftError(self._none_is_known(self._n_tried, tokens[0].tolist()))
        return names

    def require_rows(self, rows: Iterable[Sequence[int]]) -> None:
        """Warn of rows that are not of the pool, before anything is trained on.

        Args:
            rows: Tokens of each row that will be trained on.

        Raises:
            ValueError: If none is.
        """
        rows = list(rows)
        # A loop writes the same between prompt and response in every row.
        others = (key for row in rows if (key := self._key(row)) not in self._forms)
        gaps = Counter(fit.gap for key in others for fit in self._fits(key).values())
        self._gap = gaps.most_common(1)[0][0] if gaps else None
        unknown = [row for row in rows if not self._candidates(row, None)]
        if rows and len(unknown) == len(rows):
            raise GradsiftError(self._none_is_known(len(rows), rows[0]))
        self._is_of_pool = True
        if unknown:
            warnings.warn(
                f"{len(unknown)} of {len(rows)} rows of the loop are not in the pool, or fit "
                "several rows of it that differ, and will not be recorded (a batch column named by "
                f"`ids` would tell them); the first: {self._tokenizer.decode(unknown[0])[:200]!r}",
                stacklevel=4,
            )

    def _key(self, tokens: Iterable[int]) -> tuple[int, ...]:
        # Whether an end is added where a template has one already differs between tools.
        key = list(tokens)
        while key and key[-1] == self._tokenizer.eos_token_id:
            key.pop()
        return tuple(key)

    def _candidates(self, tokens: Sequence[int], labelled: Sequence[bool] | None) -> list[str]:
        """Return the ids of the rows of the pool that say what a row says."""
        key = self._key(tokens)
        if key not in self._forms:
            says = self._by_words(key)
            self._forms[key] = set() if says is None else {_Form(says, ())}
        forms = self._forms[key]
        if labelled is not None and len({form.says for form in forms}) > 1:
            # The same tokens, divided otherwise between prompt and response.
            forms = {form for form in forms if form.labelled == tuple(labelled[: len(key)])}
        says = {form.says for form in forms}
        if labelled is None:
            return [id_ for one in says for id_ in self._ids[one]]
        return self._ids[next(iter(says))] if len(says) == 1 else []

    def _by_words(self, tokens: Sequence[int]) -> tuple[str, ...] | None:
        fits = self._fits(tokens)
        if self._gap is not None:
            fits = {says: fit for says, fit in fits.items() if fit.gap == self._gap}
        else:  # Of a stream it is not known. Little that is said is said by chance, too.
            fits = {says: fit for says, fit in fits.items() if fit.length >= ENDING}
        nearest = max((fit.end for fit in fits.values()), default=0)
        fits = {says: fit for says, fit in fits.items() if fit.end == nearest}
        longest = max((fit.length for fit in fits.values()), default=0)
        best = [says for says, fit in fits.items() if fit.length == longest]
        return best[0] if len(best) == 1 else None

    def _fits(self, tokens: Sequence[int]) -> dict[tuple[str, ...], _Fit]:
        """Return what the pool says that also stands in a row."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        endings = (text[-n:] for n in range(1, ENDING + 1))
        says = {says for ending in endings for says in self._by_ending.get(ending, ())}
        return {one: fit for one in says if (fit := _fit(one, text)) is not None}

    def _take(self, tokens: Sequence[int], labelled: Sequence[bool]) -> str | None:
        key, ids = self._key(tokens), self._candidates(tokens, labelled)
        free = next((id_ for id_ in ids if id_ not in self._owner), None)
        if free is not None:
            self._owner[free] = key
            self._mine[key].append(free)
            return free
        # Again in a later epoch; an id that another text has is not given twice.
        mine = [id_ for id_ in self._mine[key] if id_ in ids]
        self._times[key] += 1
        return mine[(self._times[key] - 1) % len(mine)] if mine else None

    def _none_is_known(self, n_rows: int, tokens: Sequence[int]) -> str:
        ours, theirs = (self._tokenizer.decode(t)[:200] for t in (self._first, tokens))
        return (
            f"none of {n_rows} rows of the loop is one of the pool: rendered by the loop's "
            "tokenizer and chat template no row has the same tokens, and no row's turns stand in "
            f"one of the loop. A row of the loop: {theirs!r}; of the pool: {ours!r}. Give the pool "
            "of the file that is trained on, or name a batch column with `ids`."
        )


def _turns(example: Example) -> tuple[str, ...] | None:
    """Return all that a row says, in order, if it is text that ends with a response."""
    if isinstance(example, Plain):
        turns = [example.prompt, example.response]
    else:
        turns = [message.get("content") for message in example.messages]
    if not all(isinstance(turn, str) for turn in turns):
        return None
    says = tuple(stripped for turn in turns if (stripped := turn.strip()))
    return says if turns[-1].strip() else None


def _pair(example: Example) -> tuple[str, str] | None:
    """Return prompt and response of a conversation of one turn each."""
    if isinstance(example, Plain) or [m["role"] for m in example.messages] != ["user", "assistant"]:
        return None
    prompt, response = (message.get("content") for message in example.messages)
    return (prompt, response) if isinstance(prompt, str) and isinstance(response, str) else None


def _fit(says: tuple[str, ...], text: str) -> _Fit | None:
    """Return how turns stand in a text, the last one at its end; None if they do not."""
    if not text.endswith(says[-1]):
        return None
    begins = end = len(text) - len(says[-1])
    nearest = 0
    for turn in reversed(says[:-1]):
        at = text.rfind(turn, 0, begins)
        if at < 0:
            return None
        nearest = nearest or at + len(turn)
        begins = at
    return _Fit(nearest, text[nearest:end], sum(map(len, says)))


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
        raise GradsiftError(
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


def unboxed(ids: Any) -> list[Any]:
    """Return ids one by one, out of whatever a loop has put them into."""
    if isinstance(ids, int | str):
        return [ids]
    values = ids.flatten().tolist() if hasattr(ids, "flatten") else list(ids)
    return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
            for value in values]  # fmt: skip
