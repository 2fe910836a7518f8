import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import percentileofscore, spearmanr

from gradsift.selection.budget import parse_budget
from gradsift.selection.candidates import Candidates, Settings
from gradsift.selection.decision import nearest_selected, select_rows
from gradsift.selection.objective import content_similarity
from gradsift.terms import LAYERS, STATISTICS

N = 60


def make_pool(n=N, seed=0):
    generator = np.random.default_rng(seed)
    statistics = {
        layer: {name: np.exp(generator.normal(size=n)) for name in STATISTICS} for layer in LAYERS
    }
    centres = generator.normal(size=(12, 6))
    features = centres[generator.integers(12, size=n)] + 0.4 * generator.normal(size=(n, 6))
    n_tokens = generator.integers(10, 90, size=n)
    return Candidates(
        ids=[f"row-{i:03d}" for i in generator.permutation(n)],
        statistics=statistics,
        features_ND=features.astype(np.float32),
        n_tokens=n_tokens,
        n_response_tokens=n_tokens // 2,
        step=np.arange(n) // 4,
        loss=generator.random(n),
    )


def settings(budget="50%", **changes):
    return Settings(parse_budget(budget), **changes)


def copied(pool, first, second):
    """The pool with row `second` an exact copy of row `first`, but for the id."""
    rows = np.arange(len(pool))
    rows[second] = first
    changed = [pool.ids[row] for row in range(len(pool))]
    arrays = {
        name: np.asarray(getattr(pool, name))[rows]
        for name in ("features_ND", "n_tokens", "n_response_tokens", "step", "loss")
    }
    by_layer = {
        layer: {name: array[rows] for name, array in by_name.items()}
        for layer, by_name in pool.statistics.items()
    }
    return Candidates(ids=changed, statistics=by_layer, **arrays)


@pytest.mark.parametrize("budget", ["50%", "7", "700tok", "100%"])
@pytest.mark.parametrize("strategy", ["grads", "random"])
def test_the_table_accounts_for_every_instance(budget, strategy):
    pool = make_pool()
    found = select_rows(pool, settings(budget, strategy=strategy))
    table = pa.table(found.table).to_pylist()
    assert [row["instance_id"] for row in table] == pool.ids
    ranked = sorted((row for row in table if row["selected"]), key=lambda row: row["rank"])
    assert tuple(row["instance_id"] for row in ranked) == found.ids
    assert [row["rank"] for row in ranked] == list(range(1, len(ranked) + 1))
    assert all(row["rank"] is None for row in table if not row["selected"])
    tokens = dict(zip(pool.ids, pool.n_tokens, strict=True))
    assert found.n_tokens == sum(tokens[i] for i in found.ids)
    if found.limit.kind == "rows":
        assert len(ranked) == found.limit.amount
    else:
        assert 0 < found.n_tokens <= found.limit.amount
    for row in table:
        words = ("kept (", "drawn ") if row["selected"] else ("not ",)
        assert row["reason"].startswith(words)
        assert "\n" not in row["reason"]


def test_gains_add_up_fall_with_rank_and_lie_above_those_of_rejected_rows():
    table = select_rows(make_pool(), settings()).table
    marginal = np.array(table["marginal_gain"])
    parts = [table[name] for name in ("gradient_gain", "diversity_gain", "similarity_penalty")]
    np.testing.assert_allclose(marginal, np.array(parts[0]) + parts[1] - np.array(parts[2]))
    rank = np.array([r or 0 for r in table["rank"]])
    by_rank = marginal[np.argsort(rank)][(rank == 0).sum() :]
    assert (np.diff(by_rank) <= 1e-12).all()
    assert marginal[rank == 0].max() <= by_rank[-1] + 1e-12
    np.testing.assert_allclose(parts[0], np.array(table["gradient_score"]) / 30)


def test_a_random_choice_has_no_gains_but_all_else():
    table = select_rows(make_pool(), settings(strategy="random", seed=5)).table
    for name in ("marginal_gain", "gradient_gain", "diversity_gain", "similarity_penalty"):
        assert table[name] == [None] * N
    assert set(table["reason"]) == {"drawn at random (seed 5)", "not drawn (seed 5)"}
    assert None not in table["gradient_score"]
    assert None not in table["nearest_selected"]


@pytest.mark.parametrize("strategy", ["grads", "random"])
def test_the_order_of_the_pool_changes_nothing(strategy):
    pool = make_pool()
    order = np.random.default_rng(3).permutation(N)
    first = select_rows(pool, settings(strategy=strategy))
    second = select_rows(pool.take(order), settings(strategy=strategy))
    assert second.ids == first.ids
    assert second.losses == first.losses
    assert second.table == {
        name: [column[place] for place in order] for name, column in first.table.items()
    }


def test_percentiles_are_those_of_scipy():
    pool = make_pool()
    table = select_rows(pool, settings()).table
    for layer in LAYERS:
        for name in STATISTICS:
            x = pool.statistics[layer][name]
            expected = [percentileofscore(np.delete(x, i), x[i], "mean") for i in range(N)]
            np.testing.assert_allclose(table[f"{layer}_{name}_pct"], expected)
    assert sorted(table["density_pct"]) == pytest.approx(np.linspace(0, 100, N))
    np.testing.assert_allclose(table["gradient_score"], np.array(table["density_pct"]) / 100)


def test_the_nearest_selected_row_is_never_the_row_itself():
    pool = make_pool()
    found = select_rows(pool, settings("10"))
    x = pool.features_ND.astype(np.float64) - pool.features_ND.astype(np.float64).mean(axis=0)
    unit = dict(zip(pool.ids, x / np.linalg.norm(x, axis=1, keepdims=True), strict=True))
    for row in pa.table(found.table).to_pylist():
        own = row["instance_id"]
        cosine = {other: unit[own] @ unit[other] for other in found.ids if other != own}
        assert row["nearest_selected"] == max(cosine, key=cosine.get)
        assert row["nearest_similarity"] == pytest.approx(max(cosine.values()), abs=1e-6)


def test_of_equally_near_selected_rows_the_first_is_named():
    x = np.array([[1.0, 0], [1, 0], [1, 0], [-3, 1]])
    nearest, cosine = nearest_selected(content_similarity(x, 0.8), np.array([2, 1]))
    assert nearest.tolist() == [1, 2, 1, 1]
    assert cosine[:3].tolist() == [1, 1, 1]


def test_the_second_copy_of_a_row_is_left_out_while_others_remain():
    pool = make_pool()
    rank = select_rows(pool, settings("60%")).table["rank"]
    # A middling row, which is kept when there is no copy of it.
    middling = rank.index(20)
    other = (middling + 1) % N
    pool = copied(pool, middling, other)
    table = select_rows(pool, settings("50%")).table
    low, high = sorted((middling, other), key=lambda row: pool.ids[row])
    assert table["selected"][low]
    assert not table["selected"][high]
    assert table["nearest_selected"][high] == pool.ids[low]
    assert f"too close to kept row {pool.ids[low]} (similarity 1.00)" in table["reason"][high]
    # Without the similarity term nothing stands against the copy but its content.
    keeps_both = select_rows(pool, settings("50%", beta=0.0, gamma=0.0)).table
    score = np.array(keeps_both["gradient_score"])
    assert keeps_both["selected"][high] == (score[high] >= np.sort(score)[-30])


def test_alone_each_coefficient_does_what_it_says():
    pool = make_pool()
    only = {
        "gradient": select_rows(pool, settings(beta=0.0, gamma=0.0)),
        "content": select_rows(pool, settings(alpha=0.0, gamma=0.0)),
        "apart": select_rows(pool, settings(alpha=0.0, beta=0.0)),
    }
    score = np.array(only["gradient"].table["gradient_score"])
    assert set(only["gradient"].ids) == {pool.ids[i] for i in np.argsort(-score)[:30]}
    losses = {name: found.losses["subset"] for name, found in only.items()}
    assert losses["gradient"].density == min(loss.density for loss in losses.values())
    diversity = {name: loss.content_diversity for name, loss in losses.items()}
    assert min(diversity, key=diversity.get) == "content"
    similarity = {name: loss.similarity for name, loss in losses.items()}
    assert min(similarity, key=similarity.get) == "apart"
    assert similarity["apart"] < only["apart"].losses["random"].similarity
    assert diversity["content"] < only["content"].losses["random"].content_diversity


@pytest.mark.parametrize("strategy", ["grads", "random"])
def test_losses_stand_beside_those_of_the_pool_and_of_a_seeded_random_subset(strategy):
    pool = make_pool()
    runs = [select_rows(pool, settings("10", strategy=strategy, seed=s)) for s in (0, 0, 1)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses["random"] != runs[2].losses["random"]
    assert runs[0].losses["random"] != runs[0].losses["subset"]
    assert runs[0].losses["pool"].content_diversity == pytest.approx(0, abs=1e-6)


def test_the_correlations_with_length_and_step_are_reported():
    pool = make_pool()
    found = select_rows(pool, settings(side="informative"))
    score = found.table["gradient_score"]
    assert found.length_correlation == pytest.approx(
        spearmanr(score, pool.n_response_tokens).statistic
    )
    assert found.step_correlation == pytest.approx(spearmanr(score, pool.step).statistic)


@pytest.mark.parametrize("side", ["representative", "informative", "balanced"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("budget", ["1", "100%"])
def test_the_smallest_pools(n, side, budget):
    found = select_rows(make_pool(n), settings(budget, side=side))
    assert len(found.ids) == (1 if budget == "1" else n)
    if n == 1:
        assert found.table["nearest_selected"] == [None]
        assert found.table["nearest_similarity"] == [None]
        assert "the only row kept" in found.table["reason"][0]


@pytest.mark.parametrize("side", ["representative", "informative", "balanced"])
@pytest.mark.parametrize("budget", ["50%", "60tok"])
def test_identical_rows_are_kept_in_the_order_of_their_ids(side, budget):
    pool = make_pool(8).take(np.arange(8))
    for other in range(1, 8):
        pool = copied(pool, 0, other)
    pool = replace(pool, n_tokens=np.full(8, 15))
    found = select_rows(pool, settings(budget, side=side))
    expected = 4 if budget == "50%" else 1
    assert found.ids == tuple(sorted(pool.ids))[:expected]
    assert found.length_correlation is None
    assert all(np.isfinite(found.table["marginal_gain"]))


def test_reasons_repeat_the_numbers_of_the_table():
    for row in pa.table(select_rows(make_pool(), settings()).table).to_pylist():
        for percentile in re.findall(r"\(density percentile (\d+)", row["reason"]):
            assert int(percentile) == round(row["density_pct"])
        for cosine in re.findall(r"similarity (\d\.\d\d)", row["reason"]):
            assert float(cosine) == pytest.approx(row["nearest_similarity"], abs=0.006)
            assert row["similarity_penalty"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "best"}, "strategy is 'best', expected one of grads, random"),
        ({"side": "left"}, "side is 'left'"),
        ({"layers": ("head",)}, "layer 'head' is unknown"),
        ({"near_threshold": 1.0}, "near_threshold is 1.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        select_rows(make_pool(), settings(**change))


def test_selecting_imports_neither_torch_nor_pyarrow():
    code = (
        "import sys, gradsift.selection.decision; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
