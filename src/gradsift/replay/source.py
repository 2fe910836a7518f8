"""Where rows of replay come from, and which of them stand beside an arm's own.

Shapes: N rows of replay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradsift.config import SELF, ReadingConfig, ReplayConfig
from gradsift.data.example import Example, last_exchange
from gradsift.data.pool import Pool, read_pool
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.progress import Progress, no_progress
from gradsift.replay.rows import MARK, Replayed, ReplayRow
from gradsift.replay.self_written import SelfWritten
from gradsift.replay.shares import n_rows_for, percent, share_of, tokens_for
from gradsift.run_folder import Run
from gradsift.selection.strategies.base import cosines_with_mean
from gradsift.store.manifest import MANIFEST_NAME
from gradsift.store.reader import GradientStore
from gradsift.training.positions import require_positions
from gradsift.wording import short

LEAST_CONFLICT = "least_conflict"
# Of a text that is looked for in another: shorter ones stand there by chance.
FEWEST_CHARACTERS = 40
# By what factor the tokens of replay may miss those that are wanted, as rows are taken whole.
MOST_MISSED = 2

logger = logging.getLogger(__name__)


class Replay:
    """General rows of which some stand beside an arm's own.

    Attributes:
        name: Where they come from, as the user said it.
        notes: What whoever reads the results ought to know.
    """

    def __init__(self, run: Run, config: ReplayConfig, progress: Progress = no_progress):
        """Read the rows, of which the user named the file; `self` writes them when it is asked.

        Raises:
            GradsiftError: If they cannot be read, or are those that are taught.
        """
        assert config.replay is not None
        self._run, self._choice, self.name = run, config.replay_choice, config.replay
        self.notes: list[str] = []
        self._own_writing = SelfWritten(run, progress) if self.name == SELF else None
        self._store: GradientStore | None = None
        self._pool: Pool | None = None
        self._rows: list[ReplayRow] = []
        if self._own_writing is None:
            self._pool = self._read(config)
            self._rows = self._usable(self._pool)
            for line in self.notes:
                logger.info(line)

    def prepare(self, wanted: float, *, write: bool = True) -> None:
        """Have so many tokens with a loss ready; without `write`, placeholders for what is not."""
        if self._own_writing is None:
            return
        self._rows = self._own_writing.rows(wanted, write=write)
        missing = round(wanted) - sum(row.instance.n_response_tokens for row in self._rows)
        if write:
            self.notes = self._own_writing.told()
        elif missing > 0:
            self.notes = [f"the rows of `replay: self` are not written yet: about {missing} tokens"]
            self._rows.append(_placeholder(missing))
        for line in self.notes:
            logger.info(line)

    def made_with(self, config: ReplayConfig) -> dict[str, object]:
        """Return what the rows are, for whoever reads the results."""
        digest = {} if self._pool is None else {"sha256": self._pool.sha256}
        return {**config.model_dump(mode="json"), "replay_ratio": config.ratio, **digest}

    def beside(
        self, own_ids: Sequence[str], n_own: int, ratio: float, seed: int, title: str
    ) -> Replayed:
        """Return the rows that are a share of what an arm is trained on.

        Rows are whole, so it is the nearest share that they come to.

        Args:
            own_ids: The arm's own rows.
            n_own: Their tokens that have a loss.
            ratio: The share: of replay in the tokens that have a loss.
            seed: What random rows are drawn with.
            title: Names the arm in messages.

        Raises:
            GradsiftError: If there are too few.
        """
        wanted = tokens_for(ratio, n_own)
        order = self._order(own_ids, seed)
        tokens = [self._rows[i].instance.n_response_tokens for i in order]
        if sum(tokens) < wanted:
            most = share_of(sum(tokens), n_own)
            raise GradsiftError(
                f"{title}: {percent(ratio)} of its tokens that have a loss are {wanted:.0f} of "
                f"replay, and the {len(tokens)} usable rows of {self.name} have {sum(tokens)}. "
                f"Rows are not repeated: give more rows, or a `replay_ratio` of at most "
                f"{int(1e4 * most) / 1e4:g}."
            )
        taken = order[: n_rows_for(wanted, tokens)]
        n_taken = sum(tokens[: len(taken)])
        are_written = all(self._rows[i].example is not None for i in taken)
        if are_written and not wanted / MOST_MISSED <= n_taken <= wanted * MOST_MISSED:
            taken = self._of_few_tokens(order, wanted, f"{title}: {percent(ratio)}")
        return Replayed(tuple(self._rows[i] for i in taken), self.name, ratio, n_own)

    def _of_few_tokens(self, order: Sequence[int], wanted: float, asked: str) -> Sequence[int]:
        counts = {i: self._rows[i].instance.n_response_tokens for i in order}
        # Of rows that are no longer than what is wanted, some come to half as much again at most.
        shorter = [i for i in order if counts[i] <= wanted]
        if sum(counts[i] for i in shorter) >= wanted:
            return shorter[: n_rows_for(wanted, [counts[i] for i in shorter])]
        nearest = min(order, key=lambda i: abs(counts[i] - wanted))
        if wanted / MOST_MISSED <= counts[nearest] <= wanted * MOST_MISSED:
            return [nearest]
        raise GradsiftError(
            f"{asked} of its tokens that have a loss are {wanted:.3g} of replay, and rows of "
            f"{self.name} are taken whole: they are too long for it ({min(counts.values())} tokens "
            "and more). Give shorter rows, or a larger `replay_ratio`."
        )

    def overlaps(self, test: Pool, texts: Sequence[tuple[str, str]] = ()) -> list[str]:
        """Say what of the evaluation stands word for word in the rows of replay.

        Args:
            test: Held-out rows.
            texts: General texts that are evaluated on: names and texts.
        """
        notes = []
        if self._pool is not None:
            usable = {row.content_hash for row in self._rows}
            asked = {_exchange(row.example)[0].strip() for row in self._rows} - {""}
            n_rows = sum(row.content_hash in usable for row in test.rows)
            n_asked = sum(_exchange(row.example)[0].strip() in asked for row in test.rows)
            if n_rows or n_asked:
                notes.append(
                    f"{n_rows} of {len(test.rows)} test rows stand word for word in the rows of "
                    f"replay ({self.name}), and the question of {n_asked}: what is replayed of "
                    "them counts as learnt"
                )
        said = [_words(_exchange(row.example)[1]) for row in self._rows] if texts else []
        for name, text in texts:
            whole = _words(text)
            n_rows = sum(_share_words(whole, row) for row in said)
            if n_rows:
                notes.append(
                    f"{n_rows} rows of replay ({self.name}) stand word for word in {name}, or it "
                    "in them: that it is not forgotten says nothing of other text"
                )
        return notes

    def _order(self, own_ids: Sequence[str], seed: int) -> list[int]:
        n_rows = len(self._rows)
        if self._own_writing is not None:
            # Drawn from the model already; more rows, written later, change nothing.
            return list(range(n_rows))
        if self._choice != LEAST_CONFLICT:
            return np.random.default_rng(seed).permutation(n_rows).tolist()
        own, store = self._run.store, self._store
        assert store is not None
        at = {instance_id: i for i, instance_id in enumerate(own.instance_ids)}
        own_S = [at[i] for i in own_ids if own.finite[at[i]]]
        at = {instance_id: i for i, instance_id in enumerate(store.instance_ids)}
        rows_N = [at[row.instance.instance_id.removeprefix(MARK)] for row in self._rows]
        cosine_N = cosines_with_mean(
            {layer: sketch[rows_N] for layer, sketch in store.sketches.items()},
            {layer: sketch[own_S] for layer, sketch in own.sketches.items()},
        )
        return np.argsort(-cosine_N, kind="stable").tolist()

    def _read(self, config: ReplayConfig) -> Pool:
        name, run = self.name, self._run
        is_run = (Path(name) / MANIFEST_NAME).exists()
        if self._choice == LEAST_CONFLICT and not is_run:
            raise GradsiftError(
                f"`replay_choice: {LEAST_CONFLICT}` goes by gradients: `replay` is then a run "
                "folder of such rows, captured with the same model (gradsift capture "
                f"{name} --model MODEL --set warmup_fraction=0 --out RUN)."
            )
        if is_run and config.replay_split is not None:
            raise GradsiftError(f"`replay` {name} is a run folder: leave out `replay_split`.")
        if self._choice == LEAST_CONFLICT:
            self._store = run.comparable_run(name).store
        if is_run:
            other = Run(name)
            try:
                other.introduce()
                pool = other.pool
            except GradsiftError as error:
                raise GradsiftError(
                    f"`replay` {name}: {error} Here that means: name the file of its rows as "
                    "`replay`, or capture them yourself."
                ) from error
        else:
            reading = ReadingConfig(split=config.replay_split, train_on=run.config.train_on)
            try:
                pool = read_pool(name, reading)
            except GradsiftError as error:
                said = str(error).replace("`split`", "`replay_split`")
                raise GradsiftError(f"`replay`: {said}") from error
        if pool.sha256 == run.pool.sha256:
            raise GradsiftError(
                f"`replay` {name} is what is taught itself: give general rows, of what the model "
                "must not forget."
            )
        return pool

    def _usable(self, pool: Pool) -> list[ReplayRow]:
        run = self._run
        built = run.tokenized(pool)
        self.notes += [f"replay: {line}" for line in (*pool.notes(), *built.lines())]
        rows = {row.instance_id: row for row in pool.rows}
        taught = {row.content_hash for row in run.pool.rows if row.example is not None}
        found: dict[str | None, ReplayRow] = {}
        n_taught, n_unrecorded, n_again = 0, 0, 0
        recorded = None
        if self._store is not None:
            ok = zip(self._store.instance_ids, self._store.finite.tolist(), strict=True)
            recorded = {instance_id for instance_id, finite in ok if finite}
        for item in built.items:
            row = rows[item.instance_id]
            if row.content_hash in taught:
                n_taught += 1
            elif recorded is not None and item.instance_id not in recorded:
                n_unrecorded += 1
            elif row.content_hash in found:
                n_again += 1
            else:
                marked = Instance(
                    MARK + item.instance_id, item.input_ids, item.labels, item.truncated
                )
                found[row.content_hash] = ReplayRow(
                    marked, row.example, row.source, row.content_hash
                )
        if n_again:
            self.notes.append(
                f"replay: {n_again} rows say word for word what another one says; one of each is "
                "kept"
            )
        if n_taught:
            self.notes.append(
                f"replay: {n_taught} rows say word for word what a row of the pool says; left out"
            )
        if n_unrecorded:
            self.notes.append(f"replay: {n_unrecorded} rows have no finite gradient; left out")
        if not found:
            why = "; ".join(self.notes[-2:])
            raise GradsiftError(
                f"`replay` {self.name}: none of its {len(pool.rows)} rows can be used "
                f"({short(why, 400)})."
            )
        usable = list(found.values())
        items = [row.instance for row in usable]
        require_positions(run.model.name, run.model_config, items, run.config.max_length)
        return usable


def replay_of(
    run: Run, config: ReplayConfig, wanted: bool, progress: Progress = no_progress
) -> Replay | None:
    """Return the rows of replay if any are given and wanted.

    Raises:
        GradsiftError: If they are wanted and not given, or the other way round.
    """
    if config.replay is None and wanted:
        raise GradsiftError(
            "an arm has a share of replay, but no rows for it are given: add `replay` with a file, "
            "a folder, a hub id, a run folder or self."
        )
    if config.replay is not None and not wanted:
        raise GradsiftError(
            f"`replay` {config.replay}: no arm that is trained takes any of it: leave it out, or "
            "leave out `replay=0`."
        )
    return None if config.replay is None else Replay(run, config, progress)


def _placeholder(n_tokens: int) -> ReplayRow:
    ids = [0] * (n_tokens + 1)
    return ReplayRow(Instance(f"{MARK}not written yet", ids, ids), None)


def _exchange(example: Example | None) -> tuple[str, str]:
    """Return what is asked last, and the answer to it; "" for what is not there."""
    return ("", "") if example is None else last_exchange(example)


def _words(text: str) -> str:
    # Line breaks and indents differ between copies of a text.
    return " ".join(text.split())


def _share_words(text: str, said: str) -> bool:
    short, long = sorted((text, said), key=len)
    return len(short) >= FEWEST_CHARACTERS and short in long
