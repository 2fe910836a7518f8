"""The gate: p-values by hand, shares against planted ones, and what a selection makes of it."""

from dataclasses import replace

import numpy as np
import pytest

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.conditions import gate_shortage, n_open
from gradsift.selection.constraints import parse_budget
from gradsift.selection.gate import (
    NO_TEXT,
    UNRELATED,
    CannotJudge,
    judge,
    null_share,
    p_values,
    too_many_rows,
)
from gradsift.selection.selector import choose_rows, select_rows
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of
from pools import N, context_for, make_pool

N_TOKENS = np.arange(400) % 50 + 20


def losses(n, faulty, seed=0):
    """Losses of n rows, the first share of which do not depend on their prompt."""
    generator, n_tokens = np.random.default_rng(seed), N_TOKENS[:n]
    helps = np.where(np.arange(n) < faulty * n, 0, 30)
    # What a row's own answer is like counts for all of its losses, so for none of them.
    style = 3 + generator.uniform(-0.8, 0.8, n)
    in_all = {name: generator.normal(0, 4, n) for name in ("mismatched", "mismatched_again")}
    in_all["response"] = generator.normal(0, 4, n) - helps
    return {"text": style + 1} | {name: style + x / n_tokens for name, x in in_all.items()}


def test_lengths_do_not_matter_where_losses_of_whole_answers_spread_alike():
    """Short answers have losses a token that spread far; they must not hide long faulty ones."""
    n_tokens, is_faulty = np.where(np.arange(400) % 2, 120, 10), np.arange(400) < 100
    named_N = np.zeros(400)
    for seed in range(10):
        some = losses(400, 0.25, seed)
        some = {name: 3 + (values - 3) * N_TOKENS / n_tokens for name, values in some.items()}
        named_N += judge(some, n_tokens, 0.2).unrelated_N / 10
    for of_length in (n_tokens == 120, n_tokens == 10):
        assert named_N[is_faulty & of_length].mean() == pytest.approx(0.8, abs=0.06)
        assert named_N[~is_faulty & of_length].mean() < 0.02


def judged(some, threshold=0.2):
    return judge(some, N_TOKENS[: len(some["text"])], threshold)


def test_p_is_the_share_of_null_values_at_least_as_large():
    generator = np.random.default_rng(0)
    value_N = generator.normal(size=30).round(1)
    null_N = generator.normal(size=30).round(1)
    value_N[3] = null_N[5] = np.nan
    expected = [
        np.nan if np.isnan(value) else (1 + sum(null >= value for null in null_N)) / 30
        for value in value_N
    ]
    np.testing.assert_allclose(p_values(value_N, null_N), expected, rtol=1e-12)


@pytest.mark.parametrize(("share", "within"), [(0.0, 0.05), (0.3, 0.06), (1.0, 0.1)])
def test_the_null_share_of_a_mixture(share, within):
    generator = np.random.default_rng(1)
    p_J = np.where(generator.random(3000) < share, generator.random(3000), 1e-3)
    assert null_share(p_J) == pytest.approx(share, abs=within)


@pytest.mark.parametrize("faulty", [0.05, 0.25, 0.5, 1.0])
def test_shares_and_errors_are_those_that_were_planted(faulty):
    n, threshold = 400, 0.2
    covered, named, good, expected_good = 0, 0, 0, 0
    for seed in range(20):
        gate = judged(losses(n, faulty, seed), threshold)
        is_faulty = np.arange(n) < faulty * n
        share = gate.unrelated_share
        covered += share.low <= faulty <= share.high
        named += gate.named_N[is_faulty].mean() / 20
        good += gate.named_N[~is_faulty].sum() / 20
        expected_good += gate.good_named(share.estimate) / 20
        assert gate.n_judged == gate.summary()["n_pairs"] == n
    # Of the faulty rows all but the share that p itself tells; of the good ones none here.
    assert named == pytest.approx(1 - threshold, abs=0.04)
    assert good < 1
    assert expected_good < 0.06 * n * faulty + 2
    assert covered >= 16


def test_a_pool_without_faulty_rows_has_hardly_any():
    gate = judged(losses(400, 0.0))
    assert gate.unrelated_share.estimate < 0.02
    assert gate.n_passing == 400
    assert too_many_rows(gate, 380) == []


def test_a_budget_beyond_the_good_rows_is_told():
    gate = judged(losses(400, 0.5))
    assert too_many_rows(gate, 150) == []
    (line,) = too_many_rows(gate, 300)
    assert line.startswith("300 rows are more than the good ones: in ")
    assert "cannot be kept clean" in line


def test_what_has_no_prompt_is_not_judged_and_passes():
    some = losses(100, 0.5)
    for name in ("mismatched", "mismatched_again"):
        some[name][-20:] = np.nan
    some["mismatched_again"][:10] = np.nan
    some["response"][-20:] = some["text"][-20:]
    gate = judged(some)
    assert (gate.n_judged, gate.summary()["n_pairs"]) == (80, 70)
    assert not gate.named_N[-20:].any()
    assert np.isnan(gate.p_N[-20:]).all()
    assert gate.lines()[-1].startswith("not judged by their prompt: 20 rows")
    assert gate.summary()["n_not_judged"] == 20


def test_answers_that_are_hardly_text_are_told_by_their_loss_for_their_length():
    some = losses(400, 0.0)
    length_effect = 100 / N_TOKENS
    for name in some:
        some[name] = some[name] + length_effect
    assert not judged(some).no_text_N.any()
    garbled = [3, 77, 200]
    for name in some:
        some[name][garbled] += 8
    gate = judged(some)
    assert np.flatnonzero(gate.no_text_N).tolist() == garbled
    assert [gate.reasons[row] for row in garbled] == [NO_TEXT] * 3
    assert "robust standard deviations above rows of its length" in gate.detail(77)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda some: {k: v[:49] for k, v in some.items()}, "there are 49 rows, at least 50"),
        (lambda some: {**some, "text": some["response"]}, "0 of 100 rows have a prompt"),
        (
            lambda some: {**some, "mismatched": some["mismatched"] * np.nan},
            "of 100 rows with a prompt 100 have the same",
        ),
    ],
    ids=["few", "no prompt", "one prompt"],
)
def test_where_it_cannot_say_it_says_so(spoil, message):
    with pytest.raises(CannotJudge, match=message):
        judged(spoil(losses(100, 0.3)))


def gated_pool(n_named=24):
    """A pool whose first rows the gate names, and no others."""
    pool = make_pool()
    advantage_N = np.where(np.arange(N) < n_named, -40, 40) / pool.n_response_tokens
    changed = {
        "response": 3 - advantage_N,
        "text": np.full(N, 100.0),
        "mismatched": np.full(N, 3.0),
        "mismatched_again": 3 - np.linspace(-20, 20, N) / pool.n_response_tokens,
    }
    return replace(pool, reference_losses={**pool.reference_losses, **changed})


def selected(pool, budget, config, context):
    selection = select_rows(pool, parse_budget(budget), config, context)
    rows_S = choose_rows(pool, parse_budget(budget), config, context)
    np.testing.assert_array_equal(rows_S, selection.rows_S)
    return selection


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_takes_what_the_gate_names(strategy):
    pool = gated_pool()
    config = SelectionConfig(strategy=strategy, gate=True)
    assert "REFERENCE_LOSSES" in {need.name for need in needs_of(config)}
    context = context_for(pool)
    rows_S = selected(pool, 20, config, context).rows_S
    assert len(rows_S) == 20
    assert rows_S.min() >= 24
    # Without it some are taken, or the test shows nothing.
    plain = choose_rows(pool, parse_budget(40), config.model_copy(update={"gate": False}), context)
    assert plain.min() < 24


@pytest.mark.parametrize("strategy", ["grads", "random", "spice", "longest"])
def test_where_fewer_pass_than_are_asked_for_all_of_them_are_taken_and_told(strategy):
    pool, config = gated_pool(), SelectionConfig(strategy=strategy, gate=True)
    context = context_for(pool)
    # Of tokens grads takes no more than gains something.
    tokens = [] if strategy == "grads" else [f"{pool.n_tokens.sum()}tok"]
    for budget in ("75%", 45, *tokens):
        selection = selected(pool, budget, config, context)
        assert set(selection.rows_S.tolist()) == set(range(24, N))
        (line,) = gate_shortage(pool, parse_budget(budget), config, context, selection.rows_S)
        assert "only 36 rows pass the gate" in line
    # As much as there is, and less, is no shortage; a share is one of the usable rows.
    for budget, n in (("50%", 30), (36, 36)):
        selection = selected(pool, budget, config, context)
        assert len(selection.rows_S) == n
        assert gate_shortage(pool, parse_budget(budget), config, context, selection.rows_S) == []


def test_budget_auto_takes_all_that_passed_where_there_are_no_gains():
    pool = gated_pool()
    config = SelectionConfig(strategy="random", gate=True)
    selection = select_rows(pool, parse_budget("auto"), config, context_for(pool))
    assert set(selection.rows_S.tolist()) == set(range(24, N))
    assert selection.curve_S is None
    grads = SelectionConfig(gate=True)
    selection = select_rows(pool, parse_budget("auto"), grads, context_for(pool))
    assert selection.rows_S.min() >= 24
    assert len(selection.curve_S) == 36
    with pytest.raises(GradsiftError, match="or add `gate`"):
        select_rows(
            pool, parse_budget("auto"), SelectionConfig(strategy="random"), context_for(pool)
        )


def test_the_list_of_rows_to_keep_beats_the_gate():
    pool = gated_pool()
    context = context_for(pool, keep=["row-003", "row-050"], drop=["row-059", "row-000"])
    config = SelectionConfig(strategy="random", gate=True)
    selection = selected(pool, 50, config, context)
    assert set(selection.rows_S.tolist()) == {3, *range(24, 59)}
    assert selection.table["dropped_by"][3] is None
    assert selection.table["dropped_by"][:3] == [UNRELATED] * 3


def test_quotas_count_what_passed():
    pool = gated_pool()
    config = SelectionConfig(strategy="random", gate=True, quota={"book": 5})
    selection = selected(pool, 40, config, context_for(pool))
    sources = [pool.source[row] for row in selection.rows_S]
    assert (sources.count("book"), sources.count("forum")) == (5, 24)
    assert selection.rows_S.min() >= 24
    with pytest.raises(GradsiftError, match=r"quotas .* leave 45 rows, but the budget asks for 50"):
        selected(pool, 50, config, context_for(pool))


def test_a_gate_that_leaves_no_row_says_so():
    pool = gated_pool(N)
    with pytest.raises(GradsiftError, match="the gate leaves no row: of 60 0 pass"):
        selected(pool, 5, SelectionConfig(gate=True), context_for(pool))


def test_every_dropped_row_says_why():
    pool = gated_pool()
    selection = selected(
        pool, 10, SelectionConfig(gate=True, gate_threshold=0.3), context_for(pool)
    )
    table = selection.table
    for row in range(24):
        assert table["reason"][row] == (
            f"dropped: {UNRELATED}: its own prompt makes it less likely than another row's by "
            "40.0 nats; a third row's does as well or better in 100 % of the pairs "
            "(p 1.00), more than 0.3"
        )
    assert not any(reason.startswith("dropped") for reason in table["reason"][24:])
    np.testing.assert_allclose(table["prompt_advantage"][:24], -40, rtol=1e-12)


def test_a_gated_subset_is_beside_what_passed():
    pool = gated_pool()
    context, config = context_for(pool), SelectionConfig(gate=True)
    assert n_open(pool, parse_budget(20), config, context) == 36
    assert n_open(pool, parse_budget(20), SelectionConfig(), context) == N
    selection = select_rows(pool, parse_budget(20), config, context)
    assert selection.audit.score_of_choice[0] == selection.signal.score_N[24:].mean()
    selection = select_rows(pool, parse_budget(45), config, context)
    assert selection.audit.score_of_choice is None


def test_where_all_are_faulty_no_good_one_is_named():
    gate = judged(losses(400, 1.0))
    assert gate.good_named(1.0) == 0
    # However many are named.
    assert replace(gate, threshold=0.9999, p_N=np.ones(400)).good_named(1.0) == 0


def test_of_rows_that_are_not_judged_nothing_good_is_assumed():
    some = losses(400, 0.5)
    for name in ("mismatched", "mismatched_again"):
        some[name][np.arange(400) % 4 == 0] = np.nan
    gate = judged(some)
    assert gate.n_judged == 300
    assert too_many_rows(gate, 150) == []
    (line,) = too_many_rows(gate, 240)
    assert "of the 300 judged rows" in line


def test_tokens_fall_short_of_what_quotas_and_lists_leave_of_those_that_pass():
    pool = gated_pool()
    config = SelectionConfig(strategy="random", gate=True, quota={"book": 5})
    context = context_for(pool, drop=["row-059"])
    budget = parse_budget(f"{pool.n_tokens.sum()}tok")
    rows_S = selected(pool, str(budget), config, context).rows_S
    assert len(rows_S) == n_open(pool, budget, config, context) < 36
    (line,) = gate_shortage(pool, budget, config, context, rows_S)
    assert f"only {len(rows_S)} rows pass" in line
