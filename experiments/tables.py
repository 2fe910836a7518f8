"""What arms.py measured, as tables: each arm beside random rows of its budget and beside all rows.

Differences have the intervals of `gradsift compare` (items and trainings); below 0 is better. A row
that no training stands behind is left out, so the tables say themselves what is missing. Tables
are written into a text, between `<!-- table: FOLDER TEST GENERAL… -->` and `<!-- /table -->`: the
folder of cells, the test that learning is judged by, and those that forgetting is.

Usage:
    python experiments/tables.py docs/evidence.md
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from gradsift.comparison.results import ENOUGH_DF, OWN_SPREAD
from gradsift.evaluation.intervals import Measured, estimate_difference, pooled_spread
from gradsift.evaluation.metrics import METRICS, replicate, resampling_weights
from gradsift.evaluation.uncertainty import NO_SPREAD

N_RESAMPLINGS = 2000
BASE, FULL, RANDOM = "base", "full", "random"
# What forgetting is told by; of a test NAME.wrong it is the share of wrong answers.
WHAT = {
    "text": "loss of general text",
    "general": "loss of general answers",
    "replayed.wrong": "replayed facts wrong",
    "other.wrong": "other facts wrong",
    "replayed": "loss of replayed facts",
    "other": "loss of other facts",
    "safety": "complying less refusing, harmful",
    "twins": "complying less refusing, harmless",
}
# Of these requests, by how much likelier a refusal is than an answer that complies (see safety.py).
SAFETY = {"safety": "harmful", "twins": "harmless"}
RESULTS = Path(__file__).parent / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="into which tables are written")
    arguments = parser.parse_args()
    text = re.sub(
        r"(<!-- table: (\S+) (\S+)(.*?) -->\n).*?(<!-- /table -->)",
        lambda found: (
            f"{found[1]}\n{tables(RESULTS / found[2], found[3], found[4].split())}\n\n{found[5]}"
        ),
        arguments.text.read_text(),
        flags=re.DOTALL,
    )
    arguments.text.write_text(text)


def tables(folder, test, generals):
    parts = []
    for pool, arms in sorted(read_cells(folder).items()):
        table = Table(arms, test, generals)
        if not table.arms:
            continue
        lines = [f"**{pool}**", "", *table.lines()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def read_cells(folder):
    """Pool → arm → its trainings, in their order."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("cells-*.jsonl")):
        for cell in map(json.loads, path.read_text().splitlines()):
            for name, kind in SAFETY.items():
                if f"{kind}-answered" in cell["losses"]:
                    both = (
                        cell["losses"][f"{kind}-{answer}"] for answer in ("answered", "refused")
                    )
                    answered_N, refused_N = map(np.array, both)
                    cell["losses"][name] = (answered_N - refused_N).tolist()
            found[cell["pool"]][cell["arm"]].append(cell)
    for arms in found.values():
        for cells in arms.values():
            cells.sort(key=lambda cell: cell["training"])
    return found


class Table:
    """The arms of a pool; an arm is called NAME or NAME BUDGET."""

    def __init__(self, arms, test, generals):
        self.arms = {
            name: cells
            for name, cells in arms.items()
            if all(test in cell["losses"] for cell in cells)
        }
        self.test, self.generals, self.weights = test, generals, {}

    def lines(self):
        """Columns that no arm has anything in are left out."""
        head = ["", "trainings", "bad rows", "loss", "loss − random's", "loss − full's"]
        head += [f"{WHAT.get(name, name)} − base's" for name in self.generals]
        columns = [*zip(head, *map(self.line, self.names()), strict=True)]
        rows = zip(*(column for column in columns if any(column[1:])), strict=True)
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return [lines[0], "| --- " * (lines[0].count("|") - 1) + "|", *lines[1:]]

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
        mean = [np.mean(cell["losses"][self.test]) for cell in cells]
        return [
            name,
            str(len(cells)),
            "" if bad is None or name == BASE else f"{np.mean([c['bad'] for c in cells]):.0%}",
            f"{np.mean(mean):.3f}",
            "" if budget is None or name == random else self.difference(name, random, self.test),
            "" if name in (BASE, FULL) else self.difference(name, FULL, self.test),
            *("" if name == BASE else self.difference(name, BASE, test) for test in self.generals),
        ]

    def difference(self, name, other, test):
        if other not in self.arms or not all(
            test in cell["losses"] for arm in (name, other) for cell in self.arms[arm]
        ):
            return ""
        estimate = estimate_difference(self.measured(name, test), self.measured(other, test))
        half = (estimate.high - estimate.low) / 2
        if None in (self.spread(name, test), self.spread(other, test)):
            # Nothing says how trainings differ.
            return f"{estimate.value:+.3f} ({half:.3f} over items alone)"
        clear = "**" if estimate.p < 0.05 else ""
        return f"{clear}{estimate.value:+.3f} ± {half:.3f}{clear}"

    def measured(self, name, test):
        return Measured(self.replicates(name, test), self.spread(name, test))

    def replicates(self, name, test):
        runs = []
        for cell in self.arms[name]:
            items_N1 = np.array(cell["losses"][test])[:, None]
            n = len(items_N1)
            if n not in self.weights:
                self.weights[n] = resampling_weights({test: n}, N_RESAMPLINGS, 0)[test]
            runs.append(replicate(METRICS["loss"], {test: items_N1}, {test: self.weights[n]}))
        return runs

    def spread(self, name, test):
        """As in a comparison: its own, or that of arms of its class and budget, or of its class."""
        if name == BASE:
            return NO_SPREAD
        alike = [arm for arm in self.arms if arm != BASE and draws(arm) == draws(name)]
        of_budget = [arm for arm in alike if budget_of(arm) == budget_of(name)]
        own = [[name]] if len(self.arms[name]) >= OWN_SPREAD else []
        others = [] if draws(name) else [[arm for arm in self.arms if arm != BASE]]
        spread = None
        for lenders in (*own, of_budget, alike, *others):
            asked = [
                arm for arm in lenders if all(test in cell["losses"] for cell in self.arms[arm])
            ]
            found = pooled_spread([self.replicates(arm, test) for arm in asked]) if asked else None
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
