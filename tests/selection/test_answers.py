"""Answers of a subset beside the pool's, and what is claimed: only what chance hardly does."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from gradsift.config import SelectionConfig
from gradsift.selection.answers import answers_of
from gradsift.selection.audit import audit_of, audit_warnings
from gradsift.selection.chance import chance_of_so_many, deviations
from gradsift.selection.criteria_table import criteria_lines
from gradsift.selection.kind import kind_of_rows
from gradsift.selection.objective import Criteria
from pools import context_for, make_pool

N = 400
RARELY = ("boilerplate", "near_empty", "other_language")


def traits(generator, rate=0.08):
    shares = {name: (generator.random(N) < rate).astype(float) for name in RARELY}
    shares["other_language"][::3] = np.nan
    return {"repeats": generator.random(N), **shares}


@pytest.mark.parametrize("case", [(0, 5, 3, 9), (3, 20, 40, 400), (5, 5, 5, 5), (40, 40, 200, 400)])
def test_chance_is_hypergeometric(case):
    k, n, marked, rows = case
    expected = stats.hypergeom(rows, marked, n).sf(k - 1)
    assert chance_of_so_many(*case) == pytest.approx(expected, rel=1e-9)


def test_a_mean_varies_as_often_as_is_said():
    generator, values = np.random.default_rng(0), np.random.default_rng(1).exponential(size=N)
    drawn = [deviations(values, generator.permutation(N) < 100) for _ in range(3000)]
    assert np.std(drawn) == pytest.approx(1, abs=0.05)
    assert deviations(values, np.ones(N, dtype=bool)) == 0


@pytest.mark.parametrize("name", [*RARELY, "repeats"])
def test_each_kind_of_answers_is_told_where_it_grew(name):
    found = traits(np.random.default_rng(0))
    selected_N = np.arange(N) % 10 == 0
    assert answers_of(found, selected_N).warnings() == []
    found[name] = found[name].copy()
    found[name][np.flatnonzero(selected_N)[1:25]] = 1
    (line,) = answers_of(found, selected_N).warnings()
    words = {"boilerplate": "refuse", "near_empty": "next to nothing",
             "other_language": "another language", "repeats": "repeat the question"}  # fmt: skip
    assert words[name] in line


def test_where_nothing_can_be_told_nothing_is_said():
    unknown = {name: np.full(N, np.nan) for name in ("repeats", *RARELY)}
    found = answers_of(unknown, np.arange(N) < 40)
    assert found.warnings() == []
    assert found.summary()["repeats"] is None


@pytest.mark.parametrize("n_drawn", [20, 100])
def test_random_subsets_rarely_warn_or_are_of_a_kind(n_drawn):
    """Each warning and each claim comes up about once in a hundred random subsets, or less."""
    pool, generator = make_pool(N, sources=("one",)), np.random.default_rng(3)
    found, context = traits(generator), context_for(pool)
    warned, claimed, draws = [], [], 300
    for _ in range(draws):
        rows_S = generator.choice(N, size=n_drawn, replace=False)
        selected_N = np.isin(np.arange(N), rows_S)
        answers = answers_of(found, selected_N)
        audit = audit_of(pool, rows_S, np.zeros(N), context.cluster_N, context.neighbours, 0.8)
        lines = audit_warnings(
            audit, self_checked=True, non_finite_share=0, cut_share=None, uses_score=False,
            detrend=(),
        )  # fmt: skip
        warned += [line.split(":")[0][:30] for line in [*lines, *answers.warnings()]]
        claimed.append("much like the pool" not in kind_of_rows(pool, rows_S, answers))
    assert max([warned.count(line) for line in set(warned)], default=0) <= 0.03 * draws
    assert np.mean(claimed) < 0.08


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda pool: np.argsort(pool.loss), ("easier than the pool (median loss", "none of the")),
        (lambda pool: np.argsort(-pool.loss), ("harder than the pool", "40 % from the hardest")),
        (lambda pool: np.argsort(pool.n_response_tokens), ("shorter in the answer (median",)),
    ],
)
def test_the_sentence_says_what_was_kept(order, words):
    pool = make_pool(N)
    rows_S = order(pool)[:100]
    sentence = kind_of_rows(pool, rows_S, None)
    assert all(one in sentence for one in words)
    assert kind_of_rows(pool, np.arange(N), None) == "every row that could be kept is kept"
    context = context_for(pool)
    audit = audit_of(pool, rows_S, np.zeros(N), context.cluster_N, context.neighbours, 0.8)
    lines = audit_warnings(
        replace(audit, sources=None), self_checked=True, non_finite_share=0, cut_share=None,
        uses_score=False, detrend=(),
    )  # fmt: skip
    assert ["too easy: on average a kept row has a lower loss than" in line for line in lines] == (
        [True] if "easier" in sentence else [False] if "harder" in sentence else []
    )


@pytest.mark.parametrize(
    ("changes", "traded"),
    [
        ({}, {"density": "the score low-norm does not go by it"}),
        ({"score": "density", "beta": 0.0}, {"content_diversity": "beta is 0"}),
        (
            {"strategy": "loss-low"},
            dict.fromkeys(("density", "content_diversity"), "loss-low does not go by it"),
        ),
        ({"strategy": "random"}, {}),
    ],
)
def test_the_table_says_what_was_traded_away_on_purpose(changes, traded):
    subset, others = Criteria(3.0, 0.6, 0.0), Criteria(2.0, 0.5, 0.1)
    criteria = {"subset": subset, "pool": others, "random": others}
    lines = criteria_lines(criteria, SelectionConfig(**changes))
    said = {line.split()[0]: line.partition(": ")[2] for line in lines if "on purpose" in line}
    assert said == traded


def test_no_warning_says_what_the_sentence_denies():
    """Of small subsets of easy rows, where the one and the other begin to tell."""
    pool = make_pool(11)
    context, said = context_for(pool), set()
    for rows in combinations(np.argsort(pool.loss)[:9].tolist(), 6):
        rows_S = np.array(rows)
        audit = audit_of(pool, rows_S, np.zeros(11), context.cluster_N, context.neighbours, 0.8)
        lines = audit_warnings(
            replace(audit, sources=None), self_checked=True, non_finite_share=0, cut_share=None,
            uses_score=False, detrend=(),
        )  # fmt: skip
        too_easy = any(line.startswith("too easy") for line in lines)
        easier = "easier than the pool" in kind_of_rows(pool, rows_S, None)
        said.add((too_easy, easier))
    assert (True, True) in said
    assert (True, False) not in said
