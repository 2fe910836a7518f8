from dataclasses import replace

import faiss
import numpy as np
import pytest
from scipy.stats import rankdata

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Need
from gradsift.selection.constraints import Constraints, ResolvedBudget, parse_budget
from gradsift.selection.content import content_vectors
from gradsift.selection.greedy import lazy_greedy
from gradsift.selection.neighbours import find_neighbours, unit_rows
from gradsift.selection.objective import Objective, Terms
from gradsift.selection.selector import choose_rows, make_signal
from gradsift.selection.strategies.base import Task
from gradsift.selection.strategies.catalogue import (
    STRATEGIES,
    needs_of,
    require_known_names,
    uses_score,
)
from gradsift.terms import LAYERS
from pools import N, context_for, copied, make_pool


def task(budget=None, pool=None, **constraints):
    pool = pool or make_pool()
    context = context_for(pool)
    budget = budget or ResolvedBudget("rows", 20, 20.0)
    signal = make_signal(pool, SelectionConfig())
    return Task(
        pool,
        signal,
        context.neighbours,
        Objective(signal.score_N, context.neighbours, scale=Terms(3.0, 0.2, 1.0)),
        Constraints(np.asarray(pool.n_tokens), budget, **constraints),
        0,
        context.references,
    )


def choose(name, given):
    return STRATEGIES[name].choose(given)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "budget", [ResolvedBudget("rows", 20, 20.0), ResolvedBudget("tokens", 500, 10.0)]
)
def test_every_strategy_keeps_to_budget_lists_and_quotas(name, budget):
    group = np.arange(N) % 3
    given = task(budget, keep=(7, 3), excluded=(0, 1), group_N=group, caps_G={1: 4})
    order = choose(name, given).order_S
    assert order[:2].tolist() == [7, 3]
    assert len(set(order.tolist())) == len(order)
    assert not {0, 1} & set(order.tolist())
    assert (group[order] == 1).sum() <= 4
    if budget.kind == "rows":
        assert len(order) == 20
    else:
        assert 0 < given.pool.n_tokens[order].sum() <= 500


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_whole_pool_can_be_asked_for(name):
    order = choose(name, task(ResolvedBudget("rows", N, float(N)))).order_S
    assert sorted(order.tolist()) == list(range(N))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_pools(name, n):
    order = choose(name, task(ResolvedBudget("rows", 1, 1.0), make_pool(n))).order_S
    assert len(order) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_budget_that_nothing_fits_is_refused(name):
    pool = replace(make_pool(), n_tokens=np.full(N, 9), n_response_tokens=np.full(N, 4))
    with pytest.raises(ValueError, match="shortest instance has 9"):
        choose(name, task(ResolvedBudget("tokens", 8, 1.0), pool))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_asks_only_for_what_it_says_it_needs(name):
    whole = make_pool()
    needs = STRATEGIES[name].needs
    bare = replace(
        whole,
        features_ND=whole.features_ND if Need.FEATURES in needs else None,
        sketches=whole.sketches if Need.SKETCHES in needs else {},
        reference_losses=whole.reference_losses if Need.REFERENCE_LOSSES in needs else {},
        cluster_N=whole.cluster_N if Need.CLUSTERS in needs else None,
    )
    context = context_for(whole)
    references = {need: context.references[need] for need in needs if need in context.references}
    arguments = (parse_budget("20"), SelectionConfig(strategy=name))
    expected = choose_rows(whole, *arguments, context)
    found = choose_rows(bare, *arguments, replace(context, references=references))
    assert found.tolist() == expected.tolist()


def test_grads_is_lazy_greedy():
    given = task()
    expected, gains = lazy_greedy(given.objective, given.constraints)
    found = choose("grads", given)
    np.testing.assert_array_equal(found.order_S, expected)
    np.testing.assert_array_equal(found.gains.marginal_N, gains.marginal_N)


def test_random_is_of_the_seed_alone_and_leaves_the_global_generator_alone():
    np.random.seed(7)
    untouched = np.random.random()
    np.random.seed(7)
    given = task(ResolvedBudget("rows", 5, 5.0))
    draws = [tuple(choose("random", replace(given, seed=seed)).order_S) for seed in (0, 0, 1)]
    assert np.random.random() == untouched
    assert draws[0] == draws[1] != draws[2]


def test_random_draws_every_row_equally_often():
    given, counts = task(), np.zeros(N)
    for seed in range(600):
        counts[choose("random", replace(given, seed=seed)).order_S] += 1
    # Each count is binomial(600, 1/3): mean 200, standard deviation 11.5.
    assert np.abs(counts - 200).max() < 50


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("longest", lambda pool: -pool.n_response_tokens),
        ("loss-high", lambda pool: -pool.loss),
        ("loss-low", lambda pool: pool.loss),
        ("loss-middle", lambda pool: abs(rankdata(pool.loss) - (N + 1) / 2)),
        (
            "perplexity-middle",
            lambda pool: abs(rankdata(pool.reference_losses["text"]) - (N + 1) / 2),
        ),
        (
            "grand",
            lambda pool: -np.hypot(*(pool.statistics[layer]["l2_norm"] for layer in LAYERS)),
        ),
        ("el2n", lambda pool: -pool.el2n),
    ],
)
def test_rankings_go_by_what_they_say(name, key):
    given = task()
    order = choose(name, given).order_S
    values = np.round(key(given.pool), 9)
    assert order.tolist() == np.lexsort((np.arange(N), values))[:20].tolist()


@pytest.mark.parametrize("name", ["ifd-loss", "ifd-perplexity"])
def test_difficulty_takes_the_highest_below_1_and_the_rest_last(name):
    given = task(ResolvedBudget("rows", N, float(N)))
    response, alone = (given.pool.reference_losses[key] for key in ("response", "alone"))
    ratio = response / alone if name == "ifd-loss" else np.exp(response) / np.exp(alone)
    order = choose(name, given).order_S
    n_below = int((ratio < 1).sum())
    assert 5 < n_below < N - 5
    assert (np.diff(ratio[order[:n_below]]) <= 0).all()
    assert (ratio[order[n_below:]] >= 1).all()


def test_the_two_difficulties_differ():
    given = task()
    names = ("ifd-loss", "ifd-perplexity")
    first, second = (choose(name, given).order_S.tolist() for name in names)
    assert first != second


def test_a_response_of_one_token_has_no_difficulty_and_comes_last():
    pool = make_pool()
    alone = pool.reference_losses["alone"].copy()
    alone[5] = np.nan
    pool = replace(pool, reference_losses={**pool.reference_losses, "alone": alone})
    assert choose("ifd-loss", task(ResolvedBudget("rows", N, float(N)), pool)).order_S[-1] == 5


def test_k_center_takes_the_farthest_each_time():
    given = task(ResolvedBudget("rows", 8, 8.0), keep=(4,))
    x = unit_rows(content_vectors(given.pool.features_ND, given.pool.step)).astype(np.float64)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    order = choose("k-center", given).order_S.tolist()
    for at in range(1, 8):
        to_taken = distance[:, order[:at]].min(axis=1)
        assert to_taken[order[at]] == pytest.approx(to_taken.max(), abs=1e-5)


def test_facility_locations_maximise_coverage_alone():
    given = task()
    objective = replace(given.objective, alpha=0.0, gamma=0.0, scale=Terms())
    expected, _ = lazy_greedy(objective, given.constraints)
    assert choose("facility-location", given).order_S.tolist() == expected.tolist()
    sketches = np.hstack([given.pool.sketches[layer] for layer in sorted(LAYERS)])
    graph = find_neighbours(sketches)
    unit = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
    np.testing.assert_allclose(graph.of(0)[1], (unit @ unit[0])[graph.of(0)[0]], atol=1e-5)
    expected, _ = lazy_greedy(replace(objective, neighbours=graph), given.constraints)
    assert choose("gradient-facility-location", given).order_S.tolist() == expected.tolist()


def test_k_means_gives_each_cluster_its_share_and_takes_its_best():
    given = task(ResolvedBudget("rows", 30, 30.0))
    choice = choose("k-means", given)
    kmeans = faiss.Kmeans(6, round((N / 2) ** 0.5), niter=20, seed=1, min_points_per_centroid=1)
    x = unit_rows(content_vectors(given.pool.features_ND, given.pool.step))
    kmeans.train(x)
    cluster = kmeans.assign(x)[1]
    taken = np.zeros(N, dtype=bool)
    taken[choice.order_S] = True
    score = given.signal.score_N
    assert len(set(cluster)) > 2
    for label in set(cluster):
        members = cluster == label
        # Half of the rows are asked for, so half of each cluster, to the row.
        assert abs(taken[members].sum() - members.sum() / 2) <= 1
        assert score[members & taken].min(initial=1) >= score[members & ~taken].max(initial=0)


def test_deita_leaves_out_what_repeats_a_better_row():
    pool = make_pool()
    score = make_signal(pool, SelectionConfig()).score_N
    best = int(np.argmax(score))
    pool = copied(pool, best, (best + 1) % N)
    given = task(ResolvedBudget("rows", 10, 10.0), pool)
    order = choose("deita", given).order_S.tolist()
    cosine = np.zeros((N, N))
    cosine[given.neighbours.owners(), given.neighbours.rows_E] = given.neighbours.cosines_E
    expected = []
    for row in np.argsort(-given.signal.score_N, kind="stable"):
        if all(cosine[row, other] <= 0.8 for other in expected) and len(expected) < 10:
            expected.append(int(row))
    assert order == expected
    assert len({best, (best + 1) % N} & set(order)) == 1


def information(z, rows):
    return np.linalg.slogdet(np.eye(z.shape[1]) + z[rows].T @ z[rows])[1]


@pytest.mark.parametrize(("name", "weight"), [("fisher", 0.0), ("spice", 1.0)])
def test_information_is_that_of_the_determinant(name, weight):
    given = task(ResolvedBudget("rows", 12, 12.0))
    z = np.hstack([given.pool.sketches[layer] for layer in sorted(LAYERS)]).astype(np.float64)
    z /= np.sqrt((z**2).sum(axis=1).mean())
    expected: list[int] = []
    for _ in range(12):
        worth = {}
        for row in set(range(N)) - set(expected):
            gain = information(z, [*expected, row]) - information(z, expected)
            total = z[expected].sum(axis=0)
            norms = np.linalg.norm(total) * np.linalg.norm(z[row])
            conflict = max(0.0, -(z[row] @ total) / norms) if norms > 0 else 0.0
            worth[row] = gain - weight * conflict
        expected.append(max(worth, key=worth.get))
    assert choose(name, given).order_S.tolist() == expected


@pytest.mark.parametrize(
    ("name", "need"), [("ogs-static", Need.ANCHOR), ("target-similarity", Need.TARGET)]
)
def test_likeness_to_a_reference_is_the_mean_cosine(name, need):
    given = task(ResolvedBudget("rows", N, float(N)))
    ours = np.hstack([given.pool.sketches[layer] for layer in sorted(LAYERS)])
    theirs = np.hstack([given.references[need].sketches[layer] for layer in sorted(LAYERS)])
    cosine = (ours @ theirs.T) / np.outer(
        np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    )
    choice = choose(name, given)
    assert choice.order_S.tolist() == np.argsort(-cosine.mean(axis=1), kind="stable").tolist()
    # The measure is the cosine with the mean direction.
    assert np.abs(choice.value_N).max() <= 1


def test_rds_lets_the_targets_take_turns():
    given = task(ResolvedBudget("rows", 12, 12.0))
    x, target = given.pool.features_ND, given.references[Need.TARGET].features_MD
    mean, scale = x.mean(axis=0), x.std(axis=0)
    x, target = (x - mean) / scale, (target - mean) / scale
    cosine = (target @ x.T) / np.outer(np.linalg.norm(target, axis=1), np.linalg.norm(x, axis=1))
    expected: list[int] = []
    while len(expected) < 12:
        for row in cosine[: 12 - len(expected)]:
            expected.append(next(int(i) for i in np.argsort(-row) if i not in expected))
    assert choose("rds", given).order_S.tolist() == expected


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_truly_whether_it_has_gains_and_what_it_goes_by(name):
    given, strategy = task(), STRATEGIES[name]
    choice = strategy.choose(given)
    assert strategy.has_gains == (choice.gains is not None)
    signal = replace(given.signal, score_N=given.signal.score_N[::-1])
    turned = replace(
        given, signal=signal, objective=replace(given.objective, score_N=signal.score_N)
    )
    changed = strategy.choose(turned).order_S.tolist() != choice.order_S.tolist()
    assert strategy.uses_score == changed
    weighed = replace(given, objective=replace(given.objective, alpha=0.1, beta=3.0, gamma=0.0))
    changed = strategy.choose(weighed).order_S.tolist() != choice.order_S.tolist()
    assert strategy.uses_coefficients == changed


def with_the_models_numbers_shuffled(pool):
    """The pool with what a model computed of each row given to another row."""
    order = np.random.default_rng(3).permutation(len(pool))
    statistics, references = pool.statistics, pool.reference_losses
    names = ("step", "loss", "el2n", "features_ND", "cluster_N")
    return replace(
        pool,
        statistics={
            layer: {name: array[order] for name, array in by_name.items()}
            for layer, by_name in statistics.items()
        },
        sketches={layer: sketch[order] for layer, sketch in pool.sketches.items()},
        reference_losses={name: losses[order] for name, losses in references.items()},
        **{name: getattr(pool, name)[order] for name in names},
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_truly_whether_it_needs_a_capture(name):
    pool = make_pool()
    orders = [choose(name, task(pool=p)).order_S for p in (pool, make_pool())]
    assert orders[0].tolist() == orders[1].tolist()
    shuffled = choose(name, task(pool=with_the_models_numbers_shuffled(pool))).order_S
    assert STRATEGIES[name].needs_capture == (set(shuffled) != set(orders[0]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_truly_whether_it_uses_the_score(name):
    pool = make_pool()
    low, high = (
        choose_rows(
            pool,
            parse_budget("20"),
            SelectionConfig(strategy=name, score=score),
            context_for(pool),
        )
        for score in ("low-norm", "high-norm")
    )
    assert STRATEGIES[name].uses_score == (set(low) != set(high))


def test_needs_are_those_of_strategy_and_score():
    assert needs_of(SelectionConfig()) == frozenset()
    assert needs_of(SelectionConfig(score="prompt-gain")) == {Need.REFERENCE_LOSSES}
    assert needs_of(SelectionConfig(score="prompt-gain", strategy="spice")) == {
        Need.REFERENCE_LOSSES,
        Need.SKETCHES,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"strategy": "grad"},
            "`strategy` is 'grad', which is unknown: did you mean grand or grads",
        ),
        ({"strategy": "best"}, "known are grads, random"),
        ({"score": "dense"}, "`score` is 'dense', which is unknown: did you mean density"),
        ({"score": "left"}, "known are density, high-norm"),
    ],
)
def test_an_unknown_strategy_or_score_is_refused(change, message):
    for refuse in (require_known_names, needs_of, lambda config: make_signal(make_pool(), config)):
        with pytest.raises(GradsiftError, match=message):
            refuse(SelectionConfig(**change))


def test_the_score_is_used_where_it_has_weight():
    assert uses_score(SelectionConfig())
    assert not uses_score(SelectionConfig(alpha=0.0))
    assert uses_score(SelectionConfig(strategy="deita", alpha=0.0))
    assert not uses_score(SelectionConfig(strategy="longest"))


@pytest.mark.parametrize("name", ["random-by-cluster", "random-by-source"])
def test_a_draw_by_group_keeps_the_shares_of_groups(name):
    pool = make_pool(200)
    group = pool.cluster_N if name == "random-by-cluster" else np.array(pool.source)
    for n in (10, 60, 150):
        given = task(ResolvedBudget("rows", n, float(n)), pool)
        draws = [choose(name, replace(given, seed=seed)).order_S for seed in (0, 0, 1)]
        assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()
        for one in np.unique(group):
            share = (group == one).mean()
            for order in draws:
                assert abs((group[order] == one).sum() - share * n) < 2


def test_a_draw_by_group_draws_every_row_equally_often():
    # Also of groups that are smaller than one share of the budget.
    sizes = (1, 2, 7, 50)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    given, counts = task(pool=replace(make_pool(), cluster_N=cluster)), np.zeros(N)
    for seed in range(600):
        counts[choose("random-by-cluster", replace(given, seed=seed)).order_S] += 1
    # Each count has mean 200 and a standard deviation of at most 11.5.
    assert np.abs(counts - 200).max() < 50


def test_a_draw_by_source_needs_sources():
    with pytest.raises(GradsiftError, match=r"no row says where it comes from: .*`source_column`"):
        choose("random-by-source", task(pool=replace(make_pool(), source=None)))


@pytest.mark.parametrize("source", [None, ["b", "a", "b", "c", "a"]])
def test_target_tasks_take_turns(source):
    given = task(ResolvedBudget("rows", 12, 12.0))
    reference = replace(given.references[Need.TARGET], source=source)
    given = replace(given, references={Need.TARGET: reference})
    ours, theirs = (
        np.hstack([sketches[layer] for layer in sorted(LAYERS)]).astype(float)
        for sketches in (given.pool.sketches, reference.sketches)
    )
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    if source is not None:
        theirs = np.array([theirs[[s == one for s in source]].mean(axis=0) for one in "abc"])
    cosine = (theirs @ ours.T) / np.outer(
        np.linalg.norm(theirs, axis=1), np.linalg.norm(ours, axis=1)
    )
    expected: list[int] = []
    while len(expected) < 12:
        for row in cosine[: 12 - len(expected)]:
            expected.append(next(int(i) for i in np.argsort(-row) if i not in expected))
    choice = choose("target-turns", given)
    assert choice.order_S.tolist() == expected
    np.testing.assert_allclose(choice.value_N, cosine.max(axis=0))
