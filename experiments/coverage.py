"""Do the intervals of a comparison hold what they promise? Arms with a known difference.

Each item has its own difficulty, shared by all trainings; each training has its seed effect (which
shifts all of its items), and each answer its noise. The share of intervals that hold the true
difference is written beside that of intervals which resample the seeds like items.

Usage:
    python experiments/coverage.py --results experiments/results/coverage.json
"""

import argparse
import json
from pathlib import Path

import numpy as np

from gradsift.evaluation.intervals import estimate_difference, pooled_seed_spread
from gradsift.evaluation.metrics import METRICS, replicate, resampling_weights

CASES = [
    {"n_items": 120, "n_seeds": (3, 3), "seed_sd": 0.05},
    {"n_items": 120, "n_seeds": (3, 3), "seed_sd": 0.0},
    {"n_items": 120, "n_seeds": (3, 3), "seed_sd": 0.3},
    {"n_items": 30, "n_seeds": (3, 3), "seed_sd": 0.05},
    {"n_items": 120, "n_seeds": (5, 5), "seed_sd": 0.1},
    {"n_items": 120, "n_seeds": (3, 1), "seed_sd": 0.1},
    {"n_items": 1000, "n_seeds": (2, 1), "seed_sd": 0.1},
    {"n_items": 1000, "n_seeds": (1, 1, 2), "seed_sd": 0.1},
    {"n_items": 1000, "n_seeds": (1, 1, 3), "seed_sd": 0.3},
    {"n_items": 1000, "n_seeds": (3, 3), "seed_sd": 0.05},
    {"n_items": 8, "n_seeds": (3, 3), "seed_sd": 0.05},
    {"n_items": 8, "n_seeds": (1, 1), "seed_sd": 0.0},
]
DIFFERENCE, ITEM_SD, NOISE_SD = 0.2, 1.0, 0.7


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=2000)
    arguments = parser.parse_args()
    rows = [measured(case, arguments.trials) for case in CASES]
    for row in rows:
        print(row)
    arguments.results.write_text(json.dumps({"trials": arguments.trials, "cases": rows}, indent=1))


def measured(case, n_trials):
    rng = np.random.default_rng(0)
    held = naive = 0
    for trial in range(n_trials):
        a, b, *others = simulated(case, rng, trial)
        spread = pooled_seed_spread([a, b, *others])
        interval = estimate_difference(a, b, n_items=case["n_items"], seed_spread=spread)
        held += interval.low <= DIFFERENCE <= interval.high
        low, high = percentile_interval(a, b, rng)
        naive += low <= DIFFERENCE <= high
    return {**case, "coverage": held / n_trials, "resampled_seeds": naive / n_trials}


def simulated(case, rng, trial, n_boot=200):
    n = case["n_items"]
    weights = resampling_weights({"test": n}, n_boot, trial)
    difficulty = rng.normal(0, ITEM_SD, n)
    arms = []
    # A third arm is there only for the seed variance that it shows.
    for effect, n_seeds in zip((DIFFERENCE, 0.0, 0.0), case["n_seeds"], strict=False):
        runs = []
        for _ in range(n_seeds):
            seed_effect = rng.normal(0, case["seed_sd"])
            items = effect + difficulty + seed_effect + rng.normal(0, NOISE_SD, n)
            runs.append(replicate(METRICS["loss"], {"test": items[:, None]}, weights))
        arms.append(runs)
    return arms


def percentile_interval(a, b, rng):
    n_boot = len(a[0].values_B)
    draws = []
    for arm in (a, b):
        values = np.stack([run.values_B for run in arm])
        picks = rng.integers(0, len(arm), (len(arm), n_boot))
        draws.append(values[picks, np.arange(n_boot)].mean(0))
    return np.percentile(draws[0] - draws[1], [2.5, 97.5])


if __name__ == "__main__":
    main()
