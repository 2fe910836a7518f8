"""How well does each gradient score tell bad rows from good ones, and what do selections keep?

Of captured pools with planted defects (`planting.py`; each folder holds pool.jsonl and run). For a
score: the AUC of telling swapped answers, and garbled ones, from all other rows (0.5 is chance),
the share of bad rows among its best 50, 15 and 5 %, and rank correlations with loss and response
length. For a selection: the share of bad rows, rows that only repeat another kept row, and topics
(clusters of words, which no model had a part in) of which it has a good row.

Only good rows have copies here, and whatever likes rows that are like others likes a row with a
copy. So all is told again of the pool without its copies.

Usage: python experiments/signals.py POOL ... --results experiments/results/signals.json
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from directions import cosine_with_others
from planted import Truth
from scipy.stats import rankdata

import gradsift as gs
from gradsift.config import SelectionConfig
from gradsift.selection.candidates import Context, Need
from gradsift.selection.constraints import parse_budget
from gradsift.selection.content import content_vectors, find_clusters
from gradsift.selection.neighbours import find_neighbours
from gradsift.selection.scores import SCORES, detrended, percentile_rank, rank_correlation
from gradsift.selection.selector import choose_rows, make_signal
from gradsift.selection.strategies.base import joint_sketches, unit
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of

BAD = ("swapped", "garbled")
SHARES = (0.5, 0.15, 0.05)
BUDGETS = ("5%", "15%", "50%")
JOINED = (
    "prompt-gain+low-norm",
    "prompt-gain+density",
    "low-norm+density",
)
# Scores whose selections are told, too: by these strategies.
CHOOSING = ("low-norm", "prompt-gain", *JOINED)
STRATEGIES_BY_SCORE = ("grads", "deita", "k-means")
# What is printed; the results hold all.
SHOWN_SCORES = (
    *("low-norm", "density", "prompt-gain", "prompt-gain in clusters"),
    *("direction, embedding", "direction, lm_head", "direction in cluster, embedding"),
    *("direction in cluster, lm_head", *JOINED[:2], "low loss"),
    *("sum of ranks, prompt-gain and low-norm", "gain as ratio, detrended"),
)
SHOWN_SELECTIONS = (
    *("random", "random-by-cluster", "facility-location", "gradient-facility-location"),
    *("grads", "deita", "loss-low", "loss-middle"),
    *(f"{rule}, prompt-gain{more}" for more in ("", " in clusters", "+low-norm", "+density")
      for rule in ("ranking alone", "grads", "deita", "k-means")),
    *(f"grads, prompt-gain{more}, gamma 0" for more in ("", "+low-norm")),
)  # fmt: skip
SEEDS = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--topics", type=int, default=40)
    arguments = parser.parse_args()
    found = {}
    for folder in arguments.pools:
        run = gs.Run(folder / "run")
        lines = map(json.loads, (folder / "pool.jsonl").read_text().splitlines())
        rows = {row["id"]: row for row in lines}
        there = {Need.FEATURES, Need.SKETCHES, Need.CLUSTERS}
        there |= {Need.REFERENCE_LOSSES} if run.has_reference_losses else set()
        pool = run.candidates(there)
        there |= {Need.SOURCES} if pool.source is not None else set()
        for name, one in {"": pool, ", no copies": without_copies(pool, rows)}.items():
            truth = Truth([rows[i] for i in one.ids], arguments.topics)
            found[folder.name + name] = of_pool(one, truth, there)
        arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    print(as_text({name: one for name, one in found.items() if "copies" not in name}))
    print("\n" + as_text({name: one for name, one in found.items() if "copies" in name}))


def without_copies(pool, rows):
    """Return the pool as if no row had been copied: its clusters are found anew."""
    kept = [at for at, i in enumerate(pool.ids) if "copy" not in rows[i]["planted"]]
    features_ND, step = pool.features_ND[kept], pool.step[kept]
    names = ("n_tokens", "n_response_tokens", "loss", "el2n")
    return replace(
        pool,
        ids=[pool.ids[at] for at in kept],
        statistics={
            layer: {name: x[kept] for name, x in by_name.items()}
            for layer, by_name in pool.statistics.items()
        },
        sketches={layer: x[kept] for layer, x in pool.sketches.items()},
        reference_losses={name: x[kept] for name, x in pool.reference_losses.items()},
        source=None if pool.source is None else [pool.source[at] for at in kept],
        language=None,
        features_ND=features_ND,
        step=step,
        cluster_N=find_clusters(content_vectors(features_ND, step)),
        **{name: getattr(pool, name)[kept] for name in names},
    )


def of_pool(pool, truth, there):
    vectors_ND = content_vectors(pool.features_ND, pool.step)
    context = Context(find_neighbours(vectors_ND), pool.cluster_N)
    selections = {}
    for name, (one_pool, one_context, config) in selections_of(pool, context, there).items():
        selections[name] = {}
        for budget in BUDGETS:
            seeds = range(SEEDS) if config.strategy.startswith("random") else (0,)
            chosen = [
                choose_rows(
                    one_pool,
                    parse_budget(budget),
                    config.model_copy(update={"seed": seed}),
                    one_context,
                )
                for seed in seeds
            ]
            each = [of_rows(rows_S, pool, truth) for rows_S in chosen]
            selections[name][budget] = {key: mean_of(one[key] for one in each) for key in each[0]}
    return {
        "rows": len(pool),
        "bad": float(bad_rows(truth).mean()),
        "clusters": len(set(pool.cluster_N.tolist())),
        "scores": {
            name: of_score(score_N, pool, truth) for name, score_N in scores_of(pool, there).items()
        },
        "selections": selections,
    }


def mean_of(values):
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def settings_of_scores(there):
    """Name → settings of every score that can be had: alone, joined, within clusters."""
    found = {}
    for score in (*SCORES, *JOINED):
        for within in ("pool", "cluster"):
            label = score + (" in clusters" if within == "cluster" else "")
            settings = {"score": score, "rank_within": within}
            if needs_of(SelectionConfig(**settings)) <= there:
                found[label] = settings
    return found


def scores_of(pool, there):
    """Name → score of each row: of the product, then some that it does not have."""

    def score(**settings):
        return make_signal(pool, SelectionConfig(**settings)).score_N

    found = {name: score(**settings) for name, settings in settings_of_scores(there).items()}
    covariates = [pool.covariate(name) for name in SelectionConfig().detrend]
    for layer, sketch in pool.sketches.items():
        found[f"low-norm, {layer}"] = score(score="low-norm", layers=(layer,))
        for where, cluster_N in {"": None, " in cluster": pool.cluster_N}.items():
            cosine_N = detrended(cosine_with_others(sketch, cluster_N), covariates)
            found[f"direction{where}, {layer}"] = percentile_rank(cosine_N)
    found["low-norm, not detrended"] = score(score="low-norm", detrend=())
    found["low loss"] = percentile_rank(-pool.loss)
    if Need.REFERENCE_LOSSES in there:
        gain_N, low_N = score(score="prompt-gain"), score(score="low-norm")
        found["sum of ranks, prompt-gain and low-norm"] = percentile_rank(gain_N + low_N)
        found |= gains_of(pool)
    return found


def gains_of(pool):
    """What the prompt helps, as a ratio and as a difference of losses, which rank otherwise."""
    losses = pool.reference_losses
    gains = {
        "ratio": np.log(losses["alone"] / losses["response"]),
        "difference": losses["alone"] - losses["response"],
    }
    covariates = [pool.covariate(name) for name in SelectionConfig().detrend]
    found = {}
    for name, gain_N in gains.items():
        known_N = np.isfinite(gain_N)
        gain_N = np.where(known_N, gain_N, gain_N[known_N].min())
        found[f"gain as {name}, not detrended"] = percentile_rank(gain_N)
        found[f"gain as {name}, detrended"] = percentile_rank(detrended(gain_N, covariates))
    return found


def selections_of(pool, context, there):
    """Name → pool, context and settings."""
    found = {
        name: (pool, context, SelectionConfig(strategy=name))
        for name, strategy in STRATEGIES.items()
        if set(strategy.needs) <= there
    }
    by_gradient = find_neighbours(joint_sketches(unit_layers(pool.sketches)))
    for name, settings in settings_of_scores(there).items():
        if settings["score"] not in CHOOSING:
            continue
        for strategy in STRATEGIES_BY_SCORE:
            config = SelectionConfig(strategy=strategy, **settings)
            found[f"{strategy}, {name}"] = (pool, context, config)
        config = SelectionConfig(beta=0.0, gamma=0.0, **settings)
        found[f"ranking alone, {name}"] = (pool, context, config)
        config = SelectionConfig(gamma=0.0, **settings)
        found[f"grads, {name}, gamma 0"] = (pool, context, config)
        near = replace(context, neighbours=by_gradient)
        found[f"grads by gradient, {name}"] = (pool, near, config)
    config = SelectionConfig(strategy="gradient-facility-location")
    for layer, sketch in pool.sketches.items():
        alone = replace(pool, sketches={layer: sketch})
        found[f"gradient-facility-location, {layer}"] = (alone, context, config)
    alike = replace(pool, sketches=unit_layers(pool.sketches))
    found["gradient-facility-location, layers alike"] = (alike, context, config)
    return found


def unit_layers(sketches):
    return {layer: unit(sketch) for layer, sketch in sketches.items()}


def bad_rows(truth):
    return np.isin(truth.kind, BAD)


def of_score(score_N, pool, truth):
    bad_N = bad_rows(truth)
    best_N = np.argsort(-score_N, kind="stable")
    figures = {f"auc {kind}": auc(score_N[~bad_N], score_N[truth.kind == kind]) for kind in BAD}
    for share in SHARES:
        figures[f"bad in best {share:.0%}"] = bad_N[best_N[: round(share * len(bad_N))]].mean()
    figures["rho loss"] = rank_correlation(score_N, pool.loss)
    good_N = ~bad_N
    figures["rho loss, good rows"] = rank_correlation(score_N[good_N], pool.loss[good_N])
    figures["rho length"] = rank_correlation(score_N, pool.n_response_tokens)
    return {name: mean_of([value]) for name, value in figures.items()}


def auc(good, bad):
    """Return how often a good row's score is above a bad row's; ties count half."""
    ranks = rankdata(np.concatenate([good, bad]))
    return (ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))


def of_rows(rows_S, pool, truth):
    bad_N = bad_rows(truth)
    good_S = rows_S[~bad_N[rows_S]]
    return {
        "bad": float(bad_N[rows_S].mean()),
        "surplus copies": float(truth.surplus(rows_S)),
        "topics": len(set(truth.topic[good_S])) / len(set(truth.topic)),
        # A rule that takes what is easy does not take what is in the pool.
        "loss of good rows": (
            float(pool.loss[good_S].mean() / pool.loss[~bad_N].mean()) if len(good_S) else None
        ),
        "response tokens": float(
            np.median(pool.n_response_tokens[rows_S]) / np.median(pool.n_response_tokens)
        ),
    }


def as_text(found):
    """Tables in Markdown: of scores, then of selections at each budget; pools side by side."""
    pools, lines = list(found), []
    keys = list(next(iter(found[pools[0]]["scores"].values())))
    by_pool = {name: pool["scores"] for name, pool in found.items()}
    lines += table("score", by_pool, SHOWN_SCORES, keys)
    for budget in BUDGETS:
        by_pool = {
            name: {rule: figures[budget] for rule, figures in pool["selections"].items()}
            for name, pool in found.items()
        }
        keys = list(next(iter(by_pool[pools[0]].values())))
        lines += ["", *table(f"selection at {budget}", by_pool, SHOWN_SELECTIONS, keys)]
    return "\n".join(lines)


def table(what, by_pool, names, keys):
    pools = list(by_pool)
    lines = [
        f"{' / '.join(pools)}",
        "",
        f"| {what} | " + " | ".join(keys) + " |",
        "| --- " * (len(keys) + 1) + "|",
    ]
    for name in names:
        if not all(name in by_name for by_name in by_pool.values()):
            continue
        cells = [" / ".join(shown(by_pool[pool][name][key]) for pool in pools) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def shown(value):
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
