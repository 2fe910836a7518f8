"""Do `compare`'s intervals hold what they promise? Simulated comparisons whose truth is known.

`components` estimates what makes scores differ (items, trainings, both together) from the
item-by-item scores of real trainings; the designs below are like them. `run` simulates each design
many times with and without a difference, and counts: how often the interval holds the truth, how
often a difference is found where there is none and where there is one, and how wide the interval is
beside that of somebody who knows all variances. `table` prints what docs/comparing.md shows of it.

Usage:
    python experiments/intervals.py components experiments/results/learn_and_forget
    python experiments/intervals.py run --results experiments/results/intervals.json
    python experiments/intervals.py table --results experiments/results/intervals.json
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import stats

from gradsift.evaluation.intervals import (
    SIGNIFICANT,
    Measured,
    estimate_difference,
    estimate_relative_change,
    pooled_spread,
)
from gradsift.evaluation.metrics import Replicated, resampling_weights
from gradsift.evaluation.uncertainty import NO_SPREAD

N_RESAMPLINGS = 1000
CHUNK = 200
# Of an arm's trainings: standard deviations of the noise of one item, and of a whole training, in
# nats; see `components`. Rows are fixed, or drawn anew.
FIXED, DRAWN = ("fixed", 0.05, 0.005), ("drawn", 0.165, 0.015)
FEW_DRAWN = ("drawn", 0.165, 0.025)
# Another class, since of another budget.
FULL = ("full", 0.05, 0.012)
BASE = ("base", 0.0, 0.0)


@dataclass(frozen=True)
class Design:
    """A comparison of arms a and b.

    Attributes:
        name: In words.
        items: Of each test set.
        a: Kind of the arm and number of its trainings.
        b: Likewise.
        others: Arms that are there for their spread.
        item_sd: Of the arms' difference, over items.
        skew: Of that difference.
        effect: Where there is a difference.
        scale: "loss" (normal), "accuracy" (0 or 1), or "ratio" (of sums, as BLEU's precisions).
    """

    name: str
    items: tuple[int, ...]
    a: tuple[tuple, int]
    b: tuple[tuple, int]
    others: tuple[tuple[tuple, int], ...] = ()
    item_sd: float = 0.15
    skew: float = 0.0
    effect: float = -0.05
    scale: str = "loss"

    @property
    def arms(self):
        """All of them, a and b first."""
        return (self.a, self.b, *self.others)


ALSO_FIXED = ((FIXED, 3),)
DESIGNS = [
    Design("60 items, 3 trainings", (60,), (FIXED, 3), (DRAWN, 3), ALSO_FIXED),
    Design("120 items, 3 trainings", (120,), (FIXED, 3), (DRAWN, 3), ALSO_FIXED),
    Design("120 items, 3 and 5 trainings", (120,), (FIXED, 3), (DRAWN, 5), ALSO_FIXED),
    Design("120 items, 5 trainings", (120,), (FIXED, 5), (DRAWN, 5), ALSO_FIXED),
    Design("240 items, 3 trainings", (240,), (FIXED, 3), (DRAWN, 3), ALSO_FIXED),
    Design("240 items, 5 trainings", (240,), (FIXED, 5), (DRAWN, 5), ALSO_FIXED),
    Design("1,000 items, 3 trainings", (1000,), (FIXED, 3), (DRAWN, 3), ALSO_FIXED),
    Design("1,000 items, 3 and 5 trainings", (1000,), (FIXED, 3), (DRAWN, 5), ALSO_FIXED),
    Design(
        "120 items, 1 training, two arms lend", (120,), (FIXED, 1), (FIXED, 1), ((FIXED, 3),) * 2
    ),
    Design("120 items, 1 and 3 trainings", (120,), (FIXED, 1), (DRAWN, 3), ALSO_FIXED),
    Design("120 items, 2 trainings", (120,), (FIXED, 2), (DRAWN, 2)),
    Design("120 items, both arms fixed", (120,), (FIXED, 3), (FIXED, 3), item_sd=0.2),
    Design("120 items, both arms drawn", (120,), (DRAWN, 3), (DRAWN, 3), item_sd=0.1),
    Design(
        "240 items, a twentieth of the rows",
        (240,),
        (FIXED, 3),
        (FEW_DRAWN, 5),
        ALSO_FIXED,
        0.35,
    ),
    Design("very skewed items, 60", (60,), (FIXED, 3), (DRAWN, 5), ALSO_FIXED, 0.2, 2.5),
    Design("skewed items, 240", (240,), (FIXED, 3), (DRAWN, 5), ALSO_FIXED, 0.2, 1.5),
    Design(
        "1,000 items, full's trainings differ more",
        (1000,),
        (FIXED, 3),
        (FULL, 3),
        ALSO_FIXED,
    ),
    Design("two sets, 30 and 300 items", (30, 300), (FIXED, 3), (DRAWN, 5), ALSO_FIXED),
    Design("against the untrained model", (120,), (FIXED, 3), (BASE, 1), ALSO_FIXED, 0.2),
    Design(
        "13 windows of text",
        (13,),
        (("fixed", 0.01, 0.005), 3),
        (("drawn", 0.01, 0.006), 5),
        (),
        0.03,
        effect=-0.05,
    ),
    Design(
        "accuracy, 120 items, 3 trainings",
        (120,),
        (FIXED, 3),
        (DRAWN, 3),
        ALSO_FIXED,
        scale="accuracy",
        effect=-8.0,
    ),
    Design(
        "accuracy, 5 × 200 items, 5 trainings",
        (200,) * 5,
        (FIXED, 5),
        (DRAWN, 5),
        scale="accuracy",
        effect=-4.0,
    ),
    Design(
        "ratio of sums, 120 items, 5 trainings",
        (120,),
        (FIXED, 5),
        (DRAWN, 5),
        ALSO_FIXED,
        scale="ratio",
    ),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    components = commands.add_parser("components")
    components.add_argument("cells", type=Path, help="folder of *-cells.jsonl")
    components.set_defaults(act=lambda arguments: print_components(arguments.cells))
    run = commands.add_parser("run")
    run.add_argument("--trials", type=int, default=4000)
    run.set_defaults(act=run_all)
    table = commands.add_parser("table")
    table.set_defaults(
        act=lambda arguments: print(table_of(json.loads(arguments.results.read_text())))
    )
    for command in (run, table):
        command.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.act(arguments)


def run_all(arguments):
    designs = []
    for design in DESIGNS:
        designs.append({**asdict(design), **measured(design, arguments.trials)})
        print({key: designs[-1][key] for key in ("name", *COLUMNS)}, flush=True)
    results = {"trials": arguments.trials, "designs": designs, "ratio": relative(arguments.trials)}
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    print(table_of(results))


COLUMNS = {
    "coverage": "holds the truth",
    "false_decisions": "false finds",
    "power": "true finds",
    "power_of_oracle": "would, all known",
    "width": "width, of all known",
}


def table_of(results):
    """As Markdown."""
    lines = [f"| {' | '.join(('simulated', *COLUMNS.values()))} |", "| --- " * 6 + "|"]
    for design in results["designs"]:
        cells = [f"{design[key]:.{2 if key == 'width' else 3}f}" for key in COLUMNS]
        lines.append(f"| {design['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def estimated(design, arms):
    """Compare as a Scoreboard does: spreads of an arm's own trainings, if five, or of its class."""

    def measured(at):
        kind = design.arms[at][0][0]
        if kind == "base":
            return Measured(arms[at], NO_SPREAD)
        alike = [arm for arm, (other, _) in zip(arms, design.arms, strict=True) if other[0] == kind]
        return Measured(arms[at], pooled_spread([arms[at]] if len(arms[at]) >= 5 else alike))

    return estimate_difference(measured(0), measured(1))


def measured(design, n_trials, estimate=estimated):
    """Simulate with and without the effect."""
    rng = np.random.default_rng(0)
    found = {}
    for effect in (design.effect, 0.0):
        truth, oracle_sd = truth_of(design, effect)
        estimates = [estimate(design, arms) for arms in simulated(design, effect, rng, n_trials)]
        low, high, p = np.array([(e.low, e.high, e.p) for e in estimates]).T
        if effect:
            found["coverage"] = np.mean((low <= truth) & (truth <= high))
            found["power"] = np.mean(p < SIGNIFICANT)
            z = stats.norm.ppf(1 - SIGNIFICANT / 2)
            found["power_of_oracle"] = stats.norm.cdf(abs(truth) / oracle_sd - z)
            found["width"] = np.mean(high - low) / (2 * z * oracle_sd)
        else:
            found["false_decisions"] = np.mean(p < SIGNIFICANT)
    return {key: float(value) for key, value in found.items()}


def simulated(design, effect, rng, n_trials):
    """Yield for each trial the arms' replicated trainings."""
    weights = resampling_weights(
        {str(at): n for at, n in enumerate(design.items)}, N_RESAMPLINGS, 0
    )
    n_runs = [n for _, n in design.arms]
    for start in range(0, n_trials, CHUNK):
        n = min(CHUNK, n_trials - start)
        values, replicates = [], []
        training = [rng.normal(0, kind[2], (n, n_arm)) for kind, n_arm in design.arms]
        for at, n_items in enumerate(design.items):
            drawn_TRNK = draw(design, effect, rng, n, n_items, training)
            weights_BN = weights[str(at)]
            sums_TRBK = np.einsum("bn,trnk->trbk", weights_BN, drawn_TRNK, optimize=True)
            values.append(value_of(design, drawn_TRNK.sum(2), n_items))
            replicates.append(value_of(design, sums_TRBK, n_items))
        value_TR, values_TRBS = np.mean(values, axis=0), np.stack(replicates, axis=-1)
        for trial in range(n):
            runs = [
                Replicated(value, values_BS, design.items)
                for value, values_BS in zip(value_TR[trial], values_TRBS[trial], strict=True)
            ]
            ends = np.cumsum([0, *n_runs])
            yield [runs[a:b] for a, b in pairwise(ends)]


def value_of(design, sums_K, n_items):
    """Of sums over items; in per cent for accuracy."""
    if design.scale == "ratio":
        return sums_K[..., 0] / sums_K[..., 1]
    return sums_K[..., 0] / n_items * (100 if design.scale == "accuracy" else 1)


def draw(design, effect, rng, n, n_items, training):
    """Return trials × trainings × items × statistics."""
    parts = []
    # What is hard is hard for all arms; paired differences take it out.
    difficulty_TN = rng.normal(0, 1, (n, n_items))
    for at, (kind, n_arm) in enumerate(design.arms):
        shift = effect if at == 0 else 0.0
        if design.scale == "accuracy":
            # Most items are always right or always wrong; noise where an arm is not sure.
            logit_TRN = 14 * difficulty_TN[:, None] + rng.normal(0, 2, (n, 1, n_items))
            logit_TRN = logit_TRN + 14 * shift / 40 + 20 * training[at][..., None]
            right = rng.random((n, n_arm, n_items)) < 1 / (1 + np.exp(-logit_TRN))
            parts.append(right[..., None].astype(float))
            continue
        own_TN = item_effects(design, rng, (n, n_items)) / np.sqrt(2)
        # A skew that cancels in the difference would be none.
        own_TN = own_TN * (-1 if at == 1 else 1)
        noise_TRN = rng.normal(0, kind[1], (n, n_arm, n_items))
        if kind[0] == "base":
            noise_TRN[:] = 0
        score_TRN = shift + (difficulty_TN + own_TN)[:, None] + training[at][..., None] + noise_TRN
        if design.scale == "ratio":
            length_TN = np.exp(0.5 * difficulty_TN)[:, None, :, None]
            score_TRN = 10 + score_TRN - difficulty_TN[:, None]
            lengths = np.broadcast_to(length_TN, (*score_TRN.shape, 1))
            parts.append(np.concatenate([score_TRN[..., None] * lengths, lengths], axis=-1))
        else:
            parts.append(score_TRN[..., None])
    return np.concatenate(parts, axis=1)


def item_effects(design, rng, shape):
    if not design.skew:
        return rng.normal(0, design.item_sd, shape)
    # The sum of two has this skew over √2.
    shape_parameter = 4 / (np.sqrt(2) * design.skew) ** 2
    drawn = rng.gamma(shape_parameter, 1, shape) - shape_parameter
    return design.item_sd * drawn / np.sqrt(shape_parameter)


def truth_of(design, effect, n=4000):
    """Return the true difference and its true standard deviation, from simulation where needed."""
    (kind_a, n_a), (kind_b, n_b) = design.arms[:2]
    variance = sum(kind[2] ** 2 / n for kind, n in design.arms[:2])
    if design.scale == "loss":
        for n_items in design.items:
            by_items = design.item_sd**2 + kind_a[1] ** 2 / n_a + kind_b[1] ** 2 / n_b
            variance += by_items / n_items / len(design.items) ** 2
        return effect, np.sqrt(variance)
    rng = np.random.default_rng(1)
    alone = replace(design, others=())
    differences = []
    for _ in range(n // CHUNK):
        training = [rng.normal(0, kind[2], (CHUNK, n_arm)) for kind, n_arm in alone.arms]
        by_set = [
            value_of(alone, draw(alone, effect, rng, CHUNK, k, training).sum(2), k)
            for k in design.items
        ]
        value_TR = np.mean(by_set, axis=0)
        differences.append(value_TR[:, :n_a].mean(1) - value_TR[:, n_a:].mean(1))
    differences = np.concatenate(differences)
    truth = effect if design.scale == "ratio" else differences.mean() if effect else 0.0
    return truth, differences.std()


def relative(n_trials, n_items=1000):
    """How often the interval of what was forgotten relative to full holds the truth."""
    rng = np.random.default_rng(0)
    lost, held, shown = {"base": 0.0, "arm": 0.03, "full": 0.06}, 0, 0
    weights_BN = resampling_weights({"a": n_items}, N_RESAMPLINGS, 0)["a"]
    for _ in range(n_trials):
        arms = {}
        for name, n_runs in (("base", 1), ("arm", 3), ("full", 3)):
            own_N = rng.normal(0, 0.15, n_items)
            runs = []
            for _ in range(n_runs):
                items_N = own_N - lost[name]
                if name != "base":
                    items_N = items_N + rng.normal(0, 0.005) + rng.normal(0, 0.05, n_items)
                values_B1 = (weights_BN @ items_N / n_items)[:, None]
                runs.append(Replicated(items_N.mean(), values_B1, (n_items,)))
            arms[name] = runs
        spread = pooled_spread([arms["arm"], arms["full"]])
        interval = estimate_relative_change(
            Measured(arms["base"], NO_SPREAD),
            Measured(arms["arm"], spread),
            Measured(arms["full"], spread),
        )
        if interval is not None:
            shown += 1
            held += interval.low <= -0.5 <= interval.high
    return {"shown": shown / n_trials, "coverage": held / shown}


def print_components(folder):
    """Two-way analysis of variance of every arm with several trainings, loss and METEOR."""
    for path in sorted(folder.glob("*-cells.jsonl")):
        arms = {}
        for line in path.read_text().splitlines():
            cell = json.loads(line)
            training = cell["identity"]["training"]
            if training is not None:
                how = (cell["arm"], training["sft"]["learning_rate"], training["epochs"])
                arms.setdefault(how, []).append(cell["scores"]["rows"]["loss"])
        arms = {how: np.array(scores_SN) for how, scores_SN in arms.items()}
        for how, scores_SN in arms.items():
            if len(scores_SN) > 1:
                n_seeds, n_items = scores_SN.shape
                rest_SN = scores_SN - scores_SN.mean(0) - scores_SN.mean(1)[:, None]
                noise = ((rest_SN + scores_SN.mean()) ** 2).sum() / (n_seeds - 1) / (n_items - 1)
                between = scores_SN.mean(1).var(ddof=1) - noise / n_items
                print(
                    f"{path.stem} {how[0]}: {n_seeds} trainings, {n_items} items; SD of noise "
                    f"{noise**0.5:.3f}, of trainings {max(between, 0) ** 0.5:.3f}"
                )
        names = list(arms)
        for at, a in enumerate(names):
            for b in names[:at]:
                if a[1:] == b[1:] and a[0].split()[-1] == b[0].split()[-1]:
                    difference_N = arms[a].mean(0) - arms[b].mean(0)
                    print(
                        f"{path.stem} {a[0]} less {b[0]}: SD over items {difference_N.std():.3f}, "
                        f"skew {stats.skew(difference_N):+.1f}"
                    )


if __name__ == "__main__":
    main()
