"""Rows that the untrained model writes itself, kept in the run folder: written once, in parts.

Where the chat template shows how a user's turn begins, the model goes on from there, and then
answers what it wrote (Magpie, Xu et al., arXiv 2406.08464); else it goes on from the token that
begins a text. Both at temperature 1: the rows are drawn from what the model is before training.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.example import Chat, Example, Plain
from gradsift.data.rendering import Template
from gradsift.data.responses import WORD
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.evaluation.generation import end_tokens
from gradsift.evaluation.sampling import sample
from gradsift.files import make_folder, remove, writing
from gradsift.progress import Progress, no_progress, stage, tell_kept
from gradsift.replay.rows import MARK, ReplayRow
from gradsift.run_folder import Run
from gradsift.seals import DamagedError, read_parquet, short_sha256, write_parquet
from gradsift.signatures import is_signed, key_file, sign
from gradsift.terms import IGNORED_LABEL
from gradsift.training.model import load_model, on_best_device

FOLDER = "self-written"
# Raised when the same model would write other rows.
VERSION = 1
ROWS_IN_A_PART = 32
# Of an answer, and of a text that nobody asked for.
MOST_NEW_TOKENS = 512
# Of which less than this share is usable, after so many rows, nothing will come.
LEAST_USABLE, ROWS_BEFORE_GIVING_UP = 0.05, 160
# A text repeats itself if less than half of its sequences of so many tokens are different ones.
REPEATED, FEWEST_SEQUENCES = 4, 16

# What is wrong with rows that are left out.
EMPTY, REPEATING, SAID = "empty", "repeating themselves", "said before"
ENDLESS, TOO_LONG = "questions without an end", "questions too long to be answered"
FAULTS = {None, EMPTY, REPEATING, SAID, ENDLESS, TOO_LONG}
# Key of a part's metadata: that it was this user's model that wrote these rows.
SIGNED = b"gradsift.signed"

_SCHEMA = pa.schema(
    [
        pa.field("question", pa.string()),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("n_prompt", pa.int32(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("fault", pa.string()),
    ]
)

logger = logging.getLogger(__name__)


class SelfWritten:
    """The rows that the model of a run wrote, and writes when more are wanted."""

    def __init__(self, run: Run, progress: Progress = no_progress):
        """Look at nothing yet; `progress` is told of the writing."""
        self._run, self._progress = run, stage(progress, "written")
        self._vocab_size = run.model_config.get_text_config().vocab_size
        captured = run.store.manifest.identity
        made_from = {
            **{key: captured.get(key) for key in ("model", "dtype", "load_in", "tokenizer")},
            "max_length": run.config.max_length,
            "template_kwargs": run.config.chat_template_kwargs,
            "template_date": str(run.template_date),
            # Not that of a training: whoever asks for more trainings wants no other rows.
            "seed": run.config.seed,
            "version": VERSION,
        }
        self._seed = run.config.seed
        self._made_from = short_sha256(json.dumps(made_from, sort_keys=True), 10)
        self._folder = run.folder / FOLDER / self._made_from
        # What was read or written already, by the number of the part.
        self._known: dict[int, list[dict[str, Any]]] = {}
        self._told_of_strangers = False

    def rows(self, n_trained: float, *, write: bool = True) -> list[ReplayRow]:
        """Return usable rows, with so many tokens that have a loss if they are (to be) written."""
        parts = dict(self._parts())
        if write and _n_trained(_usable(parts)) < n_trained:
            make_folder(self._folder)
            lock = FileLock(self._folder / "lock")
            with writing(self._folder / "lock"):
                lock.acquire()
            try:  # Another process may have written them meanwhile.
                parts = dict(self._parts())
                self._write(parts, n_trained)
            finally:
                lock.release()
        return _usable(parts)

    def told(self) -> list[str]:
        """Return what became of what was written: how many rows, and which were left out."""
        faults = Counter(row["fault"] for _, rows in self._parts() for row in rows)
        n_rows, n_usable = faults.total(), faults.pop(None, 0)
        left_out = ", ".join(f"{n} {fault}" for fault, n in sorted(faults.items()))
        return [
            f"the model wrote {n_rows} rows for replay, {n_usable} are usable"
            + (f" (left out: {left_out})" if left_out else "")
        ]

    def _parts(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        # In their order up to the first that is missing, or somebody else's.
        number = 0
        while number in self._known or (path := self._path(number)).exists():
            if number not in self._known:
                try:
                    rows = self._read(number)
                except DamagedError as error:
                    logger.warning(f"{error.found} It is made again.")
                    remove(path)
                    return
                if rows is None:
                    self._tell_of_strangers()
                    return
                self._known[number] = rows
            yield number, self._known[number]
            number += 1

    def _tell_of_strangers(self) -> None:
        if not self._told_of_strangers:
            logger.warning(
                f"{self._folder}: rows there were written elsewhere (they have no signature of "
                "yours): they are not trained on, and the model writes them again"
            )
        self._told_of_strangers = True

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def _read(self, number: int) -> list[dict[str, Any]] | None:
        """Return the rows of a part; None if nothing says that this user's model wrote them."""
        path = self._path(number)
        table = read_parquet(path, expected=_SCHEMA)
        rows = table.select(_SCHEMA.names).to_pylist()
        flat = pc.list_flatten(table["input_ids"])
        if flat.null_count or (
            len(flat) and not 0 <= pc.min(flat).as_py() <= pc.max(flat).as_py() < self._vocab_size
        ):
            raise DamagedError(path, "has tokens that the model does not know")
        if len(rows) != ROWS_IN_A_PART:
            raise DamagedError(path, f"has {len(rows)} rows, expected {ROWS_IN_A_PART}")
        for row in rows:
            if row["fault"] not in FAULTS:
                raise DamagedError(path, "has rows with a fault that there is not")
            if row["fault"] is None:
                self._require_consistent(path, row)
        signature = (table.schema.metadata or {}).get(SIGNED, b"").decode("ascii", "replace")
        return rows if is_signed(self._what_is_signed(number, rows), signature) else None

    def _require_consistent(self, path: Path, row: dict[str, Any]) -> None:
        most, n, n_prompt = self._run.config.max_length, len(row["input_ids"]), row["n_prompt"]
        if not 0 <= n_prompt < n <= most:
            raise DamagedError(path, f"has a row of {n} tokens, {n_prompt} of a prompt")
        # A text has one token before it.
        begins = 1 if row["question"] is None else n_prompt
        if _decoded(self._run.tokenizer, row["input_ids"][begins:]) != row["answer"]:
            raise DamagedError(path, "has an answer that is not what its tokens say")

    def _what_is_signed(self, number: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"self_written": self._made_from, "part": number, "rows": rows}

    def _save(self, number: int, rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        try:
            signature = sign(self._what_is_signed(number, rows))
            table = table.replace_schema_metadata({SIGNED: signature})
        except OSError as error:
            logger.warning(
                f"{key_file()}: the key that tells your rows from those of others cannot be used "
                f"or made ({error.strerror or error}): the model will write them again next time"
            )
        write_parquet(self._path(number), table)
        self._known[number] = rows

    def _write(self, parts: dict[int, list[dict[str, Any]]], n_trained: float) -> None:
        usable = _usable(parts)
        done = _n_trained(usable)
        if done >= n_trained:
            return
        if parts:
            logger.info(f"resumes: {len(usable)} rows for replay are written")
        model = on_best_device(load_model(self._run.model).eval())
        writer = _Writer(self._run, model)
        logger.info(
            "the untrained model writes rows for replay, "
            + ("questions and their answers" if writer.prefix else "texts from their first token")
        )
        while done < n_trained:
            number, usable = len(parts), _usable(parts)
            n_rows = sum(map(len, parts.values()))
            expected = math.ceil(len(usable) * n_trained / done) if done else len(usable) + 1
            self._progress(len(usable), max(expected, len(usable)), done, math.ceil(n_trained))
            if n_rows >= ROWS_BEFORE_GIVING_UP and len(usable) < LEAST_USABLE * n_rows:
                faults = Counter(row["fault"] for rows in parts.values() for row in rows)
                raise GradsiftError(
                    f"`replay: self`: of {n_rows} rows that the model wrote {len(usable)} are "
                    f"usable (most were left out as {faults.most_common(1)[0][0]}): give rows of "
                    "your own, or a larger `max_length` at the capture."
                )
            seen = {(row["question"], row["answer"]) for rows in parts.values() for row in rows}
            seed = int(short_sha256(f"{self._made_from} {self._seed} {number}", 15), 16)
            parts[number] = writer.part(seed, seen)
            self._save(number, parts[number])
            tell_kept(self._progress)
            done = _n_trained(_usable(parts))
        self._progress(*(len(_usable(parts)),) * 2, done, done)
        del model, writer
        gc.collect()


class _Writer:
    """Has a model write.

    Attributes:
        prefix: Tokens before a user's turn; empty where nothing says how one begins.
    """

    def __init__(self, run: Run, model: PreTrainedModel):
        self._model, self._tokenizer, self._most = model, run.tokenizer, run.config.max_length
        self._ends = end_tokens(model, run.tokenizer)
        self._template = None
        self.prefix: list[int] = []
        if self._tokenizer.chat_template:
            self._template = Template(
                self._tokenizer, kwargs=run.config.chat_template_kwargs, day=run.template_date
            )
            self.prefix = self._tokens(self._beginning())

    def part(self, seed: int, seen: set[tuple[str | None, str]]) -> list[dict[str, Any]]:
        """Write a part: its rows as _SCHEMA has them; `seen` gets what they say."""
        rows = self._conversations(seed) if self.prefix else self._texts(seed)
        for row in rows:
            said = (row["question"], row["answer"])
            if row["fault"] is None and said in seen:
                row["fault"] = SAID
            seen.add(said)
        return rows

    def _beginning(self) -> str:
        """Return what the template writes before a user's words; nothing if that cannot be told."""
        assert self._template is not None
        try:
            text = self._template.render(_question(WORD))
        except Exception:  # A template is a program: it may raise anything.
            return ""
        return text.partition(WORD)[0] if WORD in text else ""

    def _conversations(self, seed: int) -> list[dict[str, Any]]:
        room = self._most - len(self.prefix)
        rows, prompts = [], []
        if room < 2:
            raise GradsiftError(
                f"`replay: self`: a `max_length` of {self._most} leaves no room for a question."
            )
        for tokens in self._sampled([self.prefix] * ROWS_IN_A_PART, max(1, room // 2), seed):
            question, fault = self._text(tokens), self._fault(tokens)
            if fault is None and tokens[-1] not in self._ends:
                fault = ENDLESS
            prompt = [] if fault else self._prompt(question)
            if fault is None and not 0 < len(prompt) < self._most:
                fault = TOO_LONG
            rows.append(_row(question, "", prompt, len(prompt), fault))
            prompts += [] if fault else [prompt]
        if not prompts:
            return rows
        most_new = self._most - min(map(len, prompts))
        answers = iter(self._sampled(prompts, most_new, seed + 1))
        for row in rows:
            if row["fault"] is None:
                tokens = next(answers)[: self._most - row["n_prompt"]]
                row |= self._finished(tokens)
                row["input_ids"] = [*row["input_ids"], *tokens]
        return rows

    def _prompt(self, question: str) -> list[int]:
        assert self._template is not None
        try:
            return self._tokens(self._template.render(_question(question), generate=True))
        except Exception:  # As above: what the model wrote may be what a template refuses.
            return []

    def _texts(self, seed: int) -> list[dict[str, Any]]:
        begins = [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, *self._ends]
        start = next((token for token in begins if token is not None), None)
        if start is None:
            raise GradsiftError(
                "`replay: self`: the tokenizer has neither a token that begins a text nor one that "
                "ends it: give rows of your own."
            )
        written = self._sampled([[start]] * ROWS_IN_A_PART, self._most - 1, seed)
        return [
            _row(None, "", [start, *tokens], 0, None) | self._finished(tokens) for tokens in written
        ]

    def _finished(self, tokens: Sequence[int]) -> dict[str, Any]:
        finished = bool(tokens) and tokens[-1] in self._ends
        return {
            "answer": self._text(tokens), "finished": finished, "fault": self._fault(tokens)
        }  # fmt: skip

    def _sampled(self, prompts: Sequence[list[int]], most_new: int, seed: int) -> list[list[int]]:
        most_new = min(most_new, MOST_NEW_TOKENS)
        return sample(self._model, self._tokenizer, prompts, max_new_tokens=most_new, seed=seed)

    def _fault(self, tokens: Sequence[int]) -> str | None:
        if not self._text(tokens):
            return EMPTY
        sequences = list(zip(*(tokens[i:] for i in range(REPEATED)), strict=False))
        if len(sequences) >= FEWEST_SEQUENCES and 2 * len(set(sequences)) < len(sequences):
            return REPEATING
        return None

    def _text(self, tokens: Sequence[int]) -> str:
        return _decoded(self._tokenizer, tokens)

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _question(text: str) -> Chat:
    return Chat(({"role": "user", "content": text},), (False,))


def _row(
    question: str | None, answer: str, input_ids: list[int], n_prompt: int, fault: str | None
) -> dict[str, Any]:
    return {
        "question": question, "answer": answer, "input_ids": input_ids, "n_prompt": n_prompt,
        "finished": False, "fault": fault,
    }  # fmt: skip


def _usable(parts: dict[int, list[dict[str, Any]]]) -> list[ReplayRow]:
    rows = enumerate(row for _, rows in sorted(parts.items()) for row in rows)
    return [_replay_row(n, row) for n, row in rows if row["fault"] is None]


def _replay_row(n: int, row: dict[str, Any]) -> ReplayRow:
    ids, n_prompt = row["input_ids"], row["n_prompt"]
    instance = Instance(
        f"{MARK}self-{n}", ids, [IGNORED_LABEL] * n_prompt + ids[n_prompt:], not row["finished"]
    )
    return ReplayRow(instance, _example(row), finished=row["finished"])


def _example(row: dict[str, Any]) -> Example:
    if row["question"] is None:
        return Plain("", row["answer"])
    turns = (("user", row["question"]), ("assistant", row["answer"]))
    return Chat(tuple({"role": role, "content": text} for role, text in turns), (False, True))


def _n_trained(rows: Sequence[ReplayRow]) -> int:
    return sum(row.instance.n_response_tokens for row in rows)
