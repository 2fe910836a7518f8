"""The pool: every row of an SFT source, with its id and what it says, or the reason why not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradsift.data.example import Example, RowError
from gradsift.data.formats import ROW_FORMATS, Columns, parse_record, settle_format
from gradsift.data.llamafactory import read_dataset_info
from gradsift.data.source import RawRow, Source, find_source, fingerprint, read_rows

ROWS_TO_DETECT_FROM = 100


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
    """

    source: Source
    row_format: str
    detected: bool
    columns: Columns
    sha256: str
    rows: tuple[PoolRow, ...]

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
        if self.n_duplicate_texts:
            lines.append(f"{self.n_duplicate_texts} rows repeat the text of an earlier row; kept")
        for reason, n in self.dropped_by_reason.items():
            first = next(row for row in self.rows if row.reason == reason)
            place = f"row {first.row}" if first.line is None else f"line {first.line}"
            lines.append(f"{n} rows dropped, {reason}; the first, {place}: {first.detail}")
        return lines


def load_pool(
    data: str,
    *,
    row_format: str | None = None,
    id_column: str | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    system_column: str | None = None,
    dataset_info: str | None = None,
    split: str | None = None,
    train_on: str = "all",
) -> Pool:
    """Read an SFT source of any known container and row format.

    Args:
        data: A file, a `save_to_disk` folder, a hub id; with `dataset_info` a name in it.
        row_format: Forces a format; detected from the first rows if None.
        id_column: Field with the row's id; `id` is taken if it is there.
        prompt_column: Field with the question.
        response_column: Field with the answer.
        system_column: Field with a system prompt.
        dataset_info: LLaMA-Factory's dataset_info.json.
        split: Of a folder or hub dataset that has several.
        train_on: "all" assistant turns, or the "last".

    Returns:
        The pool; rows that cannot be used are in it with their reason.

    Raises:
        ValueError: If the source cannot be read, its format is not recognised, or no row is usable.
    """
    columns = Columns(prompt=prompt_column, response=response_column, system=system_column)
    if (prompt_column is None) != (response_column is None):
        raise ValueError("--prompt-column and --response-column belong together; one is missing.")
    if dataset_info is not None:
        data, row_format, columns = read_dataset_info(dataset_info, data)
    if row_format is not None and row_format not in ROW_FORMATS:
        raise ValueError(f"format is {row_format!r}; known are {', '.join(ROW_FORMATS)}.")
    source = find_source(data, split)
    raw_rows = list(read_rows(source))
    detected = row_format is None
    readable = [raw.record for raw in raw_rows if raw.record is not None]
    row_format, columns = settle_format(readable[:ROWS_TO_DETECT_FROM], row_format, columns)
    rows = _Rows(row_format, columns, train_on, id_column)
    pool_rows = tuple(rows.add(raw) for raw in raw_rows)
    pool = Pool(source, row_format, detected, columns, fingerprint(source), pool_rows)
    _require_usable(pool)
    return pool


class _Rows:
    """Turns raw rows into pool rows, knowing the ids given so far."""

    def __init__(self, row_format: str, columns: Columns, train_on: str, id_column: str | None):
        self._row_format, self._columns, self._train_on = row_format, columns, train_on
        self._id_column = id_column
        self._place_of: dict[str, str] = {}
        self._copies: Counter[str] = Counter()

    def add(self, raw: RawRow) -> PoolRow:
        place = f"row {raw.index}" if raw.line is None else f"line {raw.line}"
        row = PoolRow(raw.index, raw.line, "", raw.start, raw.end, None, None, None, None)
        try:
            if raw.error is not None:
                raise RowError(*raw.error)
            example = parse_record(raw.record, self._row_format, self._columns, self._train_on)
            row = replace(row, example=example, content_hash=_content_hash(example))
            own_id = self._own_id(raw.record)
            if own_id in self._place_of:
                raise RowError(
                    "duplicate_id", f"id {own_id!r} is also that of {self._place_of[own_id]}"
                )
        except RowError as error:
            wished = self._id_of_dropped(raw) or f"dropped-{place.replace(' ', '-')}"
            row = replace(row, example=None, reason=error.reason, detail=error.detail)
            return self._remember(replace(row, instance_id=self._free(wished)), place)
        instance_id = own_id if own_id is not None else self._hash_id(row.content_hash)
        return self._remember(replace(row, instance_id=instance_id), place)

    def _remember(self, row: PoolRow, place: str) -> PoolRow:
        self._place_of[row.instance_id] = place
        return row

    def _id_of_dropped(self, raw: RawRow) -> str | None:
        value = (raw.record or {}).get(self._id_column or "id")
        return value if isinstance(value, str) and value else None

    def _own_id(self, record: Mapping[str, Any]) -> str | None:
        name = self._id_column or "id"
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            if self._id_column is not None:
                raise RowError("missing_field", f"no text or whole number in id field {name!r}")
            return None
        return str(value)

    def _hash_id(self, content_hash: str) -> str:
        self._copies[content_hash] += 1
        n = self._copies[content_hash]
        return self._free(content_hash if n == 1 else f"{content_hash}-{n}")

    def _free(self, wished: str) -> str:
        while wished in self._place_of:
            wished += "_"
        return wished


def _content_hash(example: Example) -> str:
    text = json.dumps(asdict(example), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _require_usable(pool: Pool) -> None:
    if any(row.example is not None for row in pool.rows):
        return
    if not pool.rows:
        raise ValueError(f"{pool.source.name}: there are no rows in it.")
    counts = ", ".join(f"{reason} {n}" for reason, n in pool.dropped_by_reason.items())
    first = pool.rows[0]
    place = f"row {first.row}" if first.line is None else f"line {first.line}"
    raise ValueError(
        f"{pool.source.name}: none of the {len(pool.rows)} rows is usable as {pool.row_format} "
        f"({counts}); {place}: {first.detail}. Force another format with --format, or name two "
        "columns with --prompt-column and --response-column."
    )
