import pytest

from gradsift.data.detection import settle_format
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
        "qa",
        Chat(({"role": "user", "content": "do\nthis"}, A), (False, True)),
    ),
    "Dolly without context": (
        {"instruction": "hi", "context": "", "response": "yo"},
        "qa",
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
    "HH-RLHF": (
        {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        "preference",
        Chat((U, A), (False, True)),
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
