"""What arms.py measured, as tables: each arm beside random rows of its budget and beside all rows.

Differences have the intervals of `gradsift compare` (items and trainings); below 0 is better. A row
that no training stands behind is left out, so the tables say themselves what is missing.

Usage:
    python experiments/tables.py experiments/results/dirty [--test NAME] [--general text]
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from gradsift.comparison.results import ENOUGH_DF, OWN_SPREAD
from gradsift.evaluation.intervals import Measured, estimate_difference, pooled_spread
from gradsift.evaluation.metrics import METRICS, replicate, resampling_weights
from gradsift.evaluation.uncertainty import NO_SPREAD

N_RESAMPLINGS = 2000
BASE, FULL, RANDOM = "base", "full", "random"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("--test", default="test", help="the test that learning is judged by")
    parser.add_argument("--general", default="text", help="the test that forgetting is judged by")
    arguments = parser.parse_args()
    print(tables(arguments.cells, arguments.test, arguments.general))


def tables(folder, test="test", general="text"):
    parts = []
    for pool, arms in sorted(read_cells(folder).items()):
        table = Table(arms, test, general)
        head = ["", "trainings", "bad rows", "loss", "less random", "less full", "text loss forgot"]
        lines = [f"**{pool}**", "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
        lines += ["| " + " | ".join(table.line(name)) + " |" for name in table.names()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def read_cells(folder):
    """Pool → arm → its trainings, in their order."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("cells-*.jsonl")):
        for cell in map(json.loads, path.read_text().splitlines()):
            found[cell["pool"]][cell["arm"]].append(cell)
    for arms in found.values():
        for cells in arms.values():
            cells.sort(key=lambda cell: cell["training"])
    return found


class Table:
    """The arms of a pool; an arm is called NAME or NAME BUDGET."""

    def __init__(self, arms, test, general):
        self.arms, self.tests = arms, {"learning": test, "general": general}
        self.weights = {}

    def names(self):
        def place(name):
            budget = budget_of(name)
            first = 0 if name == BASE else 1 if name == FULL else 2
            return first, -float((budget or "0").rstrip("%")), not draws(name), name

        return sorted(self.arms, key=place)

    def line(self, name):
        cells, budget = self.arms[name], budget_of(name)
        random = f"{RANDOM} {budget}"
        bad = cells[0].get("bad")
        mean = [np.mean(cell["losses"][self.tests["learning"]]) for cell in cells]
        return [
            name,
            str(len(cells)),
            "" if bad is None or name == BASE else f"{np.mean([c['bad'] for c in cells]):.0%}",
            f"{np.mean(mean):.3f}",
            "" if budget is None or name == random else self.difference(name, random, "learning"),
            "" if name in (BASE, FULL) else self.difference(name, FULL, "learning"),
            "" if name == BASE else self.difference(name, BASE, "general"),
        ]

    def difference(self, name, other, kind):
        if other not in self.arms or not all(
            self.tests[kind] in cell["losses"] for arm in (name, other) for cell in self.arms[arm]
        ):
            return ""
        estimate = estimate_difference(self.measured(name, kind), self.measured(other, kind))
        clear = "**" if estimate.p < 0.05 else ""
        half = (estimate.high - estimate.low) / 2
        return f"{clear}{estimate.value:+.3f} ± {half:.3f}{clear}"

    def measured(self, name, kind):
        return Measured(self.replicates(name, kind), self.spread(name, kind))

    def replicates(self, name, kind):
        runs = []
        for cell in self.arms[name]:
            items_N1 = np.array(cell["losses"][self.tests[kind]])[:, None]
            n = len(items_N1)
            if n not in self.weights:
                self.weights[n] = resampling_weights({kind: n}, N_RESAMPLINGS, 0)[kind]
            runs.append(replicate(METRICS["loss"], {kind: items_N1}, {kind: self.weights[n]}))
        return runs

    def spread(self, name, kind):
        """As in a comparison: its own, or that of arms of its class and budget, or of its class."""
        if name == BASE:
            return NO_SPREAD
        alike = [arm for arm in self.arms if arm != BASE and draws(arm) == draws(name)]
        of_budget = [arm for arm in alike if budget_of(arm) == budget_of(name)]
        own = [[name]] if len(self.arms[name]) >= OWN_SPREAD else []
        others = [] if draws(name) else [[arm for arm in self.arms if arm != BASE]]
        spread = None
        for lenders in (*own, of_budget, alike, *others):
            found = pooled_spread([self.replicates(arm, kind) for arm in lenders])
            spread = found or spread
            if spread is not None and spread.df >= ENOUGH_DF:
                return spread
        return spread


def budget_of(name):
    last = name.rpartition(" ")[2]
    return last if last.endswith("%") else None


def draws(name):
    """Whether an arm draws its rows anew for each training."""
    return name.startswith(RANDOM)


if __name__ == "__main__":
    main()
