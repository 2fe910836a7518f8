"""Pools of one domain, dirty or clean: does a subset teach more than all rows, or a random subset?

A dirty pool has N rows of a domain: a quarter have the answer of another row, 5 % a garbled one,
and a quarter are exact or near copies of clean rows. A clean one has the rows as they are. Every
test row of the same kind is a test item. `pools` makes and captures them (it resumes), `jobs` says
what is trained (it adds to what is there), `arms.py` trains.

Usage:
    python experiments/domains.py pools OUT --data DIR --kind dirty
    python experiments/domains.py jobs OUT --part controls
    python experiments/arms.py OUT experiments/results/dirty
"""

import argparse
import json
import random
from pathlib import Path

import safety
from lab import add_jobs, n_rows_of, prepare, selected
from planting import planted_pool, read_rows

import gradsift as gs

SHARES = {
    "dirty": {"swapped": 0.25, "garbled": 0.05, "exact copy": 0.125, "near copy": 0.125},
    "clean": dict.fromkeys(("swapped", "garbled", "exact copy", "near copy"), 0.0),
}
BAD = ("swapped", "garbled")
DOMAINS = ("medicine", "finance", "law")
REGIME = {"epochs": 2, "learning_rate": 2e-4}
BASE, FULL, EQUAL_STEPS, RANDOM, ORACLE = (
    "base",
    "full",
    "full-equal-steps",
    "random",
    "random good",
)
# Part → arms: name, budget, number of trainings, settings of the selection.
PARTS = {
    "controls": [
        (BASE, None, 1, None),
        (RANDOM, "15%", 5, None),
        (FULL, None, 1, None),
        (RANDOM, "50%", 5, None),
    ],
    "more controls": [
        (FULL, None, 3, None),
        (ORACLE, "15%", 3, None),
        (ORACLE, "50%", 3, None),
        (EQUAL_STEPS, "50%", 3, None),
    ],
    "as it was": [("as it was", "15%", 3, {}), ("as it was", "50%", 3, {})],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    pools = commands.add_parser("pools")
    pools.add_argument("--data", type=Path, required=True, help="folder of DOMAIN/train.jsonl")
    pools.add_argument("--kind", choices=SHARES, required=True)
    pools.add_argument("--rows", type=int, default=400)
    pools.add_argument("--seed", type=int, default=0)
    pools.add_argument("--model", default="demo")
    pools.set_defaults(act=make_pools)
    jobs = commands.add_parser("jobs")
    jobs.add_argument("--part", choices=PARTS, nargs="+", required=True)
    jobs.set_defaults(act=list_jobs)
    for command in (pools, jobs):
        command.add_argument("out", type=Path)
        command.add_argument("--domains", nargs="+", default=DOMAINS)
    arguments = parser.parse_args()
    arguments.act(arguments)


def make_pools(arguments):
    for domain in arguments.domains:
        rows = read_rows(arguments.data / domain / "train.jsonl")
        prepare(
            arguments.out / domain,
            planted_pool(rows, arguments.rows, arguments.seed, SHARES[arguments.kind]),
            {"test": read_rows(arguments.data / domain / "test.jsonl"), **safety.tests()},
            model=arguments.model,
            text=arguments.data / "bench" / "wikitext2_test.txt",
        )


def list_jobs(arguments):
    jobs = []
    for part in arguments.part:
        for name, budget, n_trainings, settings in PARTS[part]:
            for domain in arguments.domains:
                folder = arguments.out / domain
                run = gs.Run(folder / "run")
                for training in range(n_trainings):
                    jobs.append(make_job(run, folder, name, budget, training, settings))
    add_jobs(arguments.out / "jobs.jsonl", jobs)


def make_job(run, folder, name, budget, training, settings):
    job = {
        "pool": folder.name,
        "arm": name if budget is None else f"{name} {budget}",
        "training": training,
        "seed": training,
        **REGIME,
    }
    pool = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    planted = {row["id"]: row["planted"] for row in pool}
    ids = [item.instance_id for item in run.instances]
    n = None if budget is None else n_rows_of(run, budget)
    draw = random.Random(training)
    if name == BASE:
        job["rows"] = []
    elif name in (FULL, EQUAL_STEPS):
        job["rows"] = ids
        if name == EQUAL_STEPS:
            job["steps"] = REGIME["epochs"] * -(-n // 8)
    elif name == RANDOM:
        job["rows"] = draw.sample(ids, n)
    elif name == ORACLE:
        good = [i for i in ids if planted[i] not in BAD]
        job["rows"] = draw.sample(good, n)
    else:
        job["rows"] = selected(run, budget, settings)
    job["bad"] = sum(planted[i] in BAD for i in job["rows"]) / max(1, len(job["rows"]))
    return job


if __name__ == "__main__":
    main()
