"""Raw row → pool row: which id it gets, which hash its content has, or why it is dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradsift.data.example import Example, RowError
from gradsift.data.formats import Columns, parse_record
from gradsift.data.pool import PoolRow, place
from gradsift.data.source import RawRow


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        row_format: A key of ROW_FORMATS.
        columns: Names of their fields.
        train_on: "all" assistant turns, or the "last".
        id_column: Field with a row's own id.
        id_required: Whether a row without one is dropped.
        source_column: Field that says where a row comes from.
    """

    row_format: str
    columns: Columns
    train_on: str
    id_column: str
    id_required: bool
    source_column: str


def pool_rows_of(raw_rows: Sequence[RawRow], how: Reading) -> tuple[PoolRow, ...]:
    """Read what every row says.

    Args:
        raw_rows: As they lie in their source.
        how: They are read.

    Returns:
        As many rows, in the same order; those that cannot be used with their reason.
    """
    rows = _Rows(how)
    rows.announce(raw.record for raw in raw_rows if raw.record is not None)
    return tuple(rows.add(raw) for raw in raw_rows)


class _Rows:
    """Turns raw rows into pool rows, knowing the ids of the file and those given so far."""

    def __init__(self, how: Reading):
        self._how = how
        self._ids_in_file: Counter[str] = Counter()
        self._given: set[str] = set()
        self._place_of: dict[str, str] = {}
        self._copies: Counter[str] = Counter()

    def announce(self, records: Iterable[Mapping[str, Any]]) -> None:
        ids = (_text_of(record, self._how.id_column) for record in records)
        self._ids_in_file.update(own_id for own_id in ids if own_id is not None)

    def add(self, raw: RawRow) -> PoolRow:
        where = place(raw.index, raw.line)
        row = PoolRow(raw.index, raw.line, "", raw.start, raw.end, None, None, None, None)
        own_id = None if raw.record is None else _text_of(raw.record, self._how.id_column)
        try:
            example, content_hash = self._example(raw, own_id)
        except RowError as error:
            instance_id = self._id_of_dropped(own_id, raw.index, where)
            row = replace(row, reason=error.reason, detail=error.detail)
        else:
            instance_id = self._hash_id(content_hash) if own_id is None else own_id
            self._place_of[instance_id] = where
            source = _text_of(raw.record, self._how.source_column)
            row = replace(row, example=example, content_hash=content_hash, source=source)
        self._given.add(instance_id)
        return replace(row, instance_id=instance_id)

    def _example(self, raw: RawRow, own_id: str | None) -> tuple[Example, str]:
        if raw.error is not None:
            raise RowError(*raw.error)
        example = parse_record(
            raw.record, self._how.row_format, self._how.columns, self._how.train_on
        )
        content_hash = _content_hash(example)
        if own_id is None and self._how.id_required:
            raise RowError(
                "missing_field", f"no text or whole number in id field {self._how.id_column!r}"
            )
        if own_id is not None and own_id in self._place_of:
            raise RowError(
                "duplicate_id", f"id {own_id!r} is also that of {self._place_of[own_id]}"
            )
        return example, content_hash

    def _id_of_dropped(self, own_id: str | None, index: int, where: str) -> str:
        if own_id is None:
            return self._free(f"dropped-{where.replace(' ', '-')}")
        # A dropped row must not take an id away from a row that can be used.
        return own_id if self._ids_in_file[own_id] == 1 else self._free(f"{own_id}#row{index}")

    def _hash_id(self, content_hash: str) -> str:
        self._copies[content_hash] += 1
        n = self._copies[content_hash]
        return self._free(content_hash if n == 1 else f"{content_hash}-{n}")

    def _free(self, wished: str) -> str:
        while wished in self._given or wished in self._ids_in_file:
            wished += "_"
        return wished


def _text_of(record: Mapping[str, Any], column: str) -> str | None:
    value = record.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    # Half a surrogate pair cannot be stored.
    return str(value).encode("utf-8", "backslashreplace").decode()


def _content_hash(example: Example) -> str:
    text = json.dumps(asdict(example), sort_keys=True, ensure_ascii=False, default=str)
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise RowError(
            "unreadable_line", f"half a surrogate pair ({found}), which stands for no character"
        ) from None
    return hashlib.sha256(content).hexdigest()[:16]
