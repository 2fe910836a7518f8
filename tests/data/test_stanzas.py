import json

import pytest
import yaml

from gradsift.data.formats import Columns
from gradsift.data.llamafactory import read_dataset_info
from gradsift.data.pool import load_pool
from gradsift.data.stanzas import write_stanzas

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
ROWS = {
    "messages": {"messages": CHAT},
    "sharegpt": {"conversations": SHAREGPT},
    "alpaca": {"instruction": "hi", "output": "yo"},
    "qa": {"question": "hi", "answer": "yo"},
}


@pytest.mark.parametrize("row_format", ROWS)
def test_llamafactorys_stanza_reads_the_same_rows(tmp_path, row_format):
    """The entry that is written, read back by the code that reads LLaMA-Factory's entries."""
    path = tmp_path / "selected.jsonl"
    path.write_text(json.dumps(ROWS[row_format]) + "\n")
    pool = load_pool(str(path))
    write_stanzas(path, pool.row_format, pool.columns)
    again = load_pool("selected", dataset_info=str(tmp_path / "dataset_info.json"))
    assert again.rows[0].example == pool.rows[0].example


@pytest.mark.parametrize(
    ("row_format", "columns", "expected"),
    [
        ("alpaca", Columns(), {"type": "alpaca"}),
        ("text", Columns(), {"type": "completion", "field": "text"}),
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
def test_axolotls_stanza(tmp_path, row_format, columns, expected):
    path = tmp_path / "selected.jsonl"
    write_stanzas(path, row_format, columns)
    (entry,) = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())["datasets"]
    assert entry == {"path": str(path), "ds_type": "json", **expected}


def test_a_format_that_a_trainer_cannot_read_gets_no_stanza(tmp_path):
    path = tmp_path / "selected.jsonl"
    assert write_stanzas(path, "prompt_completion", Columns()) == []


def test_openai_formatting(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([{"messages": CHAT}]))
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"x": {"file_name": "d.json", "formatting": "openai"}}))
    _, row_format, columns = read_dataset_info(str(info), "x")
    assert row_format == "messages"
    pool = load_pool("x", dataset_info=str(info))
    assert [m["role"] for m in pool.rows[0].example.messages] == ["user", "assistant"]
    assert columns.roles["assistant"] == "assistant"
