import json

import pytest
import yaml

from gradsift.data.dataset_configs import read_dataset_info, write_dataset_configs
from gradsift.data.formats import Columns
from gradsift.data.pool import load_pool

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
ROWS = {
    "messages": {"messages": CHAT},
    "messages with a system turn": {"messages": [{"role": "system", "content": "be"}, *CHAT]},
    "sharegpt": {"conversations": SHAREGPT},
    "sharegpt with a system field": {"conversations": SHAREGPT, "system": "be"},
    "sharegpt in OpenAI's words": {"conversations": CHAT},
    "sharegpt under messages": {"messages": SHAREGPT},
    "alpaca": {"instruction": "hi", "output": "yo"},
    "alpaca with everything": {
        "instruction": "do",
        "input": "this",
        "output": "yo",
        "system": "be",
        "history": [["hi", "yo"]],
    },
    "qa": {"question": "hi", "answer": "yo"},
}


def read_as_llamafactory(entry, row):
    """What its data/parser.py and data/converter.py make of a row, in a few lines."""
    columns = entry["columns"]
    tags = entry.get("tags") or {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "system_tag": "system",
    }
    if entry.get("formatting", "alpaca") == "alpaca":
        turns = []
        for question, answer in row[columns["history"]] if columns.get("history") else []:
            turns += [("user", question), ("assistant", answer)]
        parts = [row[columns[key]] for key in ("prompt", "query") if columns.get(key)]
        turns.append(("user", "\n".join(part for part in parts if part)))
        turns.append(("assistant", row[columns["response"]]))
        system = row[columns["system"]] if columns.get("system") else ""
    else:
        roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant"}
        turns = [(t[tags["role_tag"]], t[tags["content_tag"]]) for t in row[columns["messages"]]]
        if turns[0][0] == tags["system_tag"]:
            system, turns = turns[0][1], turns[1:]
        else:
            system = row[columns["system"]] if columns.get("system") else ""
        turns = [(roles[said], text) for said, text in turns]
    return [("system", system), *turns] if system else turns


@pytest.mark.parametrize("name", ROWS)
def test_llamafactory_reads_the_same_rows_by_its_dataset_config(tmp_path, name):
    path = tmp_path / "selected.jsonl"
    path.write_text(json.dumps(ROWS[name]) + "\n")
    pool = load_pool(str(path))
    write_dataset_configs(path, pool.row_format, pool.columns)
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["selected"]
    read = [(m["role"], m["content"]) for m in pool.rows[0].example.messages]
    assert read_as_llamafactory(entry, ROWS[name]) == read
    again = load_pool("selected", dataset_info=str(tmp_path / "dataset_info.json"))
    assert again.rows[0].example == pool.rows[0].example


def test_a_text_dataset_config_is_for_pre_training_and_comes_back_as_text(tmp_path):
    path = tmp_path / "selected.jsonl"
    path.write_text('{"text": "abc"}\n')
    pool = load_pool(str(path))
    write_dataset_configs(path, pool.row_format, pool.columns)
    again = load_pool("selected", dataset_info=str(tmp_path / "dataset_info.json"))
    assert again.row_format == "text"
    assert again.rows[0].example == pool.rows[0].example


@pytest.mark.parametrize(
    ("row_format", "columns", "expected"),
    [
        ("alpaca", Columns(), {"type": "alpaca"}),
        (
            "alpaca",
            Columns(query="input", system="system"),
            {
                "type": {
                    "field_instruction": "instruction",
                    "field_output": "output",
                    "field_input": "input",
                    "field_system": "system",
                    "format": "{instruction}\n{input}",
                    "no_input_format": "{instruction}",
                }
            },
        ),
        ("text", Columns(), {"type": "completion", "field": "text"}),
        (
            "messages",
            Columns(tools="tools", system="s"),
            {
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
                "field_system": "s",
                "field_tools": "tools",
                "message_field_training": "weight",
            },
        ),
        (
            "sharegpt",
            Columns(messages="c", roles={"H": "user", "G": "assistant", "F": "function_call"}),
            {
                "type": "chat_template",
                "field_messages": "c",
                "message_property_mappings": {"role": "from", "content": "value"},
                "roles": {"user": ["H"], "assistant": ["G"]},
            },
        ),
        (
            "sharegpt",
            Columns(),
            {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
        (
            "qa",
            Columns(prompt="question", response="answer"),
            {
                "type": {
                    "field_instruction": "question",
                    "field_output": "answer",
                    "format": "{instruction}",
                    "no_input_format": "{instruction}",
                }
            },
        ),
    ],
)
def test_axolotls_dataset_config(tmp_path, row_format, columns, expected):
    path = tmp_path / "selected.jsonl"
    write_dataset_configs(path, row_format, columns)
    (entry,) = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())["datasets"]
    assert entry == {"path": str(path), "ds_type": "json", **expected}


@pytest.mark.parametrize(
    ("name", "row_format", "columns", "written"),
    [
        ("selected.jsonl", "prompt_completion", Columns(), []),
        ("selected.tsv", "qa", Columns(prompt="q", response="a"), []),
        ("selected.feather", "alpaca", Columns(), ["axolotl.yaml"]),
        ("selected", "alpaca", Columns(), ["axolotl.yaml"]),
        ("selected.jsonl", "alpaca", Columns(history="history"), ["dataset_info.json"]),
    ],
)
def test_what_a_trainer_cannot_read_gets_no_config(tmp_path, name, row_format, columns, written):
    assert [p.name for p in write_dataset_configs(tmp_path / name, row_format, columns)] == written


def test_a_folder_of_save_to_disk_has_no_type_for_axolotl(tmp_path):
    write_dataset_configs(tmp_path / "selected", "text", Columns())
    (entry,) = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())["datasets"]
    assert entry == {
        "path": str(tmp_path / "selected"),
        "type": "completion",
        "field": "text",
    }


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
