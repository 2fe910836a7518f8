"""Do two captures of the same rows rank them alike?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.selection.scores import rank_correlation
from gradsift.store.reader import GradientStore
from gradsift.terms import LM_HEAD, STATISTICS
from gradsift.wording import in_line, joined


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between two captures.

    Attributes:
        runs: The two run folders.
        n_instances: Rows that both have, with a finite gradient.
        correlations: Spearman's rank correlation by what is compared; None where it is undefined.
    """

    runs: tuple[str, str]
    n_instances: int
    correlations: dict[str, float | None]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return in_line(
            f"Agreement({self.n_instances} rows, {len(self.correlations)} rank correlations, of "
            f"{self.runs[0]} and {self.runs[1]})"
        )

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "runs": self.runs,
            "n_instances": self.n_instances,
            "rank_correlation": self.correlations,
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [f"rank correlation (Spearman) over {self.n_instances} rows that both runs have"]
        for name, value in self.correlations.items():
            lines.append(f"  {name:22}{'undefined' if value is None else f'{value:+.3f}'}")
        return joined(lines)


def agreement(
    run: str | Path | GradientStore | Run, other: str | Path | GradientStore | Run
) -> Agreement:
    """Correlate every number that two captures have of the same rows.

    Args:
        run: A run folder.
        other: Another one.

    Returns:
        The rank correlations.

    Raises:
        GradsiftError: If they have fewer than three rows in common.
    """
    stores = Run.of(run).store, Run.of(other).store
    usable = [
        {i for i, ok in zip(store.instance_ids, store.finite, strict=True) if ok}
        for store in stores
    ]
    common = usable[0] & usable[1]
    folders = tuple(str(store.folder) for store in stores)
    if len(common) < 3:
        raise GradsiftError(
            f"{' and '.join(folders)} have {len(common)} rows in common, expected at least 3: are "
            "they captures of the same data?"
        )
    a, b = (_values(store, common) for store in stores)
    correlations = {name: rank_correlation(a[name], b[name]) for name in a if name in b}
    return Agreement(folders, len(common), correlations)


def _values(store: GradientStore, ids: set[str]) -> dict[str, np.ndarray]:
    rows = [at for at, instance_id in enumerate(store.instance_ids) if instance_id in ids]
    values = {
        f"{layer} {name}": store.statistics[layer][name]
        for layer in store.layers
        for name in STATISTICS
        # Zero in exact arithmetic: softmax minus one-hot sums to zero over the vocabulary.
        if (layer, name) != (LM_HEAD, "mean")
    }
    values |= {"loss": store.loss, "el2n": store.el2n}
    return {name: array[rows] for name, array in values.items()}
