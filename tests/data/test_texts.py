"""What people read of a row: what stands before the trained answer, and that answer."""

import json

import pytest

import gradsift as gs
from gradsift.data.example import Chat, Plain
from gradsift.data.texts import asked_first, lines_of_texts, texts_of


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


USER, ANSWER = turn("user", "Why?"), turn("assistant", "So.")
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "ö"}}}


@pytest.mark.parametrize(
    ("example", "prompt", "response"),
    [
        (Plain("Why? ", "So."), "Why? ", "So."),
        (Chat((USER, ANSWER), (False, True)), "Why?", "So."),
        (
            Chat((turn("system", "Be kind."), USER, ANSWER, USER), (False, False, True, False)),
            "system: Be kind.\n\nuser: Why?",
            "So.",
        ),
        # The last turn that is trained on is the answer, what stands before is the conversation.
        (
            Chat((USER, ANSWER, USER, turn("assistant", "No.")), (False, True, False, True)),
            "user: Why?\n\nassistant: So.\n\nuser: Why?",
            "No.",
        ),
        (
            Chat(
                (USER, turn("assistant", "", thinking="Hm.", tool_calls=[CALL])),
                (False, True),
            ),
            "Why?",
            '<think>\nHm.\n</think>\n\n{"name": "look", "arguments": {"at": "ö"}}',
        ),
        (Chat((ANSWER,), (True,)), "", "So."),
    ],
)
def test_texts_of(example, prompt, response):
    assert texts_of(example) == (prompt, response)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((USER,), "Why?"),
        ((turn("system", "Be kind."), USER), "Why? (after system: Be kind.)"),
        ((USER, ANSWER, turn("user", "And?")), "And? (after user: Why?\n\nassistant: So.)"),
        ((turn("system", "Be kind."),), "system: Be kind."),
        ((turn("user", "a: b\n\nuser: c"),), "a: b\n\nuser: c"),
    ],
)
def test_what_was_asked_comes_first(turns, expected):
    prompt, _ = texts_of(Chat((*turns, ANSWER), (*(False for _ in turns), True)))
    assert asked_first(prompt) == expected


def test_own_ids_are_told_where_ids_are_others(tmp_path):
    rows = [("a", "1"), ("a", "2"), ("b", "3"), (7, "4"), ("c", "5"), ("c", "5")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": "?", "response": r}) + "\n"
                            for i, r in rows))  # fmt: skip
    lines = lines_of_texts(gs.load_pool(path).rows, [None] * len(rows))
    assert [line["instance_id"] for line in lines] == ["a", "a#2", "b", "7", "c", "c#row5"]
    assert [line["own_id"] for line in lines] == [None, "a", None, None, None, "c"]
    assert [line.get("response") for line in lines] == ["1", "2", "3", "4", "5", None]
