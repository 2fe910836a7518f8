"""The rows of a selection, read from its folder with their own fields."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from gradsift.data.containers.rows import read_rows
from gradsift.data.containers.sources import find_written
from gradsift.errors import GradsiftError

if TYPE_CHECKING:
    import datasets

NO_DATASETS = "to_dataset() needs the package datasets: pip install 'gradsift[train]'"


def records_of(selected_file: Path) -> list[dict[str, Any]]:
    """Return rows in the input's order.

    Args:
        selected_file: With the selected rows; or a folder with a file for each of the input.

    Returns:
        Their own fields.

    Raises:
        GradsiftError: If the file was changed, and one is no row any more.
    """
    records = []
    for n, row in enumerate(read_rows(find_written(selected_file)), 1):
        if row.record is None:
            raise GradsiftError(
                f"{selected_file}: row {n} is no row any more "
                f"({': '.join(row.error or ())}). Select again."
            )
        records.append(dict(row.record))
    return records


def dataset_of(selected_file: Path) -> datasets.Dataset:
    """Return rows as a dataset of Hugging Face; see `SelectResult.to_dataset`.

    Args:
        selected_file: As for `records_of`.

    Returns:
        The dataset.

    Raises:
        GradsiftError: As for `records_of`, or if the package datasets is missing.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise GradsiftError(NO_DATASETS) from None
    if selected_file.suffix == ".parquet":
        return Dataset(pq.read_table(selected_file))
    records = records_of(selected_file)
    # Not `from_list`, which has the fields of the first row only.
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Dataset.from_dict(columns, on_mixed_types="use_json")
