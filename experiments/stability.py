"""What of a small subset is due to chance: ids, the rest of the pool, the capture's seed.

For the default strategy, as overlap (rows in both / rows in either) with the subset as it is:

* ids renamed: the same rows in another order, under other ids (mean of so many draws);
* half of the pool removed: the same share of a random half, beside the subset's rows in that half;
* other run folders with the same rows, such as captures with other seeds.

Usage: python experiments/stability.py RUN [OTHER ...] [--budget 5%] [--draws 10]
"""

import argparse
from dataclasses import replace

import numpy as np

from gradsift.config import SelectionConfig
from gradsift.run_folder import Run
from gradsift.selection.audit import overlap
from gradsift.selection.candidates import Context, Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.content import content_vectors, find_clusters
from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.selector import choose_rows

CONFIG = SelectionConfig()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("others", nargs="*")
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    budget = parse_budget(arguments.budget)
    pool = Run(arguments.run).candidates({Need.FEATURES})
    n, subset = len(pool), chosen(pool, budget)
    renamed, halved = [], []
    for seed in range(arguments.draws):
        order = np.random.default_rng(seed).permutation(n)
        renamed.append(overlap(subset, order[list(chosen(part_of(pool, order), budget))]))
        half = order[: n // 2]
        kept = half[list(chosen(part_of(pool, half), budget))]
        halved.append(overlap(subset & set(half.tolist()), kept))
    by_chance = len(subset) / (2 * n - len(subset))
    print(f"{arguments.run}: {n} rows, {arguments.budget}; two random subsets {by_chance:.2f}")
    for what, found in (("ids renamed", renamed), ("half of the pool removed", halved)):
        print(f"{what:28}{np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
    ids = {pool.ids[row] for row in subset}
    for other in arguments.others:
        pool = Run(other).candidates({Need.FEATURES})
        found = {pool.ids[row] for row in chosen(pool, budget)}
        print(f"{other:28}{overlap(ids, found):.2f}")


def chosen(pool, budget):
    vectors = content_vectors(pool.features_ND, pool.step)
    context = Context(find_neighbours(vectors), find_clusters(vectors))
    return set(choose_rows(pool, budget, CONFIG, context).tolist())


def part_of(pool, rows):
    """Return these rows in this order, under new ids."""
    names = ("n_tokens", "n_response_tokens", "step", "loss", "el2n", "features_ND")
    return replace(
        pool,
        ids=[f"{place:09}" for place in range(len(rows))],
        statistics={
            layer: {name: array[rows] for name, array in by_name.items()}
            for layer, by_name in pool.statistics.items()
        },
        **{name: getattr(pool, name)[rows] for name in names},
        source=None,
        language=None,
        sketches={},
        reference_losses={},
    )


if __name__ == "__main__":
    main()
