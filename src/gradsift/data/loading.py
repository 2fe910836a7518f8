"""SFT source → pool: which format and columns it has, and each of its rows read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsift.data.containers import fingerprint, read_rows
from gradsift.data.detection import settle_format
from gradsift.data.formats import ROW_FORMATS, Columns
from gradsift.data.llamafactory import read_dataset_info
from gradsift.data.pool import Pool, place
from gradsift.data.pool_rows import Reading, pool_rows_of
from gradsift.data.source import RawRow, Source, absolute, find_source

TRAIN_ON = ("all", "last")


def load_pool(
    data: str | Path,
    *,
    row_format: str | None = None,
    id_column: str | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    system_column: str | None = None,
    source_column: str | None = None,
    dataset_info: str | Path | None = None,
    split: str | None = None,
    train_on: str = "all",
    labels_needed: bool = True,
) -> Pool:
    """Read an SFT source of any known container and row format.

    Args:
        data: A file, a `save_to_disk` folder, a hub id; with `dataset_info` a name in it.
        row_format: Forces a format; detected from the first rows if None.
        id_column: Field with the row's id; `id` is taken if it is there.
        prompt_column: Field with the question.
        response_column: Field with the answer.
        system_column: Field with a system prompt.
        source_column: Field that says where a row comes from; `source` is taken if it is there.
        dataset_info: LLaMA-Factory's dataset_info.json.
        split: Of a folder or hub dataset that has several.
        train_on: "all" assistant turns, or the "last".
        labels_needed: Whether fields that are named for id and source have to be there.

    Returns:
        The pool; rows that cannot be used are in it with their reason.

    Raises:
        ValueError: If the source cannot be read, its format is not recognised, or no row is usable.
    """
    read_as = {
        "data": str(data) if dataset_info is not None else absolute(data),
        "format": row_format,
        "id_column": id_column,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "system_column": system_column,
        "source_column": source_column,
        "dataset_info": None if dataset_info is None else absolute(dataset_info),
        "split": split,
        "train_on": train_on,
    }
    named = Columns(prompt=prompt_column, response=response_column, system=system_column)
    _require_known(row_format, named, train_on, dataset_info)
    detected = row_format is None and dataset_info is None
    if dataset_info is None:
        source = find_source(str(data), split)
    else:
        file, row_format, columns, its_split = read_dataset_info(dataset_info, str(data))
        source = find_source(file, split or its_split)
    raw_rows = list(read_rows(source))
    readable = [raw.record for raw in raw_rows if raw.record is not None]
    _require_readable(source, raw_rows)
    if dataset_info is None:
        row_format, columns = settle_format(readable, row_format, named)
    if labels_needed:
        _require_field(source, readable, "id", id_column)
        _require_field(source, readable, "source", source_column)
    how = Reading(
        row_format,
        columns,
        train_on,
        id_column=id_column or "id",
        id_required=id_column is not None and labels_needed,
        source_column=source_column or "source",
    )
    rows = pool_rows_of(raw_rows, how)
    pool = Pool(source, row_format, detected, columns, fingerprint(source), rows, read_as)
    _require_usable(pool)
    return pool


def _require_known(
    row_format: str | None, named: Columns, train_on: str, dataset_info: str | Path | None
) -> None:
    if (named.prompt is None) != (named.response is None):
        raise ValueError("--prompt-column and --response-column belong together; one is missing.")
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; known are {', '.join(TRAIN_ON)}.")
    if row_format is not None and row_format not in ROW_FORMATS:
        raise ValueError(f"format is {row_format!r}; known are {', '.join(ROW_FORMATS)}.")
    if dataset_info is not None and (row_format is not None or named != Columns()):
        raise ValueError(
            f"{dataset_info} says the format and the columns; leave out --format and the "
            "columns, or --dataset-info."
        )


def _require_readable(source: Source, raw_rows: Sequence[RawRow]) -> None:
    if not raw_rows:
        raise ValueError(f"{source.name}: there are no rows in it.")
    if all(raw.error is not None for raw in raw_rows):
        first = raw_rows[0]
        raise ValueError(
            f"{source.name}: none of the {len(raw_rows)} rows can be read; "
            f"{place(first.index, first.line)}: {first.error[1]}."
        )


def _require_field(
    source: Source, records: Sequence[Mapping[str, Any]], kind: str, column: str | None
) -> None:
    if column is not None and not any(column in record for record in records):
        raise ValueError(
            f"{source.name}: no row has the {kind} field {column!r}; found "
            f"{sorted(records[0])}. Name another with --{kind}-column, or leave it out."
        )


def _require_usable(pool: Pool) -> None:
    if any(row.example is not None for row in pool.rows):
        return
    counts = ", ".join(f"{reason} {n}" for reason, n in pool.dropped_by_reason.items())
    first = pool.rows[0]
    raise ValueError(
        f"{pool.source.name}: none of the {len(pool.rows)} rows is usable as {pool.row_format} "
        f"({counts}); {place(first.row, first.line)}: {first.detail}. Force another format with "
        "--format, or name two columns with --prompt-column and --response-column."
    )
