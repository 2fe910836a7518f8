import json

import pytest

from gradsift.data.detection import left_out, settle_format
from gradsift.data.example import Chat, Plain, RowError
from gradsift.data.formats import Columns, Reader

U = {"role": "user", "content": "hi"}
A = {"role": "assistant", "content": "yo"}
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]

GOOD = {
    "prompt_completion text": (
        {"prompt": "a", "completion": "b"},
        "prompt_completion",
        Plain("a", "b"),
    ),
    "prompt_completion messages": (
        {"prompt": [U], "completion": [A]},
        "prompt_completion",
        Chat((U, A), (False, True)),
    ),
    "assistant turns in the prompt are not trained on": (
        {"prompt": [U, A, U], "completion": [A]},
        "prompt_completion",
        Chat((U, A, U, A), (False, False, False, True)),
    ),
    "messages": ({"messages": [U, A, U, A]}, "messages", Chat((U, A, U, A), (False, True) * 2)),
    "weight 0": (
        {"messages": [U, {**A, "weight": 0}, U, {**A, "weight": 1}]},
        "messages",
        Chat((U, A, U, A), (False, False, False, True)),
    ),
    "tools": ({"messages": [U, A], "tools": TOOLS}, "messages", Chat((U, A), (False, True), TOOLS)),
    "tools as JSON text": (
        {"messages": [U, A], "tools": '[{"type": "function", "function": {"name": "f"}}]'},
        "messages",
        Chat((U, A), (False, True), TOOLS),
    ),
    "content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, A]},
        "messages",
        Chat((U, A), (False, True)),
    ),
    "nulls that Parquet fills in": (
        {"messages": [{**U, "tool_calls": None, "name": None}, A]},
        "messages",
        Chat((U, A), (False, True)),
    ),
    "tool calls without content": (
        {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        "messages",
        Chat((U, {"role": "assistant", "content": "", "tool_calls": [CALL]}), (False, True)),
    ),
    "messages as JSON text": (
        {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]'},
        "messages",
        Chat((U, A), (False, True)),
    ),
    "prompt_completion messages as JSON text": (
        {
            "prompt": '[{"role": "user", "content": "hi"}]',
            "completion": '[{"role": "assistant", "content": "yo"}]',
        },
        "prompt_completion",
        Chat((U, A), (False, True)),
    ),
    "text that begins like JSON": (
        {"prompt": "{x", "completion": "[y"},
        "prompt_completion",
        Plain("{x", "[y"),
    ),
    "what the template is given": (
        {"messages": [U, A], "chat_template_kwargs": '{"enable_thinking": false}'},
        "messages",
        Chat((U, A), (False, True), template_kwargs={"enable_thinking": False}),
    ),
    "Dolly": (
        {"instruction": "do", "context": "this", "response": "yo", "category": "qa"},
        "alpaca",
        Chat(({"role": "user", "content": "do\nthis"}, A), (False, True)),
    ),
    "Dolly without context": (
        {"instruction": "hi", "context": "", "response": "yo"},
        "alpaca",
        Chat((U, A), (False, True)),
    ),
    "OpenOrca": (
        {"id": "x", "system_prompt": "be", "question": "hi", "response": "yo"},
        "qa",
        Chat(({"role": "system", "content": "be"}, U, A), (False, False, True)),
    ),
    "capitals": (
        {"Question": "hi", "Complex_CoT": "hm", "Response": "yo"},
        "qa",
        Chat((U, A), (False, True)),
    ),
    "a context that is no text": (
        {"question": "hi", "context": ["a"], "answer": "yo"},
        "qa",
        Chat((U, A), (False, True)),
    ),
    "LIMA": (
        {"conversations": ["hi", "yo", "hi", "yo"], "source": "s"},
        "sharegpt",
        Chat((U, A, U, A), (False, True) * 2),
    ),
    "UltraChat": ({"id": "0", "data": ["hi", "yo"]}, "sharegpt", Chat((U, A), (False, True))),
    "UltraChat 200k": (
        {"prompt": "hi", "messages": [U, A]},
        "messages",
        Chat((U, A), (False, True)),
    ),
    "preference messages": (
        {"chosen": [U, A, U, A], "rejected": [U, A, U, {**A, "content": "no"}]},
        "preference",
        Chat((U, A, U, A), (False, False, False, True)),
    ),
    "preference with a prompt apart": (
        {"prompt": "hi", "chosen": "yo", "rejected": "no"},
        "preference",
        Chat((U, A), (False, True)),
    ),
    "preference with messages apart": (
        {"prompt": [U], "chosen": [A], "rejected": [A]},
        "preference",
        Chat((U, A), (False, True)),
    ),
    "preference with the prompt inside": (
        {"prompt": "hi", "chosen": [U, A], "rejected": [U, A]},
        "preference",
        Chat((U, A), (False, True)),
    ),
    "preference of Intel's": (
        {"system": "be", "question": "hi", "chosen": "yo", "rejected": "no"},
        "preference",
        Chat(({"role": "system", "content": "be"}, U, A), (False, False, True)),
    ),
    "preference of Alpaca's": (
        {"instruction": "do", "input": "this", "chosen": "yo", "rejected": "no"},
        "preference",
        Chat(({"role": "user", "content": "do\nthis"}, A), (False, True)),
    ),
    "preference of LLaMA-Factory's": (
        {
            "conversations": [*SHAREGPT, SHAREGPT[0]],
            "chosen": SHAREGPT[1],
            "rejected": {"from": "gpt", "value": "no"},
        },
        "preference",
        Chat((U, A, U, A), (False, False, False, True)),
    ),
    "HH-RLHF, stripped": (
        {"chosen": "Human: hi\n\nAssistant: yo", "rejected": "Human: hi\n\nAssistant: no"},
        "preference",
        Chat((U, A), (False, True)),
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        "preference",
        Chat((U, A), (False, True)),
    ),
    "alpaca with a response": (
        {"instruction": "do", "input": "this", "response": "yo"},
        "alpaca",
        Chat(({"role": "user", "content": "do\nthis"}, A), (False, True)),
    ),
    "query with history": (
        {"query": "hi", "response": "yo", "history": [["hi", "yo"]]},
        "qa",
        Chat((U, A, U, A), (False, True) * 2),
    ),
    "qa with a system prompt": (
        {"system": "be", "prompt": "hi", "response": "yo"},
        "qa",
        Chat(({"role": "system", "content": "be"}, U, A), (False, False, True)),
    ),
    "messages with a system prompt beside": (
        {"system": "be", "messages": [U, A]},
        "messages",
        Chat(({"role": "system", "content": "be"}, U, A), (False, False, True)),
    ),
    "OpenAI's functions of old": (
        {"messages": [U, A], "functions": [TOOLS[0]["function"]]},
        "messages",
        Chat((U, A), (False, True), TOOLS),
    ),
    "a wanted answer": (
        {"prompt": "a", "completion": "b", "label": True},
        "prompt_completion",
        Plain("a", "b"),
    ),
    "ShareGPT weight": (
        {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "weight": 0}, *SHAREGPT]},
        "sharegpt",
        Chat((U, A, U, A), (False, False, False, True)),
    ),
    "text": ({"text": "abc"}, "text", Plain("", "abc")),
    "alpaca": (
        {"instruction": "hi", "input": "", "output": "yo"},
        "alpaca",
        Chat((U, A), (False, True)),
    ),
    "alpaca with everything": (
        {
            "instruction": "do",
            "input": "this",
            "output": "yo",
            "system": "be",
            "history": [["hi", "yo"]],
        },
        "alpaca",
        Chat(
            (
                {"role": "system", "content": "be"},
                U,
                A,
                {"role": "user", "content": "do\nthis"},
                A,
            ),
            (False, False, True, False, True),
        ),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        "sharegpt",
        Chat((U, A), (False, True)),
    ),
    "sharegpt with system and tool": (
        {
            "system": "be",
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "yo"},
            ],
        },
        "sharegpt",
        Chat(
            (
                {"role": "system", "content": "be"},
                U,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {}}}
                    ],
                },
                {"role": "tool", "content": "42"},
                A,
            ),
            (False, False, True, False, True),
        ),
    ),
    "conversations in OpenAI's words": (
        {"conversations": [U, A]},
        "sharegpt",
        Chat((U, A), (False, True)),
    ),
    "a system turn goes before the system field": (
        {"conversations": [{"from": "system", "value": "a"}, *SHAREGPT], "system": "b"},
        "sharegpt",
        Chat(({"role": "system", "content": "a"}, U, A), (False, False, True)),
    ),
    "ShareGPT turns under messages": (
        {"messages": SHAREGPT},
        "sharegpt",
        Chat((U, A), (False, True)),
    ),
    "question and answer": ({"question": "hi", "answer": "yo"}, "qa", Chat((U, A), (False, True))),
    "prompt and response": ({"prompt": "hi", "response": "yo"}, "qa", Chat((U, A), (False, True))),
}


@pytest.mark.parametrize("name", GOOD)
def test_each_format_is_detected_and_read(name):
    record, row_format, expected = GOOD[name]
    found, columns = settle_format([record], None, Columns())
    assert found == row_format
    assert Reader(found, columns, "all").parse(record) == expected


def test_only_the_last_turn():
    example = Reader("messages", Columns(), "last").parse({"messages": [U, A, U, A]})
    assert example.train == (False, False, False, True)


def test_columns_named_by_the_user_win():
    record = {"messages": [U, A], "q": "hi", "a": "yo", "s": "be"}
    found, columns = settle_format([record], None, Columns("q", None, "a", "s"))
    example = Reader(found, columns, "all").parse(record)
    assert example.messages == ({"role": "system", "content": "be"}, U, A)


BAD = {
    "missing field": ({"prompt": "a"}, "prompt_completion", "missing_field", "completion"),
    "null": ({"instruction": "a", "output": None}, "alpaca", "missing_field", "output"),
    "text and messages": (
        {"prompt": "a", "completion": [A]},
        "prompt_completion",
        "wrong_type",
        "both",
    ),
    "number": ({"text": 3}, "text", "wrong_type", "int"),
    "turn is text": ({"messages": ["hi"]}, "messages", "wrong_type", "turn 0"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, A]},
        "messages",
        "wrong_type",
        "image",
    ),
    "role": ({"messages": [{"role": "bot", "content": "x"}]}, "messages", "unknown_role", "bot"),
    "sharegpt role": (
        {"conversations": [{"from": "alien", "value": "x"}]},
        "sharegpt",
        "unknown_role",
        "alien",
    ),
    "no assistant": ({"messages": [U]}, "messages", "no_assistant_turn", ""),
    "weight 0 on all": ({"messages": [U, {**A, "weight": 0}]}, "messages", "no_assistant_turn", ""),
    "empty": ({"prompt": "a", "completion": " \n"}, "prompt_completion", "empty_response", ""),
    "empty turns": ({"messages": [U, {**A, "content": ""}]}, "messages", "empty_response", ""),
    "history": (
        {"instruction": "a", "output": "b", "history": [["x"]]},
        "alpaca",
        "wrong_type",
        "history",
    ),
    "history is a number": (
        {"instruction": "a", "output": "b", "history": 5},
        "alpaca",
        "wrong_type",
        "history",
    ),
    "tools": ({"messages": [U, A], "tools": "{nope"}, "messages", "wrong_type", "JSON"),
    "tools nested too deeply": (
        {"messages": [U, A], "tools": "[" * 100_000},
        "messages",
        "wrong_type",
        "JSON",
    ),
    "role is a list": ({"messages": [{**U, "role": ["user"]}]}, "messages", "wrong_type", "role"),
    "from is a list": (
        {"conversations": [{"from": ["human"], "value": "x"}]},
        "sharegpt",
        "wrong_type",
        "from",
    ),
    "a call that is a number": (
        {"conversations": [{"from": "function_call", "value": "3"}]},
        "sharegpt",
        "wrong_type",
        "function_call",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_has_a_reason(name):
    record, row_format, reason, detail = BAD[name]
    _, columns = settle_format([record], row_format, Columns())
    with pytest.raises(RowError) as error:
        Reader(row_format, columns, "all").parse(record)
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_the_majority_decides():
    records = [{"messages": []}, {"text": "a"}, {"text": "b"}]
    assert settle_format(records, None, Columns())[0] == "text"


def test_an_unknown_format_names_the_fields():
    with pytest.raises(ValueError, match=r"\['body', 'title'\].*`prompt_column`"):
        settle_format([{"title": "x", "body": "y"}], None, Columns())


def test_rows_of_either_kind_of_turn_in_one_file():
    records = [{"conversations": SHAREGPT}, {"conversations": [U, A]}]
    found, columns = settle_format(records, None, Columns())
    for record in records:
        assert Reader(found, columns, "all").parse(record).messages == (U, A)


def test_a_system_column_named_by_the_user_reaches_messages():
    record = {"messages": [U, A], "s": "be"}
    found, columns = settle_format([record], None, Columns(system="s"))
    example = Reader(found, columns, "all").parse(record)
    assert example.messages[0] == {"role": "system", "content": "be"}
    assert example.train == (False, False, True)


@pytest.mark.parametrize(
    ("record", "row_format", "columns", "message"),
    [
        (
            {"messages": [U], "conversations": SHAREGPT},
            None,
            Columns(),
            "messages and conversations; choose",
        ),
        ({"text": "x", "s": "y"}, None, Columns(system="s"), "take no `system_column`"),
        ({"text": "x"}, "text", Columns(prompt="text", response="text"), "leave out"),
        ({"q": "x", "a": "y"}, None, Columns(prompt="q", response="aa"), "no row has a field 'aa'"),
    ],
)
def test_columns_that_would_be_ignored_are_refused(record, row_format, columns, message):
    with pytest.raises(ValueError, match=message):
        settle_format([record], row_format, columns)


@pytest.mark.parametrize("label", [False, "False", " false"])
@pytest.mark.parametrize(
    "row",
    [{"prompt": "a", "completion": "b"}, {"messages": [U, A]}, {"question": "a", "answer": "b"}],
)
def test_answers_not_to_give_are_dropped(row, label):
    row = {**row, "label": label}
    found, columns = settle_format([row], None, Columns())
    with pytest.raises(RowError) as error:
        Reader(found, columns, "all").parse(row)
    assert error.value.reason == "unwanted_answer"


@pytest.mark.parametrize(
    ("beside", "remark"),
    [
        ({"label": 0}, "label is 0"),
        ({"weight": 0}, "weight beside the turns"),
        ({"label": 1}, None),
    ],
)
def test_what_stands_beside_the_turns_and_is_not_followed_is_told(beside, remark):
    remarks = Reader("messages", Columns(), "all").parse({"messages": [U, A], **beside}).remarks
    assert remark in remarks[0] if remark else not remarks


def test_a_preference_without_a_prompt_is_dropped():
    with pytest.raises(RowError, match="no prompt beside chosen"):
        Reader("preference", Columns(), "all").parse({"chosen": "yo", "rejected": "no"})


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"messages": [U, A], "category": "x", "tools_used": ["a"]}, ["tools_used"]),
        ({"question": "a", "answer": "b", "hint": "c", "n": 3}, ["hint"]),
        ({"question": "a", "answer": "b", "history": []}, []),
        ({"conversations": SHAREGPT, "instruction": "do", "id": "x"}, ["instruction"]),
        ({"prompt": "a", "completion": "b", "system": "be"}, ["system"]),
    ],
)
def test_fields_that_are_not_read_are_named(row, unread):
    found, columns = settle_format([row], None, Columns())
    assert left_out([row], found, columns, ("id", "source")) == unread


@pytest.mark.parametrize("filled", [False, True])
def test_nulls_of_messages_that_are_json_text_stay(filled):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    kwargs = {"mode": None}
    row = {"messages": json.dumps([U, turn]), "chat_template_kwargs": json.dumps(kwargs)}
    example = Reader("messages", Columns(), "all", filled).parse(row)
    assert example.messages[1] == turn
    assert example.template_kwargs == kwargs
    example = Reader("messages", Columns(), "all", filled).parse({"messages": [U, turn]})
    assert (example.messages[1] == turn) is not filled
