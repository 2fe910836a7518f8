"""Selection by parts: how near it comes to greedy on the whole pool, and how it grows.

Shards are run folders as a capture of so many rows would leave them; their features imitate those
of a real run (see selection.py).

Usage:
    python benchmarks/sharded_selection.py near RUN FOLDER [--rows 40000] [--parts 4 16 64]
    python benchmarks/sharded_selection.py growth RUN FOLDER [--rows 1000000] [--workers 2]
"""

import argparse
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.config import SelectionConfig
from gradsift.seals import sha256_of, write_parquet
from gradsift.selection.constraints import Constraints, parse_budget
from gradsift.selection.content import content_vectors
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.objective import Objective
from gradsift.selection.possible_gains import possible_gains
from gradsift.selection.selector import make_signal
from gradsift.sharding.capture_steps import RUN
from gradsift.sharding.graph_steps import n_parts
from gradsift.sharding.local import do_here, do_with_processes
from gradsift.sharding.places import Place
from gradsift.sharding.plan import Output
from gradsift.sharding.plans import PlanSpec, shard_name
from gradsift.sharding.selection_steps import pool_of
from gradsift.store.manifest import Manifest, Part, record_schema
from gradsift.store.tables import POOL_NAME, POOL_SCHEMA
from gradsift.terms import LAYERS, STATISTICS
from selection import WIDTH, imitated

SKETCH_SIZE = 1
BUDGETS = ("1%", "5%", "20%", "50%")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("near", "growth"))
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    arguments = parser.parse_args()
    {"near": near, "growth": growth}[arguments.what](arguments)


def make_shards(like, folder, n, n_shards):
    """Write captured shards with so many rows together, unless they are there."""
    place = Place(folder)
    if place.digest(shard_name(n_shards - 1)) is not None:
        return
    features, values = imitated(like, n)
    tokens_N = np.random.default_rng(2).integers(20, 400, n)
    for number, rows_S in enumerate(np.array_split(np.arange(n), n_shards)):
        with place.writing(shard_name(number), {}) as output:
            write_shard(output / RUN, rows_S, features, values, tokens_N)


def write_shard(out, rows_S, features, values, tokens_N):
    n = len(rows_S)
    ids = pa.array([f"r{i:09d}" for i in rows_S.tolist()])
    tokens = pa.array(tokens_N[rows_S].astype(np.int32))
    schema = record_schema(WIDTH, SKETCH_SIZE)
    (out / "gradients").mkdir(parents=True, exist_ok=True)
    parts = []
    for at, layer in enumerate(LAYERS):
        norm = pa.array(values[layer]["l2_norm"][rows_S].astype(np.float64))
        flat = pa.array(features[rows_S].ravel())
        content = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
        if layer != "lm_head":
            content = pa.nulls(n, content.type)
        sketch = pa.FixedSizeListArray.from_arrays(
            pa.array(np.zeros(n * SKETCH_SIZE, np.float32)), SKETCH_SIZE
        )
        columns = [
            ids,
            pa.array([layer] * n),
            pa.array(np.zeros(n, np.int32)),
            norm,
            norm,
            tokens,
            *[norm] * len(STATISTICS),
            pa.array(["ok"] * n),
            content,
            sketch,
        ]
        path = out / "gradients" / f"part-{at:05d}.parquet"
        write_parquet(path, pa.table(columns, schema=schema))
        parts.append(Part(path.name, n, 0, sha256_of(path)))
    nothing = {name: pa.nulls(n, POOL_SCHEMA.field(name).type) for name in POOL_SCHEMA.names}
    known = {
        "row": pa.array(rows_S),
        "instance_id": ids,
        "status": pa.array(["instance"] * n),
        "n_tokens": tokens,
        "n_response_tokens": tokens,
    }
    table = pa.table(list({**nothing, **known}.values()), schema=POOL_SCHEMA)
    write_parquet(out / POOL_NAME, table)
    Manifest({"made": "for a benchmark"}, {}, n, LAYERS, tuple(parts), True).save(out)


def near(arguments):
    make_shards(arguments.run, arguments.folder, arguments.rows, arguments.shards)
    config, whole = SelectionConfig(), None
    for count in arguments.parts:
        for budget in arguments.budgets:
            plan = spec_of(arguments, count, budget, config).build()
            started = time.perf_counter()
            # Without the rows themselves, of which there are none.
            plan.steps[:] = [step for step in plan.steps if step.name != "rows"]
            do_here(plan)
            seconds = time.perf_counter() - started
            whole = whole or Whole(plan, config)
            found = {"parts": count, "budget": budget, "seconds": round(seconds, 1)}
            print(json.dumps({**found, **whole.beside(budget, whole.rows_of(plan))}), flush=True)


def spec_of(arguments, count, budget, config):
    selection = (f"s{budget[:-1]}", budget, config.model_dump_json())
    return PlanSpec(str(arguments.folder), arguments.shards, n_parts=count, selection=selection)


def outputs_of(plan, step):
    one = plan.step(step)
    return [Output(plan.place.folder(one.output(k))) for k in range(one.count)]


class Whole:
    """The same pool, selected from as a whole."""

    def __init__(self, plan, config):
        shards = outputs_of(plan, "columns")
        self.pool = pool_of(shards)
        self.signal = make_signal(self.pool, config)
        features = np.concatenate([shard["features"] for shard in shards])
        self.starts = np.cumsum([0, *(len(shard["hash"]) for shard in shards)])
        vectors = content_vectors(features, self.pool.step)
        # Judged on the nearest neighbours that there are, which neither way has found all of.
        self.exact = find_neighbours(vectors, exact_rows=len(features))
        self.graph = find_neighbours(vectors)
        self.config, self.known = config, {}

    def rows_of(self, plan):
        parts = outputs_of(plan, "part")
        row_N = np.concatenate([self.starts[part["shard"]] + part["row"] for part in parts])
        return row_N[outputs_of(plan, "chosen")[0]["order"]]

    def beside(self, budget, chosen):
        if budget not in self.known:
            amount = parse_budget(budget).resolve(len(self.pool), int(self.pool.n_tokens.sum()))
            constraints = Constraints(self.pool.n_tokens, amount)
            started = time.perf_counter()
            base = Objective(self.signal.score_N, self.graph)
            scale = possible_gains(base, constraints).scale
            order, _ = lazy_greedy(replace(base, scale=scale), constraints)
            seconds = time.perf_counter() - started
            judge = Objective(self.signal.score_N, self.exact, scale=scale)
            drawn = np.random.default_rng(0).permutation(len(self.pool))[: len(order)]
            self.known[budget] = order, judge, seconds, judge.value(drawn)
        order, judge, seconds, drawn = self.known[budget]
        return {
            "F / whole": round(judge.value(chosen) / judge.value(order), 5),
            "random / whole": round(drawn / judge.value(order), 3),
            "same rows": round(len(set(chosen.tolist()) & set(order.tolist())) / len(order), 3),
            "n": len(chosen),
            "whole_seconds": round(seconds, 1),
        }


def growth(arguments):
    """A plan with processes: seconds of each step, the largest memory of a process, disk."""
    make_shards(arguments.run, arguments.folder, arguments.rows, arguments.shards)
    parts = n_parts(arguments.rows)
    for budget in arguments.budgets:
        spec = spec_of(arguments, parts, budget, SelectionConfig())
        started = time.perf_counter()
        with Watch() as watch:
            do_with_processes(spec, arguments.workers, until="decided")
        plan = spec.build()
        found = {
            "rows": arguments.rows,
            "parts": parts,
            "workers": arguments.workers,
            "budget": budget,
            "minutes": (time.perf_counter() - started) / 60,
            # Pages of files on the disk count, which the system takes back when it needs them.
            "largest_process_gb": watch.largest / 1e9,
            "of_which_anonymous_gb": watch.anonymous / 1e9,
            "outputs_gb": sum(p.stat().st_size for p in arguments.folder.rglob("*.npy")) / 1e9,
        }
        steps = {s.name: seconds_of(plan, s) for s in plan.steps if s.name != "rows"}
        print(json.dumps({**found, "written_at": steps}), flush=True)


def seconds_of(plan, step):
    """When the first output of a step was written, and the last."""
    written = [
        (plan.place.root / step.output(k) / "complete.json").stat().st_mtime
        for k in range(step.count)
    ]
    return [round(min(written) % 1e6, 1), round(max(written) % 1e6, 1)]


class Watch(threading.Thread):
    """Looks at the memory of this process's children, several times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest = self.anonymous = 0
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()

    def run(self):
        while not self.over.wait(0.3):
            for task in Path("/proc/self/task").glob("*/children"):
                for child in task.read_text().split():
                    self.look_at(Path("/proc", child, "status"))

    def look_at(self, path):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
            kib = {name: int(lines[name].split()[0]) for name in ("VmRSS", "RssAnon")}
        except (OSError, KeyError, ValueError):
            return
        self.largest = max(self.largest, kib["VmRSS"] * 1024)
        self.anonymous = max(self.anonymous, kib["RssAnon"] * 1024)


if __name__ == "__main__":
    main()
