"""Responses after the prompts of other rows: whose, and how they are put together."""

from dataclasses import replace

import pytest

from gradsift.data.tokenization import Instance
from gradsift.evaluation import mismatches
from gradsift.terms import IGNORED_LABEL
from tiny import random_instances


def mismatched_instances(rows, max_length, seed=0, **more):
    return mismatches.mismatched_instances(rows, max_length, seed=seed, **more)


TEMPLATE, ASKS = [1, 2, 3], [4, 5]


def row(name, *turns):
    """Turns of prompt and answer, each prompt between a template's marks."""
    ids, labels = [], []
    for prompt, answer in turns:
        before = [*TEMPLATE, *prompt, *ASKS]
        ids += [*before, *answer]
        labels += [*[IGNORED_LABEL] * len(before), *answer]
    return Instance(name, ids, labels)


def questions(n, first=100):
    """Rows with questions of four tokens that no two share, and answers of two."""
    return [
        row(f"row-{i}", (range(first + 4 * i, first + 4 * i + 4), (50 + i, 90 + i)))
        for i in range(n)
    ]


def prompt_of(item):
    return [i for i, label in zip(item.input_ids, item.labels, strict=True) if label < 0]


def answer_of(item):
    return [label for label in item.labels if label >= 0]


def test_every_response_gets_the_prompt_of_another_row_and_each_prompt_is_given_once():
    rows = questions(30)
    found = mismatched_instances(rows, 100)
    for item, other in zip(rows, found, strict=True):
        assert (answer_of(other), other.instance_id) == (answer_of(item), item.instance_id)
        assert prompt_of(other) != prompt_of(item)
    given = sorted(map(prompt_of, found))
    assert given == sorted(map(prompt_of, rows))


def test_pairs_depend_on_what_rows_say_and_on_the_seed_alone():
    rows = questions(30)
    found = mismatched_instances(rows, 100)
    renamed = [replace(item, instance_id=f"{99 - i}") for i, item in enumerate(rows)]
    again = mismatched_instances(renamed[::-1], 100)[::-1]
    assert [item.input_ids for item in again] == [item.input_ids for item in found]
    other = mismatched_instances(rows, 100, seed=1)
    assert [item.input_ids for item in other] != [item.input_ids for item in found]


@pytest.mark.parametrize("seed", range(5))
def test_copies_and_near_copies_of_a_prompt_are_no_mismatch(seed):
    # Three in four ask the same, one token of four said otherwise in half of these.
    asked = [row(f"same-{i}", ((100, 101, 102, 103 + i % 2), (50 + i, 60))) for i in range(20)]
    others = questions(20, first=200)
    found = mismatched_instances(asked + others, 100, seed=seed)
    for item in found[:20]:
        assert item is not None
        assert not {100, 101, 102} & set(item.input_ids)


def test_one_prompt_for_all_rows_leaves_no_mismatch():
    rows = [row(f"same-{i}", ((100, 101), (50 + i, 60))) for i in range(20)]
    assert mismatched_instances(rows, 100) == [None] * 20
    # Two rows ask something else: what the prompt of all others is worth they cannot say.
    found = mismatched_instances([*rows, *questions(2)], 100)
    assert found[:20] == [None] * 20
    assert None not in found[20:]


@pytest.mark.parametrize("n_prompts", [2, 3, 6])
def test_the_second_prompt_is_like_neither_its_own_nor_the_first(n_prompts):
    """Else a response would be compared with itself, and nothing be learnt."""
    rows = [
        row(f"row-{i}", (range(100 + 4 * (i % n_prompts), 104 + 4 * (i % n_prompts)), (50 + i, 60)))
        for i in range(30)
    ]
    first = mismatched_instances(rows, 100)
    second = mismatched_instances(rows, 100, seed=1, unlike=first)
    assert None not in first
    if n_prompts == 2:
        assert second == [None] * 30
        return
    assert sum(item is not None for item in second) >= 20
    for own, one, other in zip(rows, first, second, strict=True):
        if other is not None:
            assert prompt_of(other) not in (prompt_of(own), prompt_of(one))
    none = mismatched_instances(rows, 100, seed=1, unlike=[None, *first[1:]])
    assert none[0] is None


def test_rows_without_a_prompt_have_no_mismatch_and_lend_none():
    texts = [Instance(f"text-{i}", [50 + i, 60], [50 + i, 60]) for i in range(3)]
    rows = questions(6)
    found = mismatched_instances([*texts, *rows], 100)
    assert found[:3] == [None] * 3
    assert sorted(map(prompt_of, found[3:])) == sorted(map(prompt_of, rows))
    assert mismatched_instances(texts, 100) == [None] * 3
    assert mismatched_instances([], 100) == []
    assert mismatched_instances(rows[:1], 100) == [None]


def test_of_several_turns_each_prompt_is_replaced_and_the_answers_stay():
    two = row("two", ((100, 101), (50,)), ((102, 103), (51, 52)))
    (one,) = questions(1, first=200)
    found, other = mismatched_instances([two, one], 100)
    its = prompt_of(one)
    assert found.input_ids == [*its, 50, *its, 51, 52]
    assert answer_of(found) == [50, 51, 52]
    # The first of the two prompts.
    assert other.input_ids == [*TEMPLATE, 100, 101, *ASKS, *answer_of(one)]
    third = row("third", ((300, 301), (53,)), ((302, 303), (54,)))
    found, _ = mismatched_instances([two, third], 100)
    assert prompt_of(found) == prompt_of(third)


@pytest.mark.parametrize("max_length", [12, 13, 14, 20])
def test_a_response_stays_whole_and_a_long_prompt_loses_its_middle(max_length):
    short = row("short", ((100,), range(50, 55)))
    long = row("long", (range(200, 230), (60,)))
    found, _ = mismatched_instances([short, long], max_length)
    assert len(found.input_ids) == max_length
    assert answer_of(found) == list(range(50, 55))
    prompt = prompt_of(found)
    assert (prompt[:3], prompt[-2:]) == (TEMPLATE, ASKS)


def test_many_prompts_fit_where_there_is_hardly_any_room():
    turns = row("turns", *(((), (50 + i,)) for i in range(3)))
    tight = Instance("tight", [9, 50, 9, 51, 8, 52], [-100, 50, -100, 51, -100, 52])
    found, _ = mismatched_instances([tight, replace(turns, instance_id="b")], 6)
    assert len(found.input_ids) == 6
    assert answer_of(found) == [50, 51, 52]


def test_of_many_rows_some_are_paired():
    found = mismatched_instances(questions(30), 100, most=8)
    assert sum(item is not None for item in found) == 8


def test_random_rows_of_the_tests_are_paired():
    assert None not in mismatched_instances(random_instances(9, seed=3, n_prompt=5), 100)
