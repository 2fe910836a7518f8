"""On which held-out rows does a subset lose to a random one? By how near they are to training rows.

Nearness is the largest TF-IDF cosine (words, pairs and triples of words) between a held-out
response and a response of the training pool: templates that come again are near 1. For each arm the
mean held-out loss, less that of the random arm of the same budget, is printed for each part; ± is a
95 % interval over the rows alone.

Usage:
    python experiments/nearness.py OUT --results RESULTS --domain medicine --regime best
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from learn_and_forget import REGIMES, in_todays_words
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer

EDGES = (0.0, 0.2, 0.35, 0.6, 1.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder that domain_data.py filled")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--regime", choices=REGIMES, required=True)
    arguments = parser.parse_args()
    near = nearness(arguments.out / "data" / arguments.domain)
    losses = losses_of(
        arguments.results / f"{arguments.domain}-cells.jsonl", REGIMES[arguments.regime]
    )
    parts = [(low, (near >= low) & (near < high)) for low, high in pairwise(EDGES)]
    print("| | " + " | ".join(f"from {low:g} ({part.sum()} rows)" for low, part in parts) + " |")
    print("| --- " * (len(parts) + 1) + "|")
    for label, of_arm in losses.items():
        rival = losses.get(f"random {label.rpartition(' ')[2]}", losses.get("random 50%"))
        gap = of_arm - rival
        print(f"| {label} | " + " | ".join(mean(gap[part]) for _, part in parts) + " |")


def mean(gaps):
    if len(gaps) < 2:
        return f"{gaps.mean():+.3f}"
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{gaps.mean():+.3f} ± {half:.3f}"


def nearness(folder):
    """Return for each held-out row how near it is to the nearest training row, [N]."""
    texts = [
        [json.loads(line)["response"] for line in (folder / name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    ]
    words = TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True).fit(texts[0])
    train, test = (words.transform(part) for part in texts)
    return (test @ train.T).toarray().max(1)


def losses_of(cells, regime):
    """Return the held-out losses of each trained arm of a regime, as means over its trainings."""
    losses = {}
    for line in cells.read_text().splitlines():
        cell = json.loads(line)
        training = cell["identity"]["training"]
        if training is None or training["epochs"] != regime["epochs"]:
            continue
        if training["sft"].get("learning_rate") == regime["learning_rate"]:
            label = in_todays_words(cell["arm"])
            losses.setdefault(label, []).append(cell["scores"]["rows"]["loss"])
    return {label: np.mean(runs, axis=0) for label, runs in losses.items()}


if __name__ == "__main__":
    main()
