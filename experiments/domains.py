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
# The items on safety are asked of the arms of this domain alone.
SAFETY_IN = "medicine"
REGIME = {"epochs": 2, "learning_rate": 2e-4}
BASE, FULL, EQUAL_STEPS, RANDOM, ORACLE, GATED = (
    "base",
    "full",
    "full-equal-steps",
    "random",
    "random good",
    "random gated",
)
PROMPT_GAIN = {"score": "prompt-gain"}
# Part → arms: name, budget, trainings, settings of the selection. Arms that draw their rows draw
# them anew for each training.
PARTS = {
    "at 15%": [
        (BASE, None, [0], None),
        (RANDOM, "15%", range(5), None),
        (GATED, "15%", range(3), {"strategy": "random", "gate": True}),
        ("grads", "15%", range(3), {}),
        ("prompt-gain+low-norm", "15%", range(3), {"score": "prompt-gain+low-norm"}),
    ],
    "at 50%": [
        (FULL, None, [0], None),
        ("full gated", "100%", [0], {"strategy": "random", "gate": True}),
        (RANDOM, "50%", range(2), None),
        (GATED, "50%", range(2), {"strategy": "random", "gate": True}),
    ],
    "more at 50%": [
        ("grads", "50%", range(2), {}),
        ("full gated", "100%", [1], {"strategy": "random", "gate": True}),
        (FULL, None, [1], None),
        (RANDOM, "50%", [2], None),
        (GATED, "50%", [2], {"strategy": "random", "gate": True}),
        ("grads gated", "50%", range(2), {"gate": True}),
    ],
    "rivals at 15%": [
        ("deita", "15%", range(3), {"strategy": "deita", **PROMPT_GAIN}),
        ("prompt-gain", "15%", range(3), PROMPT_GAIN),
        ("facility-location", "15%", range(3), {"strategy": "facility-location"}),
        ("random by cluster", "15%", range(3), {"strategy": "random-by-cluster"}),
        ("loss-low", "15%", range(3), {"strategy": "loss-low"}),
        ("loss-middle", "15%", range(3), {"strategy": "loss-middle"}),
    ],
    "clean at 5%": [
        (BASE, None, [0], None),
        (RANDOM, "5%", range(5), None),
        ("grads", "5%", range(3), {}),
        ("prompt-gain", "5%", range(3), PROMPT_GAIN),
        ("facility-location", "5%", range(3), {"strategy": "facility-location"}),
        ("loss-middle", "5%", range(3), {"strategy": "loss-middle"}),
        ("random by cluster", "5%", range(3), {"strategy": "random-by-cluster"}),
    ],
    "oracle": [(ORACLE, "15%", range(3), None), (ORACLE, "50%", range(2), None)],
    "as it was": [("as it was", "15%", range(3), {})],
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
            losses=True,
        )


def list_jobs(arguments):
    jobs = []
    for part in arguments.part:
        for name, budget, trainings, settings in PARTS[part]:
            for domain in arguments.domains:
                folder = arguments.out / domain
                run = gs.Run(folder / "run")
                for training in trainings:
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
    if folder.name != SAFETY_IN:
        job["tests"] = ["test", "text"]
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
        drawn = {"seed": training} if name.startswith(RANDOM) else {}
        job["rows"] = selected(run, budget, {**settings, **drawn})
    job["bad"] = sum(planted[i] in BAD for i in job["rows"]) / max(1, len(job["rows"]))
    return job


if __name__ == "__main__":
    main()
