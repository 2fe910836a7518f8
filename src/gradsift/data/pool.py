"""The pool: every row of an SFT source, with its id and what it says, or the reason why not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradsift.config import ReadingConfig
from gradsift.data.containers.memory import EXPECTED, Held, held_rows, is_name
from gradsift.data.containers.rows import fingerprint, read_rows
from gradsift.data.containers.sources import RawRow, Source, absolute, find_source
from gradsift.data.containers.tables import TableRecord
from gradsift.data.dataset_configs import DatasetEntry, read_dataset_info
from gradsift.data.detection import ROWS_TO_DETECT_FROM, left_out, settle_format
from gradsift.data.example import Example, RowError, last_exchange, what_it_says
from gradsift.data.formats import FORMAT_NOTES, ROW_FORMATS, Columns, Reader
from gradsift.errors import GradsiftError
from gradsift.html_tables import html_table
from gradsift.schema import takes, validated
from gradsift.wording import counted, few, in_line, short

# Up to here a float has room for every whole number.
MOST_EXACT = 2.0**53
# Of a pool in a notebook.
ROWS_SHOWN = 5


@dataclass(frozen=True)
class PoolRow:
    """One row of the input.

    Attributes:
        row: 0-based position.
        line: 1-based line of the file, if it has lines.
        instance_id: Unique in the pool: the row's own id, or a hash of what it says.
        start: First byte in the file, if it has lines.
        end: One past the last byte.
        example: What the row says, or None where it is dropped.
        reason: Why it is dropped, a key of DROP_REASONS, or None.
        detail: What exactly was found.
        content_hash: Equal for rows that say the same; None where a row cannot be read.
        source: What the row says of where it comes from; else its file, if there are several.
        file: Label of its file, if there are several.
        index_in_file: 0-based position in that file.
        own_id: What the row itself is called, where another one has that id, or may have it.
    """

    row: int
    line: int | None
    instance_id: str
    start: int | None
    end: int | None
    example: Example | None
    reason: str | None
    detail: str | None
    content_hash: str | None
    source: str | None = None
    file: str | None = None
    index_in_file: int | None = None
    own_id: str | None = None

    @property
    def is_renamed(self) -> bool:
        """Whether the row can be used, and another one has its id."""
        return self.own_id is not None and self.example is not None

    @property
    def place(self) -> str:
        """Where the row stands, as messages say it."""
        return place(self.row, self.line, self.file, self.index_in_file)


@dataclass(frozen=True)
class Pool:
    """All rows of a source.

    Attributes:
        source: Where they come from.
        row_format: Their format, a key of ROW_FORMATS.
        detected: Whether the format was detected or given.
        columns: Names of fields where they differ from the usual.
        sha256: Of the source's content.
        rows: In the source's order.
        read_as: `data` and the fields of ReadingConfig, to read the same rows again.
        left_out: Fields of text that are not read.
        odd_ids: Places of the rows whose id is neither text nor a whole number.
        held: The rows themselves, where they came from memory.
    """

    source: Source
    row_format: str
    detected: bool
    columns: Columns
    sha256: str
    rows: tuple[PoolRow, ...]
    read_as: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    odd_ids: tuple[str, ...] = ()
    held: Held | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        dropped = "".join(f", {n} dropped ({reason})" for reason, n in self._dropped())
        return in_line(
            f"Pool({len(self.rows)} rows of {short(self.source.name, 80)}, format "
            f"{self.row_format}{dropped})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (row.instance_id, *last_exchange(row.example), "")
            if row.example is not None
            else (row.instance_id, "", "", f"dropped: {row.reason}")
            for row in self.rows[:ROWS_SHOWN]
        ]
        return html_table(repr(self), ("id", "prompt", "response", ""), rows)

    def _dropped(self) -> list[tuple[str, int]]:
        return self.dropped_by_reason.most_common(3)

    @property
    def dropped_by_reason(self) -> Counter[str]:
        """How many rows were dropped, by reason."""
        return Counter(row.reason for row in self.rows if row.reason is not None)

    @property
    def n_duplicate_texts(self) -> int:
        """Rows that say what an earlier row said already; they are kept."""
        hashes = [row.content_hash for row in self.rows if row.example is not None]
        return len(hashes) - len(set(hashes))

    def notes(self) -> list[str]:
        """Return lines worth telling: format, duplicates, and what was dropped with examples."""
        how = "detected" if self.detected else "given"
        lines = [f"{self.source.name}: {len(self.rows)} rows, format {self.row_format} ({how})"]
        lines += self._notes_on_files()
        if self.row_format in FORMAT_NOTES:
            lines.append(FORMAT_NOTES[self.row_format])
        if self.left_out:
            advice = " (`context_column` puts one after the question)"
            lines.append(
                f"fields that are not read: {few(self.left_out)}"
                + advice * (self.row_format in ("qa", "alpaca") and self.columns.query is None)
            )
        lines += remarks_on(self.rows)
        if self.n_duplicate_texts:
            lines.append(f"{self.n_duplicate_texts} rows repeat the text of an earlier row; kept")
        if self.odd_ids:
            lines.append(
                f"{len(self.odd_ids)} rows have an id that is neither text nor a whole number, and "
                f"are called after what they say; the first is {self.odd_ids[0]}"
            )
        renamed = [row for row in self.rows if row.is_renamed]
        if renamed:
            first = renamed[0]
            lines.append(
                f"{len(renamed)} rows have the id of an earlier row that says something else; the "
                f"first, {first.place}: {short(first.own_id, 60)!r} is called "
                f"{short(first.instance_id, 60)!r}. "
                "`duplicate_ids: drop` drops them; `id_column` names another field"
            )
        for reason, n in self.dropped_by_reason.items():
            first = next(row for row in self.rows if row.reason == reason)
            told = f"{counted(n, 'row')} dropped, {reason}"
            lines.append(f"{told}; the first, {first.place}: {first.detail}")
        return lines

    def _notes_on_files(self) -> list[str]:
        lines, files = [], self.source.parts or (self.source,)
        if self.source.parts:
            counts = Counter(row.file for row in self.rows)
            shown = [f"{part.label} ({counts[part.label]})" for part in files[:5]]
            more = f" and {len(files) - 5} more" if len(files) > 5 else ""
            lines.append(f"{len(files)} files: {', '.join(shown)}{more}")
        recoded = [part for part in files if part.encoding is not None]
        if recoded:
            names = ", ".join(part.label or part.path.name for part in recoded[:3])
            more = f" and {len(recoded) - 3} more" if len(recoded) > 3 else ""
            lines.append(
                f"{names}{more}: {recoded[0].encoding.upper()}, not UTF-8; read, and selected rows "
                "are written as UTF-8"
            )
        return lines


def remarks_on(rows: Iterable[PoolRow]) -> list[str]:
    """Return what is to be said of how rows were read, with counts and the first of them."""
    places: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for remark in row.example.remarks if row.example is not None else ():
            places[remark].append(row.place)
    return [
        f"{counted(len(at), 'row')}: {remark}; the first is {at[0]}"
        for remark, at in places.items()
    ]


def place(row: int, line: int | None, file: str | None = None, in_file: int | None = None) -> str:
    """Return where a row stands, as messages say it."""
    if file is None:
        return f"row {row}" if line is None else f"line {line}"
    return f"{file}, " + (f"row {in_file}" if line is None else f"line {line}")


@takes(ReadingConfig)
def load_pool(data: Any, *, labels_needed: bool = True, **settings: Any) -> Pool:
    """Read an SFT source of any known container and row format.

    Args:
        data: A file, a folder of files or of `save_to_disk`, a pattern (data/*.jsonl), a hub id, or
            a list of these; with `dataset_info` a name in it. Or rows in memory: a
            datasets.Dataset, a DatasetDict with `split`, an IterableDataset, a pandas DataFrame, a
            pyarrow Table, a list of dicts.
        labels_needed: Whether fields that are named for id and source have to be there.
        **settings: How rows are read; see Settings.

    Returns:
        The pool; rows that cannot be used are in it with their reason.

    Raises:
        GradsiftError: If the source cannot be read, its format is not recognised, or no row is
            usable.
    """
    reading = validated(ReadingConfig, settings)
    return read_pool(data, reading, labels_needed=labels_needed)


def read_pool(
    data: Any,
    reading: ReadingConfig,
    *,
    labels_needed: bool = True,
    entry: DatasetEntry | None = None,
) -> Pool:
    """Do what `load_pool` does; `reading` may be a RunConfig.

    `entry` is what the `dataset_info` of a RunConfig says, if that is known already.
    """
    named = Columns(
        prompt=reading.prompt_column,
        query=reading.context_column,
        response=reading.response_column,
        system=reading.system_column,
    )
    _require_consistent(reading, named)
    read_as = reading.model_dump(include=set(ReadingConfig.model_fields))
    row_format, columns, held = reading.format, named, None
    if not is_name(data):
        if reading.dataset_info is not None or reading.data_config is not None:
            unfit = "dataset_info" if reading.dataset_info is not None else "data_config"
            raise GradsiftError(f"`data` is no name, so leave out `{unfit}`; or {EXPECTED}.")
        held = held_rows(data, reading.split)
        source, read_as["split"] = held.source(), None
    elif reading.dataset_info is None:
        names = str(data) if isinstance(data, str | Path) else [str(name) for name in data]
        read_as["data"] = absolute(names) if isinstance(names, str) else [*map(absolute, names)]
        source = find_source(names, reading.split, reading.data_config)
    else:
        if entry is None and not isinstance(data, str | Path):
            raise GradsiftError("with `dataset_info`, `data` is one name in it; found several.")
        name = data if entry is None else reading.data
        read_as |= {"data": str(name), "dataset_info": absolute(reading.dataset_info)}
        entry = entry or read_dataset_info(reading.dataset_info, str(data))
        row_format, columns = entry.row_format, entry.columns
        source = find_source(entry.data, reading.split or entry.split, reading.data_config)
    raw_rows = list(read_rows(source) if held is None else held.rows())
    _require_readable(source, raw_rows)
    records = [raw.record for raw in raw_rows if raw.record is not None]
    if reading.dataset_info is None:
        row_format, columns = settle_format(records, row_format, named)
    for record in records:
        # What was looked at to find out the format is not what is read of every row.
        if isinstance(record, TableRecord):
            record.forget()
    if labels_needed:
        _require_field(source, records, "id", reading.id_column)
        _require_field(source, records, "source", reading.source_column)
    reader = Reader(row_format, columns, reading.train_on)
    names = source.source_names()
    rows = _RowReader(reader, reading, names, labels_needed=labels_needed).read(raw_rows)
    detected = reading.format is None and reading.dataset_info is None
    labels = (reading.id_column or "id", reading.source_column or "source")
    first = [
        record.texts() if isinstance(record, TableRecord) else record
        for record in records[:ROWS_TO_DETECT_FROM]
    ]
    unread = () if reading.dataset_info else left_out(first, row_format, columns, labels)
    sha256 = fingerprint(source) if held is None else held.fingerprint()
    id_column = reading.id_column or "id"
    odd_ids = tuple(
        row.place
        for row, raw in zip(rows, raw_rows, strict=True)
        if row.example is not None and _is_odd(raw.record.get(id_column))
    )
    pool = Pool(
        source, row_format, detected, columns, sha256, rows, read_as, tuple(unread), odd_ids, held
    )
    _require_usable(pool)
    return pool


class _RowReader:
    """Turns raw rows into pool rows, knowing the ids of the file and those given so far."""

    def __init__(
        self,
        reader: Reader,
        reading: ReadingConfig,
        source_names: Mapping[str | None, str],
        *,
        labels_needed: bool,
    ):
        # Of tables and of lines: a table fills absent fields with null.
        self._readers = {filled: replace(reader, filled=filled) for filled in (True, False)}
        self._id_column = reading.id_column or "id"
        self._id_required = reading.id_column is not None and labels_needed
        self._source_column = reading.source_column or "source"
        self._source_names = source_names
        self._rename = reading.duplicate_ids == "rename"
        self._ids_in_file: Counter[str] = Counter()
        self._given: set[str] = set()
        # Id of a row's own → what rows of that id say, and where.
        self._places_of: dict[str, dict[str, str]] = {}
        self._copies: Counter[str] = Counter()

    def read(self, raw_rows: Sequence[RawRow]) -> tuple[PoolRow, ...]:
        ids = (self._own_id(raw) for raw in raw_rows)
        self._ids_in_file.update(own_id for own_id in ids if own_id is not None)
        return tuple(map(self._read, raw_rows))

    def _read(self, raw: RawRow) -> PoolRow:
        row = PoolRow(raw.index, raw.line, "", raw.start, raw.end, None, None, None, None,
                      file=raw.file, index_in_file=raw.index_in_file)  # fmt: skip
        own_id = self._own_id(raw)
        try:
            example, content_hash, source = self._example(raw, own_id)
        except RowError as error:
            instance_id = self._id_of_dropped(own_id, raw.index, row.place)
            row = replace(row, reason=error.reason, detail=short(error.detail, 400))
            if own_id is not None and own_id != instance_id:
                row = replace(row, own_id=own_id)
        else:
            row = replace(row, example=example, content_hash=content_hash, source=source)
            if own_id is None:
                instance_id = self._hash_id(content_hash)
            elif own_id in self._places_of:
                instance_id = self._numbered(own_id)
                row = replace(row, own_id=own_id)
            else:
                instance_id = own_id
            if own_id is not None:
                self._places_of.setdefault(own_id, {})[content_hash] = row.place
        self._given.add(instance_id)
        return replace(row, instance_id=instance_id)

    def _own_id(self, raw: RawRow) -> str | None:
        return None if raw.record is None else _id_of(raw.record.get(self._id_column))

    def _example(self, raw: RawRow, own_id: str | None) -> tuple[Example, str, str | None]:
        if raw.error is not None:
            raise RowError(*raw.error)
        try:
            filled = isinstance(raw.record, TableRecord) and raw.record.filled
            example = self._readers[filled].parse(raw.record)
        except RowError:
            _require_converted(raw.record)
            raise
        except RecursionError:
            raise RowError("unreadable_line", "nested too deeply") from None
        source = _text_of(raw.record, self._source_column) or self._source_names.get(raw.file)
        _require_converted(raw.record)
        content_hash = _content_hash(example)
        if raw.remark is not None:
            example = replace(example, remarks=(*example.remarks, raw.remark))
        if own_id is None and self._id_required:
            raise RowError(
                "missing_field", f"no text or whole number in id field {self._id_column!r}"
            )
        earlier = self._places_of.get(own_id, {}) if own_id is not None else {}
        if earlier and (not self._rename or content_hash in earlier):
            same = " and says the same" if content_hash in earlier else ""
            of = earlier.get(content_hash) or next(iter(earlier.values()))
            raise RowError("duplicate_id", f"id {short(own_id, 60)!r} is also that of {of}{same}")
        return example, content_hash, source

    def _id_of_dropped(self, own_id: str | None, index: int, where: str) -> str:
        if own_id is None:
            return self._free(f"dropped-{where.replace(', ', '-').replace(' ', '-')}")
        # A dropped row must not take an id away from a row that can be used.
        return own_id if self._ids_in_file[own_id] == 1 else self._free(f"{own_id}#row{index}")

    def _hash_id(self, content_hash: str) -> str:
        self._copies[content_hash] += 1
        n = self._copies[content_hash]
        return self._free(content_hash if n == 1 else f"{content_hash}-{n}")

    def _numbered(self, own_id: str) -> str:
        # Ids of the file's own may look like this, too.
        n = len(self._places_of[own_id]) + 1
        while (name := f"{own_id}#{n}") in self._given or name in self._ids_in_file:
            n += 1
        return name

    def _free(self, wished: str) -> str:
        while wished in self._given or wished in self._ids_in_file:
            wished += "_"
        return wished


def _id_of(value: object) -> str | None:
    # To pandas, whole numbers of which some are missing are floats.
    whole = isinstance(value, float) and value.is_integer() and abs(value) < MOST_EXACT
    return _as_text(int(value) if whole else value)


def _is_odd(value: object) -> bool:
    absent = value is None or value == "" or (isinstance(value, float) and value != value)
    return not absent and _id_of(value) is None


def _text_of(record: Mapping[str, Any], column: str) -> str | None:
    return _as_text(record.get(column))


def _as_text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    # Half a surrogate pair cannot be stored.
    return str(value).encode("utf-8", "backslashreplace").decode()


def _content_hash(example: Example) -> str:
    try:
        text = json.dumps(
            what_it_says(example), sort_keys=True, ensure_ascii=False, default=str, allow_nan=False
        )
        content = text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise RowError(
            "unreadable_line", f"half a surrogate pair ({half}), which stands for no character"
        ) from None
    except TypeError as error:  # Keys of different types cannot be sorted.
        raise RowError("wrong_type", f"a field holds what no JSON does: {error}") from None
    except ValueError:
        raise RowError(
            "unreadable_line", "a number that is not finite, or beyond what a float holds"
        ) from None
    return hashlib.sha256(content).hexdigest()[:16]


def _require_converted(record: Mapping[str, Any] | None) -> None:
    """Refuse a row of a table of which a cell that is read cannot be converted."""
    if isinstance(record, TableRecord) and record.unreadable is not None:
        raise RowError("unreadable_line", record.unreadable)


def _require_consistent(reading: ReadingConfig, named: Columns) -> None:
    if (named.prompt is None) != (named.response is None):
        raise GradsiftError(
            "`prompt_column` and `response_column` belong together; one is missing."
        )
    if reading.format is not None and reading.format not in ROW_FORMATS:
        raise GradsiftError(f"`format` is {reading.format!r}; known are {', '.join(ROW_FORMATS)}.")
    if reading.dataset_info is not None and (reading.format is not None or named != Columns()):
        raise GradsiftError(
            f"{reading.dataset_info} says the format and the columns; leave out `format` and the "
            "columns, or `dataset_info`."
        )


def _require_readable(source: Source, raw_rows: Sequence[RawRow]) -> None:
    if not raw_rows:
        raise GradsiftError(f"{source.name}: there are no rows in it.")
    if all(raw.error is not None for raw in raw_rows):
        first = raw_rows[0]
        raise GradsiftError(
            f"{source.name}: none of the {len(raw_rows)} rows can be read; "
            f"{place(first.index, first.line, first.file, first.index_in_file)}: "
            f"{short(first.error[1], 400)}."
        )


def _require_field(
    source: Source, records: Sequence[Mapping[str, Any]], kind: str, column: str | None
) -> None:
    if column is not None and not any(column in record for record in records):
        raise GradsiftError(
            f"{source.name}: no row has the {kind} field {column!r}; found "
            f"{few(records[0])}. Name another with `{kind}_column`, or leave it out."
        )


def _require_usable(pool: Pool) -> None:
    if any(row.example is not None for row in pool.rows):
        return
    counts = ", ".join(f"{reason} {n}" for reason, n in pool.dropped_by_reason.items())
    first = pool.rows[0]
    raise GradsiftError(
        f"{pool.source.name}: none of the {len(pool.rows)} rows is usable as {pool.row_format} "
        f"({counts}); {first.place}: {first.detail}. Force another format with "
        "`format`, or name two columns with `prompt_column` and `response_column`."
    )
