import json

import pytest

from gradsift.data.dataset_configs import read_dataset_info
from gradsift.data.pool import load_pool

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
OPENAI = {
    "file_name": "d.json",
    "formatting": "openai",
    "columns": {"messages": "messages", "system": "s", "tools": None},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "call",
        "system_tag": "system",
    },
}


def test_openai_formatting(tmp_path):
    call = {"role": "call", "content": '{"name": "f", "arguments": {}}'}
    rows = [{"messages": [CHAT[0], call, {"role": "tool", "content": "1"}, CHAT[1]], "s": "be"}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": OPENAI}))
    pool = load_pool("x", dataset_info=str(tmp_path / "dataset_info.json"))
    assert pool.row_format == "messages"
    example = pool.rows[0].example
    assert [m["role"] for m in example.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert example.messages[2]["tool_calls"][0]["function"]["name"] == "f"
    assert example.train == (False, False, True, False, True)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # Without columns, LLaMA-Factory reads instruction, input and output, and no system prompt.
        (None, "do\nthis"),
        ({"prompt": "instruction", "response": "output"}, "do"),
        ({"prompt": "instruction", "response": "output", "query": "input"}, "do\nthis"),
        ({"prompt": "instruction", "response": "output", "system": "system"}, "be"),
    ],
)
def test_only_the_columns_that_an_entry_names_are_read(tmp_path, columns, expected):
    row = {"instruction": "do", "input": "this", "output": "yo", "system": "be"}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    entry = {"file_name": "d.json"} | ({} if columns is None else {"columns": columns})
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": entry}))
    pool = load_pool("x", dataset_info=str(tmp_path / "dataset_info.json"))
    assert pool.rows[0].example.messages[0]["content"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 3}, "num_samples"),
        ({"subset": "a"}, "subset"),
        ({"columns": {"images": "i"}}, "images"),
        ({"tags": {"odd_tag": "x"}}, "odd_tag"),
        ({"formatting": "odd"}, "formatting 'odd'"),
        ({"split": "train[:9]"}, r"split 'train\[:9\]'"),
    ],
)
def test_entries_that_ask_for_something_else_are_refused(tmp_path, change, message):
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"x": {"file_name": "d.json", **change}}))
    with pytest.raises(ValueError, match=message):
        read_dataset_info(str(path), "x")


def test_a_hub_id_goes_before_a_file_name(tmp_path):
    path = tmp_path / "dataset_info.json"
    entry = {"file_name": "d.json", "hf_hub_url": "someone/data", "split": "test"}
    path.write_text(json.dumps({"x": entry}))
    data, row_format, _, split = read_dataset_info(str(path), "x")
    assert (data, row_format, split) == ("someone/data", "alpaca", "test")
