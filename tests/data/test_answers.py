"""What is told of an answer from its words alone."""

import pytest

from gradsift.data.answers import PHRASES, boilerplate, is_near_empty, repeated_share, traits_of
from gradsift.data.example import Chat, Plain


@pytest.mark.parametrize(
    ("prompt", "answer", "share"),
    [
        ("What is the capital of France?", "The capital of France is Paris.", 5 / 6),
        ("What?", "Nothing of it.", 0),
        ("", "Nothing of it.", None),
        ("What?", "…!", None),
        # Pairs of characters, where no spaces say what a word is.
        ("法国的首都", "首都巴黎", 1 / 3),
    ],
)
def test_the_share_of_an_answers_words_that_stand_in_its_prompt(prompt, answer, share):
    assert repeated_share(prompt, answer) == (share and pytest.approx(share))


@pytest.mark.parametrize("phrase", [one for phrases in PHRASES.values() for one in phrases])
def test_each_phrase_is_found_where_an_answer_begins(phrase):
    found = boilerplate(f"{phrase.capitalize()} …".replace("'", "’"))
    assert found is not None
    assert found in phrase
    # Further inside it is part of what is told.
    assert boilerplate("x " * 200 + phrase) is None


@pytest.mark.parametrize("answer", ["Has an air of mystery.", "Canned fish.", "Bias ia", ""])
def test_words_that_only_look_like_a_phrase_are_none(answer):
    assert boilerplate(answer) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes.", True), (" … \n!", True), ("", True), ("Because of the rain.", False),
     ("因为今天下雨", False), ("对", True), ("x" * 10_000, False)],
)  # fmt: skip
def test_next_to_nothing(answer, expected):
    assert is_near_empty(answer) is expected


GERMAN = "Warum fällt der Regen von oben nach unten und nicht von unten nach oben auf die Erde?"
ENGLISH = (
    "Because the earth pulls everything down to it, and so the drops of water, which are heavy."
)


@pytest.mark.parametrize(
    ("example", "language", "other"),
    [
        (Plain(GERMAN, ENGLISH), "en", True),
        (Plain(ENGLISH, ENGLISH), "en", False),
        (Plain("Warum?", ENGLISH), "en", None),
        (Plain("为什么雨从上面往下落到地上而不是往上", ENGLISH), "en", True),
        (Plain(GERMAN, ENGLISH), None, None),
    ],
)
def test_another_language_than_the_prompt(example, language, other):
    assert traits_of(example, language)["other_language"] is other


def test_a_call_of_a_tool_says_something():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    )
    assert traits_of(Chat(turns, (False, True)), None)["near_empty"] is False


def test_next_to_nothing_is_said_only_where_no_turn_that_is_trained_on_says_more():
    said = [("user", "Why?"), ("assistant", "Because of the rain, all day long."),
            ("user", "Thanks."), ("assistant", "Welcome.")]  # fmt: skip
    turns = tuple({"role": role, "content": content} for role, content in said)
    assert traits_of(Chat(turns, (False, True, False, True)), None)["near_empty"] is False
    assert traits_of(Chat(turns, (False, False, False, True)), None)["near_empty"] is True
