"""Quantised weights that cannot be: told in one line, before a model is loaded, without extras."""

import json

import pytest
from transformers import AutoModelForCausalLM

import gradsift as gs
from gradsift.config_files import resolve
from gradsift.training import model as model_of
from gradsift.training import quantized
from tiny import save_tiny


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "model")


def quantised_by(method, folder, **settings):
    """A folder whose configuration says that its weights are quantised."""
    save_tiny(folder)
    path = folder / "config.json"
    said = {"quantization_config": {"quant_method": method, **settings}}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return str(folder)


def test_without_lora_it_is_refused_at_once(tmp_path, model, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr(model_of, "require_bitsandbytes", lambda what: None)
    given = {"data": "x.jsonl", "model": model, "out": str(tmp_path), "load_in": "4bit"}
    with pytest.raises(ValueError, match=r"load_in: 4bit.*add `lora`"):
        resolve(given, None)
    with pytest.raises(ValueError, match=r"load_in: 8bit.*add `lora`"):
        gs.check(model, load_in="8bit")


def test_full_parameter_training_of_a_quantised_checkpoint_is_refused_at_once(
    tmp_path, monkeypatch
):
    saved = quantised_by("bitsandbytes", tmp_path / "saved", load_in_4bit=True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr(model_of, "require_readable", lambda name, config: None)
    with pytest.raises(ValueError, match=r"has weights quantised by bitsandbytes: .*add `lora`"):
        gs.check(saved)


def test_settings_of_the_models_loading_are_not_trls(model, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"model_init_kwargs.*`load_in`, `dtype` and `revision`"):
        gs.check(model, sft={"model_init_kwargs": {"load_in_4bit": True}})


def test_without_bitsandbytes_one_line_says_what_to_install(tmp_path, model, monkeypatch):
    saved = quantised_by("bitsandbytes", tmp_path / "saved", load_in_4bit=True)
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    for attempt in (
        lambda: gs.check(model, load_in="4bit", lora=True),
        lambda: gs.check(saved, lora=True),
    ):
        with pytest.raises(ValueError, match=r"pip install 'gradsift\[quantized\]'") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "nonsense"])
def test_methods_that_cannot_be_read_here_say_so_in_one_line(tmp_path, method):
    folder = quantised_by(method, tmp_path / "m", bits=4, group_size=32)
    with pytest.raises(ValueError, match=f"quantised by {method}") as caught:
        gs.check(folder, lora=True)
    assert "\n" not in str(caught.value)
    assert "`load_in: 4bit`" in str(caught.value)
