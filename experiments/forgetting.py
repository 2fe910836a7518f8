"""Forgetting: does a subset forget less, and what does it add to replay?

A model is first taught invented facts, of which it knew none, until it knows them. Then it is
trained on a domain, with all rows or with subsets, with and without 5 % of replay; asked are the
domain's test rows, the facts (those of which rows are replayed and those of which none is), and
general text. Rows of replay are facts and general rows. `teach` makes the model, `pools` captures
the domain with it, `jobs` says what is trained, `arms.py --model OUT/taught` trains.

Usage:
    python experiments/forgetting.py teach OUT
    python experiments/forgetting.py pools OUT --data DIR
    python experiments/forgetting.py jobs OUT --part regimes
    python experiments/arms.py OUT experiments/results/forgetting --model OUT/taught
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from arms import IGNORED_LABEL, is_answered, read_instances, train
from lab import add_jobs, n_rows_of, prepare, selected, write_rows, write_tokens
from planting import read_rows

import gradsift as gs
from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.training.model import find_model, load_model, load_tokenizer

N_FACTS = 64
QUESTIONS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital city of {country}.",
)
ANSWER = "The capital of {country} is {city}."
TEACHING = {"epochs": 12, "learning_rate": 2e-4, "seed": 0}
DOMAIN, POOL = "medicine", "forgetting"
REPLAY = "replay.jsonl"
BASE, FULL, RANDOM = "base", "full", "random"
RATE = 5e-4
# Arms: name, budget, settings.
PARTS = {
    "regimes": [
        (BASE, None, RATE, False, 1),
        *((f"full at {rate:g}", None, rate, False, 1) for rate in (1e-4, 2e-4)),
    ],
    "arms": [
        (name, budget, RATE, replays, 3)
        for replays in (False, True)
        for name, budget in (("full", None), ("random", "50%"), ("grads", "50%"))
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    teach = commands.add_parser("teach")
    teach.add_argument("--model", default="demo")
    teach.set_defaults(act=teach_facts)
    pools = commands.add_parser("pools")
    pools.add_argument("--data", type=Path, required=True, help="folder of DOMAIN/train.jsonl")
    pools.add_argument("--rows", type=int, default=200)
    pools.add_argument("--ratio", type=float, default=0.05)
    pools.set_defaults(act=make_pool)
    jobs = commands.add_parser("jobs")
    jobs.add_argument("--part", choices=PARTS, nargs="+", required=True)
    jobs.set_defaults(act=list_jobs)
    for command in (teach, pools, jobs):
        command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.act(arguments)


def facts():
    """Invented countries and their capitals: (number, question, answer)."""
    draw = random.Random(1)
    heads = ("Bel", "Dor", "Fim", "Gav", "Hul", "Jas", "Kir", "Lom", "Mun", "Nor", "Pel", "Qua")
    middles = ("ava", "eri", "ino", "olu", "uma", "ydi", "ath", "esk")
    names = [head + middle for head in heads for middle in middles]
    draw.shuffle(names)
    cities = [f"{name.capitalize()}burg" for name in reversed(names)]
    for number, (country, city) in enumerate(zip(names[:N_FACTS], cities, strict=False)):
        country = f"{country}land"
        for question in QUESTIONS:
            yield (
                number,
                question.format(country=country),
                ANSWER.format(country=country, city=city),
            )


def fact_rows(numbers, questions=QUESTIONS):
    """Rows of some facts; `questions` says in which words they are asked."""
    rows = []
    for at, (number, question, answer) in enumerate(facts()):
        if number in numbers and QUESTIONS[at % len(QUESTIONS)] in questions:
            rows.append({"id": f"fact-{at}", "prompt": question, "response": answer})
    return rows


def teach_facts(arguments):
    """Train on two of three ways to ask; the third must be answered, too."""
    source = find_model(arguments.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    arguments.out.mkdir(parents=True, exist_ok=True)
    everything, out = range(N_FACTS), arguments.out
    taught = tokens_of(fact_rows(everything, QUESTIONS[:2]), out / "facts.jsonl", tokenizer)
    asked = tokens_of(fact_rows(everything, QUESTIONS[2:]), out / "asked.jsonl", tokenizer)
    asked = [names_only(item, tokenizer) for item in asked]
    model.eval()
    print("answered before:", sum(is_answered(model, item) for item in asked), "of", len(asked))
    train(model, taught, TEACHING)
    model.eval()
    print("answered after:", sum(is_answered(model, item) for item in asked), "of", len(asked))
    model.save_pretrained(arguments.out / "taught")
    tokenizer.save_pretrained(arguments.out / "taught")


def names_only(item, tokenizer):
    """Count nothing but the city: in other words the same answer is as right."""
    (verb,) = tokenizer.encode(" is", add_special_tokens=False)
    at = max(at for at, label in enumerate(item.labels) if label == verb)
    labels = [IGNORED_LABEL] * (at + 1) + list(item.labels[at + 1 :])
    return replace(item, labels=labels)


def tokens_of(rows, path, tokenizer):
    write_rows(path, rows)
    pool = load_pool(str(path), prompt_column="prompt", response_column="response")
    examples = ((row.instance_id, row.example) for row in pool.rows)
    return build_instances(examples, tokenizer).items


def make_pool(arguments):
    """Half of the facts have rows in the replay, together with general rows; half have none."""
    data, folder = arguments.data, arguments.out / POOL
    rows = read_rows(data / DOMAIN / "train.jsonl")
    first, second = range(N_FACTS // 2), range(N_FACTS // 2, N_FACTS)
    run = prepare(
        folder,
        random.Random(0).sample(rows, arguments.rows),
        {
            "test": read_rows(data / DOMAIN / "test.jsonl"),
            "replayed.wrong": fact_rows(first, QUESTIONS[2:]),
            "other.wrong": fact_rows(second, QUESTIONS[2:]),
            "general": read_rows(data / "general" / "test.jsonl"),
        },
        model=str(arguments.out / "taught"),
        text=data / "bench" / "wikitext2_test.txt",
    )
    for name in ("replayed", "other"):
        path = folder / "tests" / f"{name}.wrong.jsonl"
        asked = [names_only(item, run.tokenizer) for item in read_instances(path)]
        write_tokens(path, asked)
        # How far from the answer, where all are wrong.
        write_tokens(folder / "tests" / f"{name}.jsonl", asked)
    general = random.Random(0).sample(read_rows(data / "general" / "train.jsonl"), 200)
    replay = [*fact_rows(first, QUESTIONS[:1]), *general]
    write_rows(folder / "to-replay.jsonl", replay)
    pool = load_pool(
        str(folder / "to-replay.jsonl"), prompt_column="prompt", response_column="response"
    )
    write_tokens(folder / "to-replay-tokens.jsonl", run.tokenized(pool).items)


def list_jobs(arguments):
    folder = arguments.out / POOL
    run = gs.Run(folder / "run")
    ids, jobs = [item.instance_id for item in run.instances], []
    lengths = {item.instance_id: n_labels(item) for item in run.instances}
    general = read_instances(folder / "to-replay-tokens.jsonl")
    for part in arguments.part:
        for name, budget, rate, replays, n_trainings in PARTS[part]:
            for training in range(n_trainings):
                rows = [] if name == BASE else ids
                if name == RANDOM:
                    rows = random.Random(training).sample(ids, n_rows_of(run, budget))
                elif budget is not None:
                    rows = selected(run, budget, {"strategy": name})
                arm = name + (" + replay" if replays else "") + (f" {budget}" if budget else "")
                job = {"pool": POOL, "arm": arm, "training": training, "seed": training}
                job |= {"epochs": 2, "learning_rate": rate, "rows": rows}
                if replays:
                    n_own = sum(lengths[i] for i in rows)
                    job["replay"] = f"replay-{arm}-{training}.jsonl".replace(" ", "_")
                    write_tokens(folder / job["replay"], replayed(general, n_own, training))
                jobs.append(job)
    add_jobs(arguments.out / "jobs.jsonl", jobs)


def replayed(rows, n_own, seed, ratio=0.05):
    """Draw facts and general rows until each have half the replay's tokens that have a loss.

    From one urn hardly a fact would be drawn: their answers are short and the others long.
    """
    drawn, draw, share = [], random.Random(seed), n_own * ratio / (1 - ratio) / 2
    for is_fact in (True, False):
        n, kind = 0, [item for item in rows if item.instance_id.startswith("fact-") == is_fact]
        for item in draw.sample(kind, len(kind)):
            if n >= share:
                break
            drawn.append(item)
            n += n_labels(item)
    return drawn


def n_labels(item):
    return sum(label != IGNORED_LABEL for label in item.labels[1:])


if __name__ == "__main__":
    main()
