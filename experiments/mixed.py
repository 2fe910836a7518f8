"""Mixed pools: one source of four is wanted, and a few rows of it are there to say which.

The pool has N rows of each of four sources; the targets are 64 further rows of each domain. Every
rule that looks at a target is trained for every target and tested on all its test rows; random
subsets of the pool, and of the wanted source alone, are what it has to be compared with.
`pools` makes and captures (it resumes), `jobs` says what is trained, `arms.py` trains.

Usage:
    python experiments/mixed.py pools OUT --data DIR
    python experiments/mixed.py jobs OUT --part controls
    python experiments/arms.py OUT experiments/results/mixed
"""

import argparse
import json
import random
from pathlib import Path

from lab import add_jobs, capture_target, n_rows_of, prepare, selected
from planting import read_rows

import gradsift as gs

TARGETS = ("medicine", "law", "finance")
SOURCES = (*TARGETS, "general")
REGIME = {"epochs": 2, "learning_rate": 2e-4}
BASE, RANDOM, ORACLE = "base", "random", "random of the source"
BUDGETS = ("5%", "15%")
# Part → rules: name, trainings, settings; a rule without settings draws. Those that look at no
# target are trained once for all of them.
ALL_WANTED = ("grads", "facility-location")
PARTS = {
    "controls": [(BASE, 1, None), (RANDOM, 5, None), (ORACLE, 3, None)],
    "targets": [
        ("rds", 3, {"strategy": "rds"}),
        ("target-turns", 3, {"strategy": "target-turns"}),
    ],
    "more targets": [("target-similarity", 3, {"strategy": "target-similarity"})],
    "all wanted": [
        ("grads", 3, {}),
        ("facility-location", 3, {"strategy": "facility-location"}),
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    pools = commands.add_parser("pools")
    pools.add_argument("--data", type=Path, required=True, help="folder of SOURCE/train.jsonl")
    pools.add_argument("--rows", type=int, default=150, help="of each source")
    pools.add_argument("--target-rows", type=int, default=64)
    pools.add_argument("--seed", type=int, default=0)
    pools.add_argument("--model", default="demo")
    pools.set_defaults(act=make_pools)
    jobs = commands.add_parser("jobs")
    jobs.add_argument("--part", choices=PARTS, nargs="+", required=True)
    jobs.add_argument("--targets", nargs="+", default=TARGETS)
    jobs.add_argument("--budgets", nargs="+", default=BUDGETS)
    jobs.set_defaults(act=list_jobs)
    for command in (pools, jobs):
        command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.act(arguments)


def make_pools(arguments):
    draw, rows, targets = random.Random(arguments.seed), [], {}
    for source in SOURCES:
        found = read_rows(arguments.data / source / "train.jsonl")
        drawn = draw.sample(found, arguments.rows + arguments.target_rows)
        rows += [{**row, "origin": source} for row in drawn[: arguments.rows]]
        targets[source] = drawn[arguments.rows :]
    draw.shuffle(rows)
    kept = ("id", "prompt", "response", "source", "origin")
    prepare(
        arguments.out / "mixed",
        [{key: row[key] for key in kept} for row in rows],
        {name: read_rows(arguments.data / name / "test.jsonl") for name in TARGETS},
        model=arguments.model,
    )
    for name in TARGETS:
        capture_target(arguments.out / "mixed" / "targets" / name, targets[name], arguments.model)


def list_jobs(arguments):
    mixed, jobs = Mixed(arguments.out / "mixed"), []
    for part in arguments.part:
        for name, n_trainings, settings in PARTS[part]:
            for budget in arguments.budgets:
                for training in range(n_trainings):
                    common = {"pool": "mixed", "training": training, "seed": training, **REGIME}
                    arms = mixed.arms(name, budget, settings, arguments.targets, training)
                    jobs += [{**common, **arm} for arm in arms]
    add_jobs(arguments.out / "jobs.jsonl", jobs)


class Mixed:
    """A captured pool of several sources."""

    def __init__(self, folder):
        self.folder, self.run = folder, gs.Run(folder / "run")
        lines = (folder / "pool.jsonl").read_text().splitlines()
        usable = {item.instance_id for item in self.run.instances}
        self.origin = {
            row["id"]: row["origin"] for row in map(json.loads, lines) if row["id"] in usable
        }

    def arms(self, name, budget, settings, targets, training):
        """Yield what a rule trains on: once, or for each target."""
        if name == BASE:
            yield {"arm": BASE, "rows": []}
            return
        n, draw = n_rows_of(self.run, budget), random.Random(training)
        if name == RANDOM:
            yield {"arm": f"{name} {budget}", "rows": draw.sample(sorted(self.origin), n)}
            return
        if name in ALL_WANTED:
            yield {"arm": f"{name} {budget}", "rows": selected(self.run, budget, settings)}
            return
        for target in targets:
            if settings is None:
                wanted = sorted(i for i, source in self.origin.items() if source == target)
                rows = draw.sample(wanted, min(n, len(wanted)))
            else:
                like = str(self.folder / "targets" / target / "run")
                rows = selected(self.run, budget, {**settings, "target": like})
            share = sum(self.origin[i] == target for i in rows) / len(rows)
            arm = f"{name}, {target} {budget}"
            yield {"arm": arm, "rows": rows, "wanted": share, "tests": [target]}


if __name__ == "__main__":
    main()
