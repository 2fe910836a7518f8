import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import percentileofscore, spearmanr

from gradsift.config import SelectionConfig
from gradsift.selection import selector
from gradsift.selection.constraints import parse_budget
from gradsift.selection.greedy import elbow
from gradsift.selection.scores import SCORES
from gradsift.selection.selector import choose_rows, make_signal, select_rows
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.terms import LAYERS, STATISTICS
from pools import N, context_for, copied, make_pool, moved_pool

GAINS = ("marginal_gain", "gradient_gain", "diversity_gain", "similarity_penalty")


def select(pool, budget="50%", *, context=None, **changes):
    context = context or context_for(pool)
    return select_rows(pool, parse_budget(budget), SelectionConfig(**changes), context)


@pytest.mark.parametrize("budget", ["50%", "7", "700tok", "100%"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_table_accounts_for_every_instance(budget, strategy):
    pool = make_pool()
    found = select(pool, budget, strategy=strategy)
    table = found.table
    assert table["instance_id"] == pool.ids
    ranked = sorted((rank, i) for rank, i in zip(table["rank"], pool.ids, strict=True) if rank)
    assert tuple(i for _, i in ranked) == found.ids
    assert [rank for rank, _ in ranked] == list(range(1, len(ranked) + 1))
    np.testing.assert_array_equal(table["selected"], table["rank"] > 0)
    assert found.n_tokens == pool.n_tokens[found.rows_S].sum()
    if found.resolved_budget.kind == "rows":
        assert len(ranked) == found.resolved_budget.amount
    else:
        assert 0 < found.n_tokens <= found.resolved_budget.amount
    for selected, reason in zip(table["selected"], table["reason"], strict=True):
        assert reason.startswith(("kept (", "drawn ") if selected else ("not ",))
        assert "\n" not in reason


def test_gains_add_up_fall_with_rank_and_lie_above_those_of_rejected_rows():
    found = select(make_pool())
    table = found.table
    marginal, gradient, diversity, penalty = (table[name] for name in GAINS)
    np.testing.assert_allclose(marginal, gradient + diversity - penalty)
    rank = table["rank"]
    by_rank = marginal[np.argsort(rank)][(rank == 0).sum() :]
    assert (np.diff(by_rank) <= 1e-12).all()
    assert marginal[rank == 0].max() <= by_rank[-1] + 1e-12
    np.testing.assert_allclose(gradient, table["gradient_score"] / found.scale.gradient)


@pytest.mark.parametrize("score", ["low-norm", "density", "prompt-gain"])
@pytest.mark.parametrize("budget", ["10%", "50%", "600tok"])
def test_ids_and_the_order_of_the_rows_change_nothing(score, budget):
    """Greedy breaks exact ties by id, so there are no copies here."""
    n = 300
    pool, generator = make_pool(n), np.random.default_rng(3)
    # Many rows of one length, and 8 of each step.
    lengths = generator.integers(1, 8, size=n)
    pool = replace(pool, n_response_tokens=lengths, n_tokens=lengths + 20, step=np.arange(n) // 8)
    expected = select(pool, budget, score=score)
    order = generator.permutation(n)
    moved = select(moved_pool(pool, order), budget, score=score)
    np.testing.assert_array_equal(
        moved.table["gradient_score"], expected.table["gradient_score"][order]
    )
    assert moved.scale == expected.scale
    assert set(order[moved.rows_S]) == set(expected.rows_S)


@pytest.mark.parametrize("budget", ["5", "50%", "95%", "600tok", "auto"])
def test_the_subset_is_said_to_attain_what_it_does(budget):
    pool, context = make_pool(), context_for(make_pool())
    found = select(pool, budget, context=context)
    one_alone = {
        "gradient": {"beta": 0.0, "gamma": 0.0},
        "diversity": {"alpha": 0.0, "gamma": 0.0},
        "similarity": {"alpha": 0.0, "beta": 0.0},
    }
    assert set(found.attained) == set(one_alone)
    if budget == "auto":
        return
    if budget == "50%":
        score = np.sort(found.table["gradient_score"])
        assert found.scale.gradient == pytest.approx(score[30:].sum() - 30 * score.mean())
    for term, zero in one_alone.items():
        alone = select(pool, budget, context=context, **zero).attained
        # By similarity alone many rows tie, and the user's selection breaks ties by id.
        assert alone[term] == pytest.approx(1, abs=0.15 if term == "similarity" else 1e-9)
        assert found.attained[term] < 1 + 1e-9
    assert min(found.attained.values()) > 0.1


def test_a_term_that_can_gain_nothing_counts_nothing_and_says_so():
    pool = make_pool()
    for layer in LAYERS:
        pool.statistics[layer]["l2_norm"] = np.ones(N)
    # So far apart that there are no near-duplicates.
    pool = replace(pool, features_ND=np.eye(N, dtype=np.float32))
    found = select(pool, detrend=())
    assert found.attained["gradient"] is found.attained["similarity"] is None
    assert (found.table["gradient_gain"] == 0).all()
    assert (found.table["similarity_penalty"] == 0).all()
    everything = select(make_pool(), "100%")
    assert set(everything.attained.values()) == {None}
    assert everything.scale.gradient > 0
    assert select(make_pool(), strategy="random").attained is None


def test_a_random_choice_has_no_gains_but_all_else():
    found = select(make_pool(), strategy="random", seed=5)
    for name in (*GAINS, "measure"):
        assert np.isnan(found.table[name]).all()
    assert set(found.table["reason"]) == {"drawn at random (seed 5)", "not drawn (seed 5)"}
    assert np.isfinite(found.table["gradient_score"]).all()


def test_a_ranking_tells_its_measure_and_the_cut():
    pool = make_pool()
    found = select(pool, strategy="loss-high")
    np.testing.assert_array_equal(found.table["measure"], pool.loss)
    cut = np.sort(pool.loss)[30]
    first, worst = int(found.rows_S[0]), int(np.argmin(pool.loss))
    assert found.table["reason"][first] == (
        f"kept (rank 1 of 30): loss {pool.loss[first]:.3g}, high first"
    )
    assert found.table["reason"][worst] == (
        f"not kept: loss {pool.loss[worst]:.3g}, last kept row {cut:.3g}"
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_pool_gives_the_same_selection(strategy):
    first, second = (select(make_pool(), strategy=strategy) for _ in range(2))
    assert second.ids == first.ids
    assert second.criteria == first.criteria
    assert second.audit == first.audit


def test_percentiles_are_those_of_scipy():
    pool = make_pool()
    table = select(pool, detrend=()).table
    for layer in LAYERS:
        for name in STATISTICS:
            x = pool.statistics[layer][name]
            expected = [percentileofscore(np.delete(x, i), x[i], "mean") for i in range(N)]
            np.testing.assert_allclose(table[f"{layer}_{name}_pct"], expected)
    assert sorted(table["density_pct"]) == pytest.approx(np.linspace(0, 100, N))


def test_the_second_copy_of_a_row_is_left_out_while_others_remain():
    pool = make_pool()
    rank = select(pool, "60%", alpha=0.3, detrend=()).table["rank"].tolist()
    # A middling row, which is kept when there is no copy of it.
    middling = rank.index(20)
    other = (middling + 1) % N
    pool = copied(pool, middling, other)
    table = select(pool, alpha=0.3, beta=0.1, detrend=()).table
    low, high = sorted((middling, other))
    assert table["selected"][low]
    assert not table["selected"][high]
    assert table["nearest_selected"][high] == pool.ids[low]
    assert f"too close to kept row {pool.ids[low]} (similarity 1.00)" in table["reason"][high]
    # Without the similarity term nothing stands against the copy but its content.
    keeps_both = select(pool, beta=0.0, gamma=0.0, detrend=()).table
    score = keeps_both["gradient_score"]
    assert keeps_both["selected"][high] == (score[high] >= np.sort(score)[-30])


def test_alone_each_coefficient_does_what_it_says():
    pool = make_pool()
    only = {
        "gradient": select(pool, beta=0.0, gamma=0.0, score="density"),
        "content": select(pool, alpha=0.0, gamma=0.0),
        "apart": select(pool, alpha=0.0, beta=0.0),
    }
    score = only["gradient"].table["gradient_score"]
    assert set(only["gradient"].ids) == {pool.ids[i] for i in np.argsort(-score)[:30]}
    criteria = {name: found.criteria["subset"] for name, found in only.items()}
    assert criteria["gradient"].density == min(loss.density for loss in criteria.values())
    diversity = {name: loss.content_diversity for name, loss in criteria.items()}
    assert min(diversity, key=diversity.get) == "content"
    similarity = {name: loss.similarity for name, loss in criteria.items()}
    assert min(similarity, key=similarity.get) == "apart"
    assert similarity["apart"] < only["apart"].criteria["random"].similarity
    assert diversity["content"] < only["content"].criteria["random"].content_diversity


@pytest.mark.parametrize("strategy", ["grads", "random"])
def test_criteria_stand_beside_those_of_the_pool_and_of_a_seeded_random_subset(strategy):
    pool = make_pool()
    runs = [select(pool, "10", strategy=strategy, seed=s) for s in (0, 0, 1)]
    assert runs[0].criteria == runs[1].criteria
    assert runs[0].criteria["random"] != runs[2].criteria["random"]
    assert runs[0].criteria["random"] != runs[0].criteria["subset"]
    assert runs[0].criteria["pool"].content_diversity == pytest.approx(0, abs=1e-6)


def test_the_correlations_with_length_and_step_are_reported():
    pool = make_pool()
    found = select(pool, score="high-norm")
    score = found.table["gradient_score"]
    assert found.audit.length_correlation == pytest.approx(
        spearmanr(score, pool.n_response_tokens).statistic
    )
    assert found.step_correlation == pytest.approx(spearmanr(score, pool.step).statistic)


def test_what_is_taken_off_no_longer_shows_in_the_score():
    pool = make_pool(300)
    for layer in LAYERS:
        pool.statistics[layer]["l2_norm"] /= pool.n_response_tokens**2
    plain = select(pool, score="low-norm", detrend=()).audit.length_correlation
    detrended = select(
        pool, score="low-norm", detrend=("response_length",)
    ).audit.length_correlation
    assert plain > 0.5
    assert abs(detrended) < 0.15


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("budget", ["1", "100%", "auto"])
def test_the_smallest_pools(n, score, budget):
    found = select(make_pool(n), budget, score=score)
    assert len(found.ids) == (n if budget == "100%" else 1) or budget == "auto"
    if n == 1:
        assert found.table["nearest_selected"] == [None]
        assert np.isnan(found.table["nearest_similarity"]).all()
        assert "the only row kept" in found.table["reason"][0]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("budget", ["50%", "60tok"])
def test_identical_rows_are_kept_in_the_order_of_their_ids(score, budget):
    pool = make_pool(8)
    for other in range(1, 8):
        pool = copied(pool, 0, other)
    pool = replace(
        pool,
        n_tokens=np.full(8, 15),
        reference_losses={name: np.ones(8) for name in pool.reference_losses},
    )
    found = select(pool, budget, score=score)
    assert found.ids == tuple(pool.ids)[:4]
    assert found.audit.length_correlation is None
    assert np.isfinite(found.table["marginal_gain"]).all()


def test_reasons_repeat_the_numbers_of_the_table():
    table = select(make_pool(), score="density").table
    for row, reason in enumerate(table["reason"]):
        for percentile in re.findall(r"\(density percentile (\d+)", reason):
            assert int(percentile) == round(table["density_pct"][row])
        for cosine in re.findall(r"similarity (\d\.\d\d)", reason):
            assert float(cosine) == pytest.approx(table["nearest_similarity"][row], abs=0.006)
            assert table["similarity_penalty"][row] > 0


def test_auto_stops_at_the_elbow_of_the_gains_and_keeps_the_curve():
    pool = make_pool()
    found = select(pool, "auto")
    assert 1 < len(found.ids) < N
    assert len(found.ids) == elbow(found.curve_S)
    assert len(found.curve_S) == N
    np.testing.assert_allclose(
        found.curve_S[: len(found.ids)], found.table["marginal_gain"][found.rows_S]
    )
    with pytest.raises(ValueError, match="budget auto looks at marginal gains, and random has"):
        select(pool, "auto", strategy="random")


def test_auto_with_lists():
    pool = make_pool()
    context = context_for(pool, keep=("row-031", "row-007"), drop=("row-002",))
    found = select(pool, "auto", context=context)
    assert found.ids[:2] == ("row-031", "row-007")
    assert "row-002" not in found.ids
    assert len(found.curve_S) == N - 1
    assert len(found.ids) == 2 + elbow(found.curve_S[2:])


@pytest.mark.parametrize("strategy", ["grads", "loss-low", "random"])
def test_lists_and_quotas_say_so_in_the_reasons(strategy):
    pool = make_pool()
    context = context_for(pool, keep=("row-010",), drop=("row-003", "not there"))
    found = select(pool, "20", context=context, strategy=strategy, quota={"book": 2})
    table = found.table
    assert table["reason"][10] == "kept: on the list of rows to keep"
    assert table["reason"][3] == "not kept: on the list of rows to drop"
    kept_books = [i for i in found.rows_S if pool.source[i] == "book"]
    assert len(kept_books) == 2
    spent = [r for r in table["reason"] if r.startswith("not kept: the quota of source 'book' (2")]
    assert spent
    if strategy == "grads":
        # A book whose gain lies below the cut would not have been kept anyway, and says that.
        cut = table["marginal_gain"][found.rows_S[-1]]
        for row, reason in enumerate(table["reason"]):
            if "quota" in reason:
                assert table["marginal_gain"][row] >= cut


def test_a_list_of_rows_to_keep_may_spend_the_budget():
    pool = make_pool()
    found = select(pool, "2", context=context_for(pool, keep=("row-031", "row-007")))
    assert found.ids == ("row-031", "row-007")
    assert found.table["reason"].count("not kept: the list of rows to keep spends the budget") == 58


@pytest.mark.parametrize(("quota", "expected"), [({"forum": "25%"}, 10), ({"*": "10%"}, 4)])
def test_quotas_in_percent(quota, expected):
    pool = make_pool()
    found = select(pool, "6", quota=quota, strategy="loss-high")
    assert sum(pool.source[i] == "forum" for i in found.rows_S) <= expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "90%", "quota": {"forum": 3}}, "leave 23 rows, but the budget asks for 54"),
        ({"quota": {"blog": 3}}, "there is none of that name; there are 'book', 'forum'"),
        ({"quota": {"book": "many"}}, "quota book=many: expected a number of rows"),
        ({"quota": {"book": "110%"}}, "quota book=110%: expected a number of rows"),
        ({"budget": "61"}, "the pool has 60 instances"),
    ],
)
def test_a_setting_that_does_not_fit_the_pool_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        select(make_pool(), **given)


def test_quotas_need_sources_and_kept_rows_must_be_there():
    pool = make_pool()
    with pytest.raises(ValueError, match="capture again with `source_column`"):
        select(replace(pool, source=None), quota={"book": 3})
    with pytest.raises(ValueError, match="names 'nobody', which is no row that can be selected"):
        select(pool, context=context_for(pool, keep=("nobody",)))
    with pytest.raises(ValueError, match="'row-003' is on the list of rows to keep and on that of"):
        select(pool, context=context_for(pool, keep=("row-003",), drop=("row-003", "row-004")))
    only_head = replace(pool, statistics={"lm_head": pool.statistics["lm_head"]})
    with pytest.raises(ValueError, match="layer 'embedding' is unknown, expected one of lm_head"):
        select(only_head, layers=("embedding",))


def test_all_scores_share_one_density(monkeypatch):
    pool, calls = make_pool(), []
    estimate = selector.estimate_density
    monkeypatch.setattr(
        selector, "estimate_density", lambda *args: calls.append(1) or estimate(*args)
    )
    signals = [make_signal(pool, SelectionConfig(score=score)) for score in SCORES]
    assert len(calls) == 1
    # All layers by name are the same as all layers.
    make_signal(pool, SelectionConfig(layers=LAYERS))
    assert len(calls) == 1
    for score, signal in zip(SCORES, signals, strict=True):
        fresh = make_signal(make_pool(), SelectionConfig(score=score))
        np.testing.assert_array_equal(signal.score_N, fresh.score_N)
        np.testing.assert_array_equal(signal.magnitude_N, fresh.magnitude_N)
        np.testing.assert_array_equal(signal.density.log_N, fresh.density.log_N)
    for change in ({"layers": LAYERS[:1]}, {"detrend": ()}, {"signal_statistics": ("std",)}):
        calls.clear()
        fresh = make_signal(make_pool(), SelectionConfig(**change))
        cached = make_signal(pool, SelectionConfig(**change))
        assert len(calls) == 2
        np.testing.assert_array_equal(cached.score_N, fresh.score_N)


def test_choosing_alone_chooses_the_same():
    pool = make_pool()
    arguments = (parse_budget("50%"), SelectionConfig(), context_for(pool))
    whole = select_rows(pool, *arguments)
    assert choose_rows(pool, *arguments).tolist() == whole.rows_S.tolist()


def test_the_density_cut_is_told_only_where_the_score_cuts():
    pool = make_pool()
    assert select(pool, score="high-norm").cut_share is None
    found = select(pool, score="high-norm-in-density")
    assert found.cut_share == pytest.approx((found.table["gradient_score"] == 0).mean())


def test_selecting_imports_neither_torch_nor_pyarrow():
    code = (
        "import sys, gradsift.selection.selector; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_untrained_model_says_has_no_step_to_take_off():
    pool, config = make_pool(), SelectionConfig(score="prompt-gain")
    found = make_signal(pool, config).score_N
    moved = replace(pool, step=np.random.default_rng(1).permutation(pool.step))
    np.testing.assert_array_equal(make_signal(moved, config).score_N, found)
    bare = config.model_copy(update={"detrend": ("step",)})
    alone = make_signal(pool, bare.model_copy(update={"detrend": ()})).score_N
    np.testing.assert_array_equal(make_signal(pool, bare).score_N, alone)
    assert (alone != found).any()
