"""The pool: every row of an SFT source, with its id and what it says, or the reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradsift.data.example import Example
from gradsift.data.formats import Columns
from gradsift.data.source import Source


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
        source: What the row says of where it comes from, if it does.
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
        read_as: What `load_pool` was told, to read the same rows again.
    """

    source: Source
    row_format: str
    detected: bool
    columns: Columns
    sha256: str
    rows: tuple[PoolRow, ...]
    read_as: Mapping[str, str | None] = field(default_factory=dict)

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
            where = place(first.row, first.line)
            lines.append(f"{n} rows dropped, {reason}; the first, {where}: {first.detail}")
        return lines


def place(row: int, line: int | None) -> str:
    """Return where a row stands, as messages say it.

    Args:
        row: 0-based position.
        line: 1-based line of the file, if it has lines.
    """
    return f"row {row}" if line is None else f"line {line}"
