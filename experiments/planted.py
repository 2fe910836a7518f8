"""Do selection rules find rows that are known to be bad? Pools with planted defects.

Each pool has 500 rows of one domain: 60 % as they were, 15 % with the answer of another row, 5 %
garbled, 10 % exact and 10 % near copies of clean rows. `capture` makes and records the pools and
computes their reference losses (it resumes when it is run again); `table` applies every strategy,
and variants of grads, to what is there and writes the figures (it needs scikit-learn).

Usage:
    python experiments/planted.py capture OUT --data medicine=FILE --data law=FILE ...
    python experiments/planted.py table OUT --results experiments/results/planted.json
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from planting import planted_pool, read_rows

import gradsift as gs
from gradsift.config import SelectionConfig
from gradsift.selection.candidates import Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.scores import SCORES, rank_correlation
from gradsift.selection.selector import choose_rows, make_signal
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of

SHARES = {"swapped": 0.15, "garbled": 0.05, "exact copy": 0.10, "near copy": 0.10}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    capture = commands.add_parser("capture")
    capture.add_argument("out", type=Path)
    capture.add_argument("--data", action="append", required=True, help="NAME=FILE of prompts")
    capture.add_argument("--model", default="demo")
    capture.add_argument("--rows", type=int, default=500)
    capture.add_argument("--seeds", type=int, default=3)
    capture.add_argument("--max-length", type=int, default=160)
    capture.add_argument("--anchor", help="FILE of general rows, for ogs-static")
    capture.add_argument("--target", action="append", default=[], help="NAME=FILE of like rows")
    capture.add_argument("--reference-rows", type=int, default=64)
    capture.set_defaults(act=capture_pools)
    table = commands.add_parser("table")
    table.add_argument("out", type=Path)
    table.add_argument("--results", type=Path, required=True)
    table.add_argument("--budgets", nargs="+", default=["50%", "10%"])
    table.add_argument("--topics", type=int, default=40)
    table.set_defaults(act=tabulate)
    arguments = parser.parse_args()
    arguments.act(arguments)


def capture_pools(arguments):
    for seed in range(arguments.seeds):
        for pair in arguments.data:
            name, _, file = pair.partition("=")
            folder = arguments.out / f"{name}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            rows = planted_pool(read_rows(file), arguments.rows, seed, SHARES)
            pool = folder / "pool.jsonl"
            pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
            store = gs.capture(
                arguments.model,
                gs.load_pool(str(pool), prompt_column="prompt", response_column="response"),
                out=folder / "run",
                max_length=arguments.max_length,
                seed=seed,
            )
            print(folder, store.manifest.about["seconds"], flush=True)
            gs.reference_losses(store)
        for name, file in references(arguments):
            capture_reference(name, file, seed, arguments)


def references(arguments):
    pairs = [pair.partition("=")[::2] for pair in arguments.target]
    return pairs if arguments.anchor is None else [("anchor", arguments.anchor), *pairs]


def capture_reference(name, file, seed, arguments):
    """Rows to be like, or unlike, by the untrained model; sketches go with the seed of the pool."""
    folder = arguments.out / "references" / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = random.Random(seed).sample(read_rows(file), arguments.reference_rows)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gs.capture(
        arguments.model,
        gs.load_pool(str(path), prompt_column="prompt", response_column="response"),
        out=folder / "run",
        max_length=arguments.max_length,
        seed=seed,
        record_at="after",
        warmup_fraction=0.0,
    )


def variants():
    """Name → settings: every strategy, then grads with many settings."""
    found = {name: {"strategy": name} for name in STRATEGIES if name != "grads"}
    for score in SCORES:
        for label, more in {"": {}, ", not detrended": {"detrend": ()}}.items():
            found[f"grads, {score}{label}"] = {"score": score, **more}
    for statistic in ("mean_abs", "max"):
        for layer in ("embedding", "lm_head"):
            found[f"grads, low-norm, {layer} {statistic}"] = {
                "score": "low-norm",
                "layers": (layer,),
                "signal_statistics": (statistic,),
            }
    for score in ("density", "low-norm"):
        for layer in ("embedding", "lm_head"):
            found[f"grads, {score}, {layer} alone"] = {"score": score, "layers": (layer,)}
        for name in ("alpha", "beta", "gamma"):
            found[f"grads, {score}, {name} 0"] = {"score": score, name: 0.0}
        for name in ("alpha", "beta", "gamma"):
            found[f"grads, {score}, {name} 2"] = {"score": score, name: 2.0}
    for name in ("alpha", "beta", "gamma"):
        found[f"grads, prompt-gain, {name} 0"] = {"score": "prompt-gain", name: 0.0}
    return found


def tabulate(arguments):
    results = {}
    for folder in sorted(arguments.out.iterdir()):
        if not (folder / "run" / "manifest.json").exists():
            continue
        run = gs.Run(folder / "run")
        try:
            run.store  # ruff: ignore[useless-expression]
        except gs.GradsiftError as error:
            print(f"left out: {error}")
            continue
        results[folder.name] = of_pool(folder, run, arguments)
        print(folder.name, flush=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    summary = {
        budget: summarised([pool[budget] for pool in results.values()])
        for budget in arguments.budgets
    }
    made_with = {"pools": sorted(results), "shares": SHARES, "topics": arguments.topics}
    found = {"made with": made_with, "mean over pools": summary, "pools": results}
    arguments.results.write_text(json.dumps(found, indent=1))
    print(as_text(summary))


def of_pool(folder, run, arguments):
    rows = {
        row["id"]: row for row in map(json.loads, (folder / "pool.jsonl").read_text().splitlines())
    }
    domain, _, seed = folder.name.rpartition("-")
    folders = {"anchor": f"anchor-{seed}", "target": f"{domain}-{seed}"}
    folders = {name: arguments.out / "references" / at / "run" for name, at in folders.items()}
    references = {name: at for name, at in folders.items() if (at / "manifest.json").exists()}
    needs = {Need.FEATURES, Need.SKETCHES, *(Need[name.upper()] for name in references)}
    needs |= {Need.REFERENCE_LOSSES} if run.has_reference_losses else set()
    pool = run.candidates(needs)
    context = run.context(SelectionConfig(**references), needs)
    truth = Truth([rows[i] for i in pool.ids], arguments.topics)
    found = {budget: {} for budget in arguments.budgets}
    for name, changes in variants().items():
        config = SelectionConfig(**changes)
        if not needs_of(config) <= needs:
            continue
        length = rank_correlation(make_signal(pool, config).score_N, pool.n_response_tokens)
        for budget in arguments.budgets:
            seeds = range(20) if name == "random" else (0,)
            chosen = [
                choose_rows(
                    pool, parse_budget(budget), config.model_copy(update={"seed": seed}), context
                )
                for seed in seeds
            ]
            each = [truth.figures(rows_S) for rows_S in chosen]
            figures = {key: float(np.mean([row[key] for row in each])) for key in each[0]}
            tokens = np.mean([np.median(pool.n_response_tokens[rows_S]) for rows_S in chosen])
            figures["response tokens"] = float(tokens / np.median(pool.n_response_tokens))
            if config.strategy == "grads" and length is not None:
                figures["score ~ length"] = length
            found[budget][name] = figures
    return found


class Truth:
    """What was planted, and topics that no model had a part in."""

    def __init__(self, rows, n_clusters):
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.kind = np.array([row["planted"] for row in rows])
        self.original = np.unique([row["original"] for row in rows], return_inverse=True)[1]
        texts = [f"{row['prompt']} {row['response']}" for row in rows]
        vectors = TfidfVectorizer(stop_words="english", min_df=2).fit_transform(texts)
        self.topic = KMeans(n_clusters, n_init=4, random_state=0).fit_predict(vectors)

    def figures(self, rows_S):
        """Shares among the kept rows divided by shares in the pool; topics as a share of all."""
        bad = np.isin(self.kind, ("swapped", "garbled"))
        everything = np.arange(len(self.kind))
        figures = {
            name: self.share(mask, rows_S) / self.share(mask, everything)
            for name, mask in {
                "swapped or garbled": bad,
                "swapped": self.kind == "swapped",
                "garbled": self.kind == "garbled",
            }.items()
        }
        figures["copies"] = self.surplus(rows_S) / self.surplus(everything)
        clean = rows_S[~bad[rows_S]]
        figures["topics"] = len(set(self.topic[clean])) / len(set(self.topic))
        return figures

    def share(self, mask, rows_S):
        return mask[rows_S].mean()

    def surplus(self, rows_S):
        counts = np.bincount(self.original[rows_S])
        return np.maximum(counts - 1, 0).sum() / len(rows_S)


def summarised(pools):
    names = [name for name in pools[0] if all(name in pool for pool in pools)]
    summary = {}
    for name in names:
        keys = pools[0][name]
        summary[name] = {
            key: {
                "mean": float(np.mean([pool[name][key] for pool in pools])),
                "sd": float(np.std([pool[name][key] for pool in pools], ddof=1))
                if len(pools) > 1
                else None,
            }
            for key in keys
        }
    return summary


def as_text(summary):
    lines = []
    for budget, by_name in summary.items():
        keys = list(next(iter(by_name.values())))
        lines += ["", f"{budget:44}" + "".join(f"{key[:18]:>20}" for key in keys)]
        for name, figures in by_name.items():
            cells = [
                f"{figures[key]['mean']:.2f}"
                + ("" if figures[key]["sd"] is None else f" ± {figures[key]['sd']:.2f}")
                for key in keys
            ]
            lines.append(f"{name:44}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
