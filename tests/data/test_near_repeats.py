"""Near repeats: a few words changed, added, left out; never a frame that all rows share."""

import random

import pytest

import gradsift as gs
from gradsift.data.near_repeats import near_repeats

WORDS = [f"w{i}" for i in range(3000)]
FRAME = "Below is an instruction that describes a task, answer it as well as you can: "


def texts(n, seed, frame=""):
    generator = random.Random(seed)
    return [(frame + " ".join(generator.choices(WORDS, k=12)),
             " ".join(generator.choices(WORDS, k=30))) for _ in range(n)]  # fmt: skip


def rows(pairs):
    return gs.load_pool([{"prompt": p, "response": r} for p, r in pairs]).rows


def with_words_changed(text):
    words = text.split()
    words[7::11] = ["other"] * len(words[7::11])
    return " ".join(words)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p, r: (p, with_words_changed(r)), True),
        (lambda p, r: (p, "So it is: " + r), True),
        (lambda p, r: ("Tell me.", r[5:]), True),
        (lambda p, r: (p, r), False),  # Word for word, which is counted for itself.
        (lambda p, r: (p, "Something else."), True),  # The same question.
        (lambda p, r: ("Tell me.", r[: len(r) // 4] + " but that is something else" * 9), False),
    ],
)
def test_what_is_a_near_repeat(change, found):
    pool = texts(60, 0)
    test = [*texts(60, 1), change(*pool[17])]
    assert near_repeats(rows(test), rows(pool)) == ({60: 17} if found else {})


def test_a_frame_that_all_rows_share_is_none():
    assert near_repeats(rows(texts(60, 0, FRAME)), rows(texts(60, 1, FRAME))) == {}
