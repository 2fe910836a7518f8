"""Turns, calls and tools in every shape that people have."""

import json

import pytest

from gradsift.data.conversations import FLAGS, normal_calls, normal_tools, normal_turns
from gradsift.data.example import RowError

USER = {"role": "user", "content": "hi"}
ARGUMENTS = {"city": "Oslo", "unit": None, "days": [1, {"of": None}]}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
AS_TEXT = json.dumps(ARGUMENTS)

SHAPES = {
    "as OpenAI writes it": [{**CALL, "function": {"name": "weather", "arguments": AS_TEXT}}],
    "as an object": [CALL],
    "encoded twice": [{"function": {"name": "weather", "arguments": json.dumps(AS_TEXT)}}],
    "flat": [{"name": "weather", "arguments": ARGUMENTS}],
    "flat, parameters": [{"name": "weather", "parameters": AS_TEXT}],
    "name beside": [{"function": "weather", "arguments": ARGUMENTS}],
    "function as text": [{"type": "function", "function": json.dumps(CALL["function"])}],
    "a list of JSON texts": [json.dumps(CALL)],
    "the whole as JSON text": json.dumps([CALL]),
    "one object": CALL,
    "null beside it": [None, CALL],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_of_any_shape_are_one_call(shape):
    assert normal_calls(SHAPES[shape], "x") == [CALL]


@pytest.mark.parametrize("nothing", [None, [], "", "[]", [None]])
def test_no_calls_are_no_field(nothing):
    turn = {"role": "assistant", "content": "yo", "tool_calls": nothing}
    assert normal_turns([turn], filled=False).messages == ({"role": "assistant", "content": "yo"},)


def test_ids_stay_and_the_legacy_call_becomes_one():
    (call,) = normal_calls([{"id": "c1", **CALL}], "x")
    assert call == {"id": "c1", **CALL}
    legacy = [
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "weather", "content": "4 C"},
    ]
    turns = normal_turns(legacy, filled=False)
    assert turns.messages[0] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert turns.messages[1] == {"role": "tool", "name": "weather", "content": "4 C"}


@pytest.mark.parametrize(
    ("calls", "detail"),
    [
        ("[{", "is text but not JSON"),
        ([5], "holds no object with name"),
        ([{"function": {"arguments": {}}}], "holds no object with name"),
        ([{"name": "f", "arguments": "Oslo"}], "the arguments of f: 'Oslo' is text but not JSON"),
        ([{"name": "f", "arguments": [1]}], "the arguments of f are a list, expected an object"),
        (json.loads("[" * 500 + "]" * 500), "nested more than"),
        ([{"name": "f", "arguments": "[" * 5000}], "is text but not JSON"),
    ],
)
def test_what_is_no_call_has_a_reason(calls, detail):
    with pytest.raises(RowError) as error:
        normal_calls(calls, "turn 1")
    assert detail in error.value.detail
    assert len(error.value.detail) < 200


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        TOOL,
        [TOOL["function"]],
        [{"function": TOOL["function"]}],
        [{"name": "weather", "parameters": json.dumps(SCHEMA)}],
        [{"name": "weather", "input_schema": SCHEMA}],
        [{"type": "function", "name": "weather", "parameters": SCHEMA}],
    ],
)
def test_tools_of_any_shape_are_one_schema(tools):
    assert normal_tools(tools, "tools", filled=False) == [TOOL]


def test_nulls_that_a_table_fills_in_go_and_those_of_the_row_stay():
    turn = {"role": "assistant", "content": None, "name": None, "tool_calls": [
        {"id": None, "function": {"name": "weather", "arguments": {"city": None, "expr": None}}},
    ]}  # fmt: skip

    def arguments(**how):
        (message,) = normal_turns([turn], **how).messages
        (call,) = message["tool_calls"]
        assert set(call) == {"type", "function"}
        return call["function"]["arguments"]

    assert arguments(filled=False) == {"city": None, "expr": None}
    assert arguments(filled=True) == {}
    # The tool must have it, so it is the row's.
    assert arguments(filled=True, tools=[TOOL]) == {"city": None}
    nested = normal_calls([CALL], "x", required={})
    assert nested[0]["function"]["arguments"] == {"city": "Oslo", "days": [1, {}]}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(
    ("value", "trains"),
    [(0, False), (0.0, False), (False, False), ("0", False), ("False", False), (1, True),
     (True, True), ("true", True), (None, True)],
)  # fmt: skip
def test_flags_say_which_turns_are_trained_on(name, value, trains):
    turns = normal_turns([USER, {"role": "assistant", "content": "yo", name: value}], filled=False)
    assert turns.train == (False, trains)
    assert turns.messages[1] == {"role": "assistant", "content": "yo"}
    assert not turns.remarks


@pytest.mark.parametrize(
    ("flags", "detail"),
    [
        ({"weight": 0.5}, "weight is 0.5"),
        ({"loss": "maybe"}, "loss is 'maybe'"),
        ({"train": [1, 2]}, "only whole turns"),
        ({"weight": 1, "loss": False}, "weight and loss contradict each other"),
    ],
)
def test_flags_that_cannot_be_followed_drop_the_row(flags, detail):
    with pytest.raises(RowError, match=detail):
        normal_turns([{"role": "assistant", "content": "yo", **flags}], filled=False)


@pytest.mark.parametrize(
    ("turn", "remark"),
    [
        ({**USER, "train": True}, "other roles than assistant ask to be trained on"),
        ({**USER, "train": False}, None),
        ({"role": "assistant", "content": "yo", "training_detail": [1]}, "'training_detail'"),
        ({"role": "assistant", "content": "yo", "is_masked": True}, "'is_masked'"),
        ({"role": "assistant", "content": "yo", "is_masked": None}, None),
    ],
)
def test_flags_that_are_not_followed_are_told(turn, remark):
    remarks = normal_turns([turn], filled=False).remarks
    assert remark in remarks[0] if remark else not remarks


def test_thinking_alone_is_something_to_say():
    turn = {"role": "assistant", "content": None, "reasoning": "hm"}
    assert normal_turns([turn], filled=False).messages == (
        {"role": "assistant", "content": "", "reasoning": "hm"},
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], {"content": "ab"}),
        ([{"type": "output_text", "text": "a"}], {"content": "a"}),
        (
            [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
            {"content": "a", "reasoning_content": "hm"},
        ),
        ([{"type": "thinking", "thinking": "hm"}], {"content": "", "reasoning_content": "hm"}),
        ([], {"content": ""}),
    ],
)
def test_parts_are_text_and_thinking(parts, said):
    (message,) = normal_turns([{"role": "assistant", "content": parts}], filled=False).messages
    assert message == {"role": "assistant", **said}


def test_parts_of_other_kinds_have_a_reason():
    parts = [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "a"}]
    with pytest.raises(RowError, match="only text is supported"):
        normal_turns([{"role": "user", "content": parts}], filled=False)


def test_nulls_out_of_json_text_are_the_rows_own_in_a_table_too():
    arguments = {"x": None, "y": {"z": None}}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    as_text = {"function": {"name": "f", "arguments": json.dumps(arguments)}}
    for calls in ([as_text], json.dumps([call]), [json.dumps(call)]):
        assert normal_calls(calls, "x", required={}) == [call]
    tool = {"name": "f", "parameters": {"default": None}}
    for tools in (json.dumps([tool]), [json.dumps(tool)]):
        assert normal_tools(tools, "tools", filled=True)[0]["function"] == tool


@pytest.mark.parametrize(
    "nothing",
    [[{"id": None, "function": {"name": None, "arguments": None}}], {"name": None}, [{}], {}],
)
def test_structs_of_nulls_are_no_calls(nothing):
    for field in ("tool_calls", "function_call"):
        turn = {"role": "assistant", "content": "yo", field: nothing}
        assert normal_turns([turn], filled=True).messages == (
            {"role": "assistant", "content": "yo"},
        )


def test_the_same_call_in_both_fields_is_one_call():
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL],
            "function_call": CALL["function"]}  # fmt: skip
    (message,) = normal_turns([turn], filled=False).messages
    assert message["tool_calls"] == [CALL]


def test_python_notation_is_called_by_its_name():
    with pytest.raises(RowError, match=r"write it with json\.dumps"):
        normal_calls("[{'name': 'f', 'arguments': {}}]", "x")


def test_steps_of_thinking_are_one_text():
    turn = {"role": "assistant", "content": "yo", "reasoning": ["a", "b"]}
    assert normal_turns([turn], filled=False).messages[0]["reasoning"] == "a\nb"
