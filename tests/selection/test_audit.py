import re
from dataclasses import replace

import numpy as np
import pytest

from gradsift.selection.audit import Mix, audit_of, audit_warnings, overlap, repeated_share
from pools import N, context_for, copied, make_pool

FINE = {"self_checked": True, "non_finite_share": 0.0, "detrend": ("response_length",)}


def audited(pool, rows, score=None):
    context = context_for(pool)
    score = np.linspace(0, 1, len(pool)) if score is None else score
    return audit_of(pool, np.asarray(rows), score, context.cluster_N, context.neighbours, 0.8)


def test_each_number_is_that_of_the_pool_and_of_the_subset():
    pool, rows = make_pool(), np.arange(0, N, 3)
    found = audited(pool, rows)
    assert found.n_rows == (N, 20)
    assert found.response_tokens == (
        np.median(pool.n_response_tokens),
        np.median(pool.n_response_tokens[rows]),
    )
    assert found.loss == pytest.approx((pool.loss.mean(), pool.loss[rows].mean()))
    assert found.gradient_score == pytest.approx((0.5, np.linspace(0, 1, N)[rows].mean()))
    assert found.high_loss_share[0] == pytest.approx(0.1)
    # Every third row is from a book.
    assert found.sources.counts == {"forum": (40, 0), "book": (20, 20)}
    assert found.sources.distance == pytest.approx(2 / 3)
    assert found.sources.missing == ["forum"]
    assert found.languages.distance == 0
    assert sum(a for a, _ in found.clusters.counts.values()) == N
    assert sum(b for _, b in found.clusters.counts.values()) == 20


def test_a_source_that_chance_might_have_missed_is_not_missing():
    assert Mix({"a": (98, 10), "b": (2, 0)}).missing == []
    assert Mix({"a": (50, 10), "b": (50, 0)}).missing == ["b"]


def test_a_share_shrinks_only_where_chance_hardly_does_that():
    assert set(Mix({"a": (417, 27), "b": (183, 3)}).shrunk) == {"b"}
    assert Mix({"a": (417, 25), "b": (183, 5)}).shrunk == {}
    assert Mix({"a": (90, 30), "b": (10, 1)}).shrunk == {}
    assert Mix({"a": (5, 5), "b": (5, 5)}).shrunk == {}
    # As often as said, of random subsets.
    rng, pool = np.random.default_rng(0), np.repeat([0, 1], [420, 180])
    drawn = [int(rng.permutation(pool)[:60].sum()) for _ in range(2000)]
    warned = np.mean([bool(Mix({"a": (420, 60 - b), "b": (180, b)}).shrunk) for b in drawn])
    assert warned < 0.02


def test_repeats_are_counted_once_each_and_only_within_the_subset():
    pool = make_pool()
    pool = replace(pool, features_ND=np.random.default_rng(0).normal(size=(N, 40)))
    pool = copied(copied(pool, 4, 9), 4, 20)
    graph = context_for(pool).neighbours
    assert repeated_share(graph, np.arange(N), 0.8) == pytest.approx(2 / N)
    assert repeated_share(graph, np.array([9, 20, 1, 2]), 0.8) == pytest.approx(1 / 4)
    assert repeated_share(graph, np.array([4, 1, 2]), 0.8) == 0


def test_overlap():
    assert overlap([1, 2, 3], [3, 2, 9]) == pytest.approx(0.5)
    assert overlap(np.array([1, 2]), np.array([2, 1])) == 1


def test_a_selection_without_faults_has_no_warnings():
    pool = make_pool()
    rows = np.argsort(np.random.default_rng(0).random(N))[:30]
    score = np.zeros(N)
    score[rows] = 0.9
    found = replace(audited(pool, rows, score), length_correlation=0.1)
    found = replace(found, high_loss_share=(0.1, 0.1))
    assert audit_warnings(found, **FINE, cut_share=0.05, uses_score=True) == []


@pytest.mark.parametrize(
    ("change", "extraction", "cut", "message"),
    [
        ({}, FINE | {"self_checked": False}, None, "never compared with autograd"),
        ({}, FINE | {"non_finite_share": 0.02}, None, "2.0 % of the gradients are not finite"),
        ({}, FINE, 0.2, "density cut calls 20 % of the pool untypical"),
        ({"score_of_choice": (0.5, 0.4)}, FINE, None, "chosen is 0.40, below 0.50"),
        ({"high_loss_share": (0.1, 0.3)}, FINE, None, "makes 30 % of the subset"),
        ({"length_correlation": -0.6}, FINE, None, r"mostly shortness \(rank correlation -0.60"),
        ({"length_correlation": 0.6}, FINE, None, r"mostly length \(rank correlation \+0.60"),
        ({"length_correlation": 0.6}, FINE, None, "although `detrend` takes the length off"),
        (
            {"length_correlation": 0.6},
            FINE | {"detrend": ("step",)},
            None,
            r"\+0.60\): try `detrend: response_length`$",
        ),
        ({"sources": Mix({"a": (9, 9), "b": (9, 0)})}, FINE, None, "source 'b' has vanished"),
        (
            {"sources": Mix({"a": (417, 27), "b": (183, 3)})},
            FINE,
            None,
            r"source 'b' has shrunk from 30 % of the pool to 10 % of the subset; `quota` '\*=5%'",
        ),
    ],
)
def test_warnings(change, extraction, cut, message):
    pool = make_pool()
    calm = {
        "length_correlation": 0.0,
        "high_loss_share": (0.1, 0.1),
        "score_of_choice": (0.504, 0.496),
    }
    calm |= {"sources": None}
    found = replace(audited(pool, np.arange(20)), **(calm | change))
    lines = audit_warnings(found, **extraction, cut_share=cut, uses_score=True)
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_the_score_warns_only_where_it_was_used():
    pool = make_pool()
    changes = {"length_correlation": 0.9, "score_of_choice": (0.5, 0.1), "high_loss_share": (0, 0)}
    found = replace(audited(pool, np.arange(30)), **changes)
    assert audit_warnings(found, **FINE, cut_share=None, uses_score=False) == []


def test_a_subset_is_compared_with_the_rows_that_may_be_taken():
    pool, score = make_pool(), np.linspace(1, 0, N)
    graph, clusters = context_for(pool).neighbours, np.zeros(N, dtype=int)
    may_N = np.arange(N) >= 30
    for rows, expected in (
        (np.arange(30, N), None),
        (np.arange(30, 40), (score[30:].mean(), score[30:40].mean())),
    ):
        found = audit_of(pool, rows, score, clusters, graph, 0.8, may_N)
        assert found.score_of_choice == (expected and pytest.approx(expected))
        assert found.gradient_score[1] < found.gradient_score[0]
        lines = audit_warnings(found, **FINE, cut_share=None, uses_score=True)
        assert not any("diversity outweighs it" in line for line in lines)
