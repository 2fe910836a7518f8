"""What is exported: rows as examples, what a trainer's form cannot say of them, and the files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.json

from gradsift.config import RunConfig
from gradsift.data.example import THINKING_FIELDS, Chat, Example, Plain
from gradsift.errors import GradsiftError
from gradsift.files import write_text
from gradsift.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NO_WEIGHTS = (
    "its form has no place for the weights of rows: they are in decisions.parquet, and it trains "
    "on all rows alike"
)


@dataclass(frozen=True)
class ExportRow:
    """A row that a trainer gets.

    Attributes:
        source: Where it comes from, if it says so.
        weight: What it counts relative to the mean of the selection, if that is asked for.
        is_replay: Whether it is no selected row, but one of replay; these come last.
    """

    instance_id: str
    example: Example
    source: str | None = None
    weight: float | None = None
    is_replay: bool = False


@dataclass(frozen=True)
class Setup:
    """What rows were captured with.

    Attributes:
        config: The settings: model, lengths, how it is trained.
        tokenizer: Loads the model's tokenizer.
        day: Tells which day the chat template wrote as today, if it writes one.
    """

    config: RunConfig
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    day: Callable[[], date | None] = lambda: None


@dataclass(frozen=True)
class Exported:
    """What was written for a trainer.

    Attributes:
        files: The rows first, then what a trainer is told of them.
        n_rows: How many rows the trainer gets.
        notes: What a user must know: rows that are not in it, and what is said otherwise.
    """

    files: tuple[Path, ...]
    n_rows: int
    notes: tuple[str, ...] = ()


class CannotSayError(Exception):
    """A row that the form has no means for; the text says why, alike for rows of a kind."""


@dataclass
class Notes:
    """What happened to rows on their way, each with a count and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, instance_id: str) -> None:
        """Count a row."""
        self.counts[what] += 1
        self.first.setdefault(what, instance_id)

    def lines(self) -> tuple[str, ...]:
        """Return a line for each thing that happened."""
        return tuple(
            f"{counted(n, 'row')}: {what}; the first is {self.first[what]!r}"
            for what, n in self.counts.items()
        )


def say_rows(
    rows: Sequence[ExportRow], say: Callable[[ExportRow, Notes], Any], trainer: str
) -> tuple[list[tuple[ExportRow, Any]], Notes]:
    """Say rows in a trainer's form, leaving out those that it has no means for.

    Args:
        rows: The rows.
        say: Returns what is written of a row, or raises CannotSayError.
        trainer: For the message.

    Returns:
        The rows that can be said, each with what is written of it; and the notes.

    Raises:
        GradsiftError: If there is no row that can be said.
    """
    notes, done = Notes(), []
    for row in rows:
        try:
            done.append((row, say(row, notes)))
        except CannotSayError as reason:
            notes.add(f"left out of the export, {reason}", row.instance_id)
    if rows and not done:
        raise GradsiftError(
            f"`export` {trainer}: its form can say none of the rows. {'; '.join(notes.lines())}."
        )
    if any(row.is_replay for row in rows) and not any(row.is_replay for row, _ in done):
        raise GradsiftError(
            f"`export` {trainer}: its form can say none of the rows of replay. "
            f"{'; '.join(notes.lines())}."
        )
    return done, notes


def kind_of(rows: Sequence[ExportRow]) -> Literal["chat", "pair", "text"]:
    """Return what the file of some rows holds: conversations, prompts with answers, or text.

    The selected rows say it, where there are any; those of replay have to be of the same kind.
    """
    rows = [row for row in rows if not row.is_replay] or rows
    if any(isinstance(row.example, Chat) for row in rows):
        return "chat"
    pairs = any(isinstance(row.example, Plain) and row.example.prompt for row in rows)
    return "pair" if pairs else "text"


def plain_record(example: Plain, kind: str, prompt: str, response: str) -> dict[str, Any]:
    """Return plain text as a record of a file of that kind, with two names for a pair's fields.

    Raises:
        CannotSayError: In a file of conversations.
    """
    if kind == "chat":
        raise CannotSayError("plain text among conversations, and a file of its form is of one")
    if kind == "text":
        return {"text": example.response}
    return {prompt: example.prompt, response: example.response}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as JSON lines, atomically."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path


def require_texts(file: Path, trainer: str) -> None:
    """Refuse a file of texts of which load_dataset would make timestamps.

    It does that where all texts of a field are dates; LLaMA-Factory and axolotl load JSON with it,
    and find no text there.
    """
    whole = pyarrow.json.ReadOptions(block_size=min(file.stat().st_size + 1, 2**31 - 1))
    schema = pyarrow.json.read_json(file, read_options=whole).schema
    dates = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if dates:
        raise GradsiftError(
            f"`export` {trainer}: every text in {dates[0]!r} is a date, of which its loader makes "
            "timestamps; only trl's script reads such rows as they are (`export` trl)."
        )


def upto_last_answer(row: ExportRow, notes: Notes) -> Chat:
    """Return a conversation up to the last turn that is trained on, with a note if more follows.

    Nothing after it has a loss, and some trainers take no conversation that ends otherwise.
    """
    example = row.example
    assert isinstance(example, Chat)
    n = max(i for i, train in enumerate(example.train) if train) + 1
    if n < len(example.messages):
        notes.add("turns after the last answer trained on are left out", row.instance_id)
    return replace(example, messages=example.messages[:n], train=example.train[:n])


def note_template_kwargs(row: ExportRow, notes: Notes, config: RunConfig | None = None) -> None:
    """Note what a row, and with `config` the run, gives its chat template and a form cannot."""
    given = {**(config.chat_template_kwargs if config else {})}
    given |= row.example.template_kwargs if isinstance(row.example, Chat) else {}
    if given:
        notes.add("arguments of the chat template have no place in its form", row.instance_id)


def without_fields(
    row: ExportRow, message: dict[str, Any], known: Iterable[str], notes: Notes
) -> dict[str, Any]:
    """Return the fields of a turn that a form has a place for, with a note of the others.

    Raises:
        CannotSayError: If thinking is among the others: a template would render it.
    """
    known = {*known}
    for name in sorted(message.keys() - known):
        if message[name] in (None, "", [], {}):
            continue
        if name in THINKING_FIELDS:
            raise CannotSayError(f"its form has no place for {name}")
        notes.add(f"the field {name!r} of a turn has no place in its form", row.instance_id)
    return {name: value for name, value in message.items() if name in known}


def as_text(value: Any) -> str:
    """Return a value as JSON text; text is that already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_object(value: Any) -> Any:
    """Return what JSON text holds; what is no text, or no JSON, stays what it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the function calls of a turn: name and arguments."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return calls + [call for call in (message.get("function_call"),) if call]
