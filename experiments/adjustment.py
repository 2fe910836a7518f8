"""What taking off length and drift does to a score: the running median of before, and today's fit.

Pools of 1,000 rows are made up: log-norms of both layers that fall with response length and drift
with the step (8 rows each), noise, and in the third question a signal of each row's own. Printed:

* noise at the ends: the standard deviation, over pools of pure noise, of the mean score (0 to 1) of
  the 25 shortest rows; 25 scores drawn at random would have 0.058;
* renamed: which share of a 5 % subset by the score changes if the rows get other ids;
* found: which share of the rows whose own signal is in the best half are in the best half by score,
  where that signal goes with length and step, too.

Usage: python experiments/adjustment.py [--pools 200]
"""

import argparse

import numpy as np
from scipy.ndimage import median_filter

from gradsift.selection.adjustment import detrended
from gradsift.selection.scores import percentile_rank, robust_standardise

N, SHORTEST, SUBSET = 1_000, 25, 50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=int, default=200)
    n_pools = parser.parse_args().pools
    print("| | noise at the ends | renamed | found |\n| --- | --- | --- | --- |")
    for name, rule in (("running median", running_median), ("local fit", detrended)):
        ends, changed, found = [], [], []
        for seed in range(n_pools):
            generator = np.random.default_rng(seed)
            length, step, norms = pool(generator, own=0.0)[:3]
            score = scores(norms, length, step, rule)
            ends.append(score[np.argsort(length, kind="stable")[:SHORTEST]].mean())
            changed.append(share_changed(generator, norms, length, step, rule, score))
            length, step, norms, own = pool(generator, own=1.0)
            best = own > np.median(own)
            score = scores(norms, length, step, rule)
            found.append((score[best] > np.median(score)).mean())
        print(
            f"| {name} | {np.std(ends):.3f} | {100 * np.mean(changed):.0f} % "
            f"| {np.mean(found):.3f} |"
        )


def pool(generator, *, own):
    """Return lengths, steps, log-norms of both layers, and each row's own signal."""
    length = np.round(np.exp(generator.normal(4.0, 0.8, size=N))).astype(int) + 1
    step = np.arange(N) // 8
    # A row's own signal is its quality; longer and earlier rows have more of it.
    signal = generator.normal(size=N)
    confounded = signal + 0.5 * standard(np.log(length)) - 0.3 * standard(step)
    norms = [
        -0.8 * np.log(length)
        - 0.5 * np.log1p(step)
        - own * 0.5 * confounded
        + generator.normal(size=N) * (0.5 if own == 0 else 0.15)
        for _ in range(2)
    ]
    return length, step, norms, signal


def standard(x):
    return (x - x.mean()) / x.std()


def scores(norms, length, step, rule):
    columns = [robust_standardise(rule(norm, [length, step])) for norm in norms]
    return percentile_rank(-np.mean(columns, axis=0))


def share_changed(generator, norms, length, step, rule, score):
    """Return which share of the best rows changes if the rows come in another order."""
    order = generator.permutation(N)
    other = np.empty(N)
    other[order] = scores([norm[order] for norm in norms], length[order], step[order], rule)
    first, second = (set(np.argsort(-one, kind="stable")[:SUBSET]) for one in (score, other))
    return 1 - len(first & second) / SUBSET


def running_median(x, covariates):
    """Take off the median of 101 rows in the order of each covariate, twice: the rule of before."""
    for covariate in list(covariates) * 2:
        order = np.argsort(covariate, kind="stable")
        medians = np.empty_like(x)
        medians[order] = median_filter(x[order], size=101, mode="nearest")
        x = x - medians
    return x


if __name__ == "__main__":
    main()
