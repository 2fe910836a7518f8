"""Does the gate find faulty rows, and what does it cost in good ones?

`losses` computes, for each domain, the losses of clean rows, of the same answers after other rows'
prompts (several times over: planted swaps, and the gate's own pairs), of garbled answers, of
refusals and of conversations, each once. `table` puts pools of many kinds together from these
numbers, without the model, asks the gate of gradsift, and writes the figures.

Usage:
    python experiments/gate.py losses OUT --data medicine=FILE --data law=FILE ...
    python experiments/gate.py table OUT --results experiments/results/gate.json
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from planting import garble, read_rows
from scipy.stats import rankdata

import gradsift as gs
from gradsift.config import GateConfig
from gradsift.evaluation.losses import instance_losses, response_losses
from gradsift.evaluation.mismatches import mismatched_instances
from gradsift.selection.gate import judge
from gradsift.store.tables import LOSS_NAMES

N_GARBLED = 48
N_REFUSALS = 32
N_CONVERSATIONS = 24
REFUSALS = (
    "I'm sorry, but I cannot help with that.",
    "As an AI language model, I am not able to answer this question.",
    "I do not have enough information to answer that. Please consult a professional.",
    "I'm sorry, I can't assist with that request.",
    "As an AI, I don't have personal opinions or access to real-time information.",
    "Thank you for your question! I hope this helps. Let me know if you need anything else.",
    "I cannot provide advice on this topic. Please seek the advice of a qualified expert.",
    "Sure! Here is the information that you asked for.",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    losses = commands.add_parser("losses")
    losses.add_argument("out", type=Path)
    losses.add_argument("--data", action="append", required=True, help="NAME=FILE of prompts")
    losses.add_argument("--model", default="demo")
    losses.add_argument("--rows", type=int, default=160)
    losses.add_argument("--max-length", type=int, default=160)
    losses.set_defaults(act=compute_losses)
    table = commands.add_parser("table")
    table.add_argument("out", type=Path)
    table.add_argument("--results", type=Path, required=True)
    table.add_argument("--seeds", type=int, default=20)
    table.set_defaults(act=tabulate)
    arguments = parser.parse_args()
    arguments.act(arguments)


def compute_losses(arguments):
    model, jobs = None, []
    for pair in arguments.data:
        name, _, file = pair.partition("=")
        rows = drawn(read_rows(file), arguments)
        jobs += [(name, rows, kind) for kind in KINDS]
    # What every domain needs most first.
    jobs.sort(key=lambda job: job[2] not in ("clean", "garbled", "swapped"))
    for name, rows, kind in jobs:
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows.json").write_text(json.dumps(rows))
        path = folder / f"{kind}.npz"
        if path.exists():
            continue
        if model is None:
            from gradsift.training.model import load_model, source_of

            config = run_of(rows[:2], arguments).config
            model = load_model(source_of(config)).eval()
        np.savez(path, **KINDS[kind](model, rows, arguments))
        print(path, flush=True)


def drawn(rows, arguments):
    """Draw rows of which a few tokens of the answer are left within the length."""
    found, seed = [], 0
    while len(found) < arguments.rows:
        some = random.Random(seed).sample(rows, arguments.rows)
        items = run_of(plain(some), arguments).tokenized().items
        long = [int(item.instance_id) for item in items if item.n_response_tokens >= 6]
        found += [some[at] for at in long if some[at] not in found]
        seed += 1
    return found[: arguments.rows]


def run_of(rows, arguments, max_length=None):
    pool = gs.load_pool([{**row, "id": str(n)} for n, row in enumerate(rows)])
    return gs.Run.new(
        arguments.model,
        pool,
        out=arguments.out / "unused",
        max_length=max_length or arguments.max_length,
    )


def instances_of(rows, arguments, max_length=None):
    items = run_of(rows, arguments, max_length).tokenized().items
    assert [int(item.instance_id) for item in items] == list(range(len(rows)))
    return items


def plain(rows, answers=None):
    answers = [row["response"] for row in rows] if answers is None else answers
    return [
        {"messages": conversation((row["prompt"], answer))}
        for row, answer in zip(rows, answers, strict=True)
    ]


def conversation(*turns):
    return [
        message
        for prompt, answer in turns
        for message in (
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        )
    ]


def columns(model, items, length):
    first = mismatched_instances(items, length, seed=0)
    both = [first, mismatched_instances(items, length, seed=1, unlike=first)]
    losses = []
    for at in range(0, len(items), 40):
        part = slice(at, at + 40)
        losses += instance_losses(model, items[part], [pairs[part] for pairs in both])
    found = {name: np.array([getattr(row, name) for row in losses]) for name in LOSS_NAMES}
    found["n_response"] = np.array([item.n_response_tokens for item in items])
    return found


def clean(model, rows, arguments):
    items = instances_of(plain(rows), arguments)
    return columns(model, items, arguments.max_length)


def swapped(model, rows, arguments):
    """The same answers after a third row's prompt."""
    items = instances_of(plain(rows), arguments)
    pairs = mismatched_instances(items, arguments.max_length, seed=2)
    assert None not in pairs
    return {"response": np.array(response_losses(model, pairs))}


def garbled(model, rows, arguments):
    draw = random.Random(0)
    answers = [garble(row["response"], n, draw) for n, row in enumerate(rows[:N_GARBLED])]
    items = instances_of(plain(rows[:N_GARBLED], answers), arguments)
    return columns(model, items, arguments.max_length)


def refusals(model, rows, arguments):
    rows = rows[:N_REFUSALS]
    answers = [REFUSALS[n % len(REFUSALS)] for n in range(len(rows))]
    items = instances_of(plain(rows, answers), arguments)
    return columns(model, items, arguments.max_length)


def conversations(model, rows, arguments):
    """Two questions with their answers; the last answer, or both, of another conversation."""
    turns = [(row["prompt"], " ".join(row["response"].split()[:40])) for row in rows]
    pairs = list(zip(turns[::2], turns[1::2], strict=True))[:N_CONVERSATIONS]
    others = pairs[1:] + pairs[:1]
    kinds = {
        "clean": pairs,
        "last": [
            (one, (two[0], other[1][1])) for (one, two), other in zip(pairs, others, strict=True)
        ],
        "both": [
            ((one[0], other[0][1]), (two[0], other[1][1]))
            for (one, two), other in zip(pairs, others, strict=True)
        ],
    }
    length, found = 3 * arguments.max_length, {}
    for kind, conversations in kinds.items():
        rows = [{"messages": conversation(*both)} for both in conversations]
        items = instances_of(rows, arguments, length)
        for name, values in columns(model, items, length).items():
            found[f"{kind}_{name}"] = values
    return found


def tabulate(arguments):
    domains = {
        folder.name: {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}
        for folder in sorted(arguments.out.iterdir())
        if (folder / "swapped.npz").exists()
    }
    found = {
        name: {
            "rows": len(there["clean"]["response"]),
            "swapped": {
                str(share): mean_of(
                    [figures(*with_swapped(there, share, seed)) for seed in range(arguments.seeds)]
                )
                for share in SHARES
            },
            "thresholds, 25 % swapped": {
                str(threshold): mean_of(
                    [
                        figures(*with_swapped(there, 0.25, seed), threshold)
                        for seed in range(arguments.seeds)
                    ]
                )
                for threshold in (0.05, 0.1, 0.2, 0.3, 0.5)
            },
            "thresholds, clean": {
                str(threshold): figures(*with_swapped(there, 0, 0), threshold)
                for threshold in (0.05, 0.1, 0.2, 0.3, 0.5)
            },
            "other kinds": others(there, arguments.seeds),
            "clean rows that are named": named_rows(arguments.out / name, there),
        }
        for name, there in domains.items()
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    for name, results in found.items():
        for share, row in results["swapped"].items():
            print(name, share, {k: round(v, 3) for k, v in row.items()})
        for kind, row in results["other kinds"].items():
            print(name, kind, {k: round(v, 3) for k, v in row.items()})


def with_swapped(there, share, seed):
    """Put a pool together: clean rows, some of them with the answer after a third row's prompt."""
    pool = {name: values.copy() for name, values in there["clean"].items()}
    n = len(pool["response"])
    kind = np.full(n, "clean", dtype=object)
    bad = np.random.default_rng(seed).choice(n, round(share * n), replace=False)
    kind[bad] = "swapped"
    pool["response"][bad] = there["swapped"]["response"][bad]
    return pool, kind


def with_others(there, seed, name, prefix=""):
    """Put rows of another kind in place of clean rows of a pool of which 20 % are swapped."""
    pool, kind = with_swapped(there, 0.2, seed)
    values = {key.removeprefix(prefix): v for key, v in there[name].items() if prefix in key}
    draw = np.random.default_rng(seed + 100)
    at = draw.permutation(np.flatnonzero(kind == "clean"))
    n = min(len(values["response"]), len(at) // 4)
    new = draw.choice(len(values["response"]), n, replace=False)
    for key, column in pool.items():
        column[at[:n]] = values[key][new]
    kind[at[:n]] = prefix + name
    if name == "garbled":
        kind[at[:n]] = [f"garbled, {GARBLED[one % 3]}" for one in new]
    return pool, kind


def others(there, seeds):
    found = {}
    for name, prefix in OTHERS:
        if name in there:
            pools = [with_others(there, seed, name, prefix) for seed in range(seeds)]
            rows = mean_of([shares_by_kind(*pool) for pool in pools])
            found[prefix + name] = rows
    return found


def shares_by_kind(pool, kind):
    gate = judge(pool, pool["n_response"], THRESHOLD)
    found = {}
    for one in sorted(set(kind)):
        found[f"{one}: unrelated"] = gate.unrelated_N[kind == one].mean()
        found[f"{one}: hardly text"] = gate.no_text_N[kind == one].mean()
    return found


def figures(pool, kind, threshold=None):
    """Error rates, and what the gate says of them itself."""
    gate = judge(pool, pool["n_response"], threshold or THRESHOLD)
    bad, n = kind != "clean", len(kind)
    share, named = gate.unrelated_share, gate.unrelated_N
    found = {
        "planted": bad.mean(),
        "estimate": share.estimate,
        "low": share.low,
        "high": share.high,
        "covers": float(share.low <= bad.mean() <= share.high),
        "named, of all": named.mean(),
        "named, of the good": named[~bad].mean(),
        "named as hardly text, of the good": gate.no_text_N[~bad].mean(),
        "good among the named": (named & ~bad).sum() / n,
        "good among the named, expected": gate.good_named(share.estimate) / n,
    }
    if bad.any():
        found["missed, of the swapped"] = (~named[bad]).mean()
        found["AUC"] = auc(gate.advantage_N[~bad], gate.advantage_N[bad])
        found["AUC, loss"] = auc(-gate.loss_N[~bad], -gate.loss_N[bad])
        found["AUC, 1 - IFD"] = auc(*(-(pool["response"] / pool["alone"])[m] for m in (~bad, bad)))
    return found


def auc(good, bad):
    ranks = rankdata(np.concatenate([good, bad]))[: len(good)]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / len(good) / len(bad))


def mean_of(rows):
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}


def named_rows(folder, there):
    """Clean rows that are called faulty, by their ids: to be looked at where the rows are."""
    rows = json.loads((folder / "rows.json").read_text())
    pool = there["clean"]
    gate = judge(pool, pool["n_response"], THRESHOLD)
    order = np.lexsort((gate.advantage_N, -gate.p_N)).tolist()
    return [
        {
            "reason": gate.reasons[at],
            "p": round(float(gate.p_N[at]), 3),
            "id": rows[at]["id"],
            "response tokens": int(pool["n_response"][at]),
        }
        for at in order
        if gate.named_N[at]
    ]


SHARES = (0, 0.05, 0.1, 0.25, 0.5)
THRESHOLD = GateConfig().gate_threshold
GARBLED = ("words shuffled", "letters damaged", "pieces shuffled")
OTHERS = (
    ("garbled", ""),
    ("refusals", ""),
    ("conversations", "clean_"),
    ("conversations", "last_"),
    ("conversations", "both_"),
)
KINDS = {
    "clean": clean,
    "garbled": garbled,
    "swapped": swapped,
    "refusals": refusals,
    "conversations": conversations,
}


if __name__ == "__main__":
    main()
