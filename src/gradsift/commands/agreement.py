"""Do two captures of the same rows rank them alike?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.selection.scores import rank_correlation
from gradsift.store.reader import GradientStore
from gradsift.terms import LAYERS, LM_HEAD, STATISTICS
from gradsift.wording import in_line, joined

# From which share of the same rows on, in the tenth with the smallest gradients, what is said.
_MEANING = (
    (0.8, "either run stands for the other"),
    (0.5, "the order is much the same, but not where a small budget cuts"),
    (0.0, "one run does not stand for the other"),
)
_BUDGETS = {"10%": 0.1, "50%": 0.5}


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between two captures.

    Attributes:
        runs: The two run folders.
        n_instances: Rows that both have, with a finite gradient.
        correlations: Spearman's rank correlation by what is compared; None where it is undefined.
        shared: Budget → share of the rows that both runs would choose by the smallest gradient
            norm alone, in the layer in which they agree least; None without a common layer.
        of_one_only: Layers that only one of them recorded.
    """

    runs: tuple[str, str]
    n_instances: int
    correlations: dict[str, float | None]
    shared: dict[str, float] | None = None
    of_one_only: tuple[str, ...] = ()

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
            "shared": self.shared,
            "of_one_only": list(self.of_one_only),
            "sentence": self.sentence(),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [f"rank correlation (Spearman) over {self.n_instances} rows that both runs have"]
        for name, value in self.correlations.items():
            lines.append(f"  {name:22}{'undefined' if value is None else f'{value:+.3f}'}")
        lines += [
            f"  {layer}: only one of the runs recorded it, so it is not compared"
            for layer in self.of_one_only
        ]
        return joined([*lines, "", self.sentence()])

    def sentence(self) -> str:
        """Say what that means for a selection: how many rows both would choose."""
        if self.shared is None:
            return "In short: they recorded no layer in common, so nothing can be said."
        means = next(words for least, words in _MEANING if self.shared["10%"] >= least)
        tenth, half = (100 * self.shared[budget] for budget in _BUDGETS)
        return (
            f"In short: {means}. Of the tenth of the rows with the smallest gradients {tenth:.0f} "
            f"% are the same in both (10 % by chance), of the half {half:.0f} % (50 %)."
        )


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
    of_one = tuple(sorted({*stores[0].layers} ^ {*stores[1].layers}))
    return Agreement(folders, len(common), correlations, _shared(a, b), of_one)


def _shared(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float] | None:
    names = [name for layer in LAYERS if (name := f"{layer} l2_norm") in a.keys() & b.keys()]
    shares = {}
    for budget, share in _BUDGETS.items():
        by_layer = []
        for name in names:
            n = max(1, round(share * len(a[name])))
            both = [set(np.argsort(values[name], kind="stable")[:n].tolist()) for values in (a, b)]
            by_layer.append(len(both[0] & both[1]) / n)
        if by_layer:
            shares[budget] = min(by_layer)
    return shares or None


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
