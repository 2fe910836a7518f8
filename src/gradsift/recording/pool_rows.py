"""Which row of the pool a row of a loop's batch is, by what it says."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from gradsift.data.example import Example, Plain
from gradsift.data.pool import Pool
from gradsift.data.tokenization import build_instances
from gradsift.errors import GradsiftError
from gradsift.terms import IGNORED_LABEL

NO_LIMIT = 2**31
# Characters of a response's end by which it is looked up, and the least of a row that tell it.
ENDING = 16
# Rows of a stream after which it is no stream of the pool's.
ROWS_TO_TRY = 256

# All that a row says, in order.
Turns = tuple[str, ...]


@dataclass(frozen=True)
class _Form:
    """What a row of the pool says in one of its forms, and which of its tokens are labelled."""

    turns: Turns
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

    def __init__(
        self, pool: Pool, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str
    ):
        """Render and tokenize the pool as the loop does."""
        self._tokenizer = tokenizer
        examples = [(row.instance_id, row.example) for row in pool.rows if row.example is not None]
        turns_of = {id_: turns for id_, example in examples if (turns := _turns(example))}
        # Ids of the rows that say the same.
        self._ids: dict[Turns, list[str]] = defaultdict(list)
        for id_, turns in turns_of.items():
            self._ids[turns].append(id_)
        self._by_ending: dict[str, list[Turns]] = defaultdict(list)
        for turns in self._ids:
            self._by_ending[turns[-1][-ENDING:]].append(turns)
        self._forms: dict[tuple[int, ...], set[_Form]] = defaultdict(set)
        self._first_row: list[int] = []
        # Questions and answers are a conversation to some tools, and running text to others.
        pairs = [
            (id_, Plain(*pair)) for id_, example in examples if (pair := _pair(example)) is not None
        ]
        for rendered in (examples, pairs):
            instances = build_instances(
                rendered, tokenizer, max_length=max_length, truncation=truncation
            )
            for item in instances.items:
                self._first_row = self._first_row or item.input_ids
                key = self._key(item.input_ids)
                labelled = tuple(label != IGNORED_LABEL for label in item.labels[: len(key)])
                turns = turns_of.get(item.instance_id, (item.instance_id,))
                self._ids.setdefault(turns, [item.instance_id])
                self._forms[key].add(_Form(turns, labelled))
        self._gap: str | None = None
        self._owner: dict[str, tuple[int, ...]] = {}
        self._owned: dict[tuple[int, ...], list[str]] = defaultdict(list)
        self._n_repeats: dict[tuple[int, ...], int] = defaultdict(int)
        self._is_of_pool = False
        self._n_tried = 0

    def lookup(
        self, ids: Any, tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> list[str | None]:
        """Return the row of the pool that each row is; refuse if none of the first rows is one."""
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
        """Warn of rows that are not of the pool, before anything is trained on; refuse if all."""
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
            turns = self._turns_in(key)
            self._forms[key] = set() if turns is None else {_Form(turns, ())}
        forms = self._forms[key]
        if labelled is not None and len({form.turns for form in forms}) > 1:
            # The same tokens, divided otherwise between prompt and response.
            forms = {form for form in forms if form.labelled == tuple(labelled[: len(key)])}
        different = {form.turns for form in forms}
        if labelled is None:
            # Labels, which are not known yet, may tell them apart, but not where they are the same.
            masks: dict[tuple[bool, ...], set[Turns]] = defaultdict(set)
            for form in forms:
                masks[form.labelled].add(form.turns)
            told = {turns for same in masks.values() if len(same) == 1 for turns in same}
            return [id_ for turns in told for id_ in self._ids[turns]]
        return self._ids[next(iter(different))] if len(different) == 1 else []

    def _turns_in(self, tokens: Sequence[int]) -> Turns | None:
        """Return the turns of the pool that fit a row best, if only one does."""
        fits = self._fits(tokens)
        if self._gap is not None:
            fits = {turns: fit for turns, fit in fits.items() if fit.gap == self._gap}
        else:  # Of a stream it is not known. Little that is said is said by chance, too.
            fits = {turns: fit for turns, fit in fits.items() if fit.length >= ENDING}
        nearest = max((fit.end for fit in fits.values()), default=0)
        fits = {turns: fit for turns, fit in fits.items() if fit.end == nearest}
        longest = max((fit.length for fit in fits.values()), default=0)
        best = [turns for turns, fit in fits.items() if fit.length == longest]
        return best[0] if len(best) == 1 else None

    def _fits(self, tokens: Sequence[int]) -> dict[Turns, _Fit]:
        """Return what the pool says that also stands in a row."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        endings = (text[-n:] for n in range(1, ENDING + 1))
        possible = {turns for ending in endings for turns in self._by_ending.get(ending, ())}
        return {turns: fit for turns in possible if (fit := _fit(turns, text)) is not None}

    def _take(self, tokens: Sequence[int], labelled: Sequence[bool]) -> str | None:
        key, ids = self._key(tokens), self._candidates(tokens, labelled)
        free = next((id_ for id_ in ids if id_ not in self._owner), None)
        if free is not None:
            self._owner[free] = key
            self._owned[key].append(free)
            return free
        # Again in a later epoch; an id that another text has is not given twice.
        owned = [id_ for id_ in self._owned[key] if id_ in ids]
        self._n_repeats[key] += 1
        return owned[(self._n_repeats[key] - 1) % len(owned)] if owned else None

    def _none_is_known(self, n_rows: int, tokens: Sequence[int]) -> str:
        of_pool, of_loop = (self._tokenizer.decode(t)[:200] for t in (self._first_row, tokens))
        return (
            f"none of {n_rows} rows of the loop is one of the pool: rendered by the loop's "
            "tokenizer and chat template no row has the same tokens, and no row's turns stand in "
            f"one of the loop. A row of the loop: {of_loop!r}; of the pool: {of_pool!r}. Give the "
            "pool of the file that is trained on, or name a batch column with `ids`."
        )


def _turns(example: Example) -> Turns | None:
    """Return all that a row says, in order, if it is text that ends with a response."""
    if isinstance(example, Plain):
        texts = [example.prompt, example.response]
    else:
        texts = [message.get("content") for message in example.messages]
    if not all(isinstance(text, str) for text in texts):
        return None
    turns = tuple(stripped for text in texts if (stripped := text.strip()))
    return turns if texts[-1].strip() else None


def _pair(example: Example) -> tuple[str, str] | None:
    """Return prompt and response of a conversation of one turn each."""
    if isinstance(example, Plain) or [m["role"] for m in example.messages] != ["user", "assistant"]:
        return None
    prompt, response = (message.get("content") for message in example.messages)
    return (prompt, response) if isinstance(prompt, str) and isinstance(response, str) else None


def _fit(turns: Turns, text: str) -> _Fit | None:
    """Return how turns stand in a text, the last one at its end; None if they do not."""
    if not text.endswith(turns[-1]):
        return None
    begins = end = len(text) - len(turns[-1])
    nearest = 0
    for turn in reversed(turns[:-1]):
        at = text.rfind(turn, 0, begins)
        if at < 0:
            return None
        nearest = nearest or at + len(turn)
        begins = at
    return _Fit(nearest, text[nearest:end], sum(map(len, turns)))


def names_by_text(pool: Pool, trainer: Trainer) -> ByText:
    """Find rows by what a trainer's own tokenizer makes of them; refuse one that trains on none."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise GradsiftError(
            "the trainer has no tokenizer (processing_class), so its rows cannot be found in the "
            "pool by what they say: give it one, or name a batch column with `ids`."
        )
    args = trainer.args
    max_length = getattr(args, "max_length", None) or NO_LIMIT
    truncation = getattr(args, "truncation_mode", "keep_start")
    names = ByText(pool, tokenizer, max_length, truncation)
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
