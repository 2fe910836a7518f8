"""What fits where, from a configuration: a model of 70 G parameters, without its weights."""

import json

import pytest
from transformers import LlamaConfig

from gradsift.config import PlanConfig
from gradsift.errors import GradsiftError
from gradsift.schema import validated
from gradsift.training.memory_plan import Shapes, plan_memory
from tiny import tiny_gpt2, tiny_llama

LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


def placed(**settings):
    plan = plan_memory(LLAMA_70B, validated(PlanConfig, {"model": "70B", **settings}))
    return {(p.training, p.layout): p for p in plan.placements}


def test_a_models_shapes_are_those_it_has():
    for model in (tiny_llama(), tiny_llama(tied=False)):
        shapes = Shapes.from_config(model.config)
        assert shapes.n_parameters == model.num_parameters()
        layer = model.model.layers[0]
        assert shapes.n_largest == sum(p.numel() for p in layer.parameters())
        assert (shapes.n_layers, shapes.n_columns, shapes.width) == (2, 262, 32)
        assert shapes.n_linear == 2 * sum(
            m.weight.numel() for m in layer.modules() if hasattr(m, "in_features")
        )


def test_an_adapter_is_what_peft_makes():
    from peft import LoraConfig, get_peft_model

    model = tiny_llama(tied=False)
    n = Shapes.from_config(model.config).n_adapter
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert adapted.get_nb_trainable_parameters()[0] == 4 * n


def test_70b():
    places = placed()
    weights = {key: p.gigabytes["weights"] for key, p in places.items()}
    assert weights["full", "one GPU"] == pytest.approx(141.1, abs=0.1)
    assert weights["full", "FSDP2 / ZeRO-3"] == pytest.approx(2 * 141.1 / 8, abs=0.1)
    assert weights["LoRA", "FSDP2 / ZeRO-3"] == pytest.approx(141.1 / 8, abs=0.1)
    fits = {key for key, p in places.items() if p.fits}
    assert fits == {
        ("LoRA", "FSDP2 / ZeRO-3"),
        ("QLoRA", "one GPU"),
        ("QLoRA", "DDP"),
        ("QLoRA", "FSDP2 / ZeRO-3"),
    }
    # 16 bytes a parameter.
    assert not placed(gpus=16)["full", "FSDP2 / ZeRO-3"].fits
    assert placed(gpus=24)["full", "FSDP2 / ZeRO-3"].fits
    assert not placed(gpu_memory=40)["QLoRA", "one GPU"].fits
    assert not placed(batch_size=64, max_length=4096)["LoRA", "FSDP2 / ZeRO-3"].fits


def test_nothing_is_hidden_in_the_sum():
    for place in placed().values():
        assert place.total == pytest.approx(sum(place.gigabytes.values()))
        head = 4 * 128256 * 8192 / 1e9
        assert (place.gigabytes["recorder"] > head) == (place.training == "full")


def test_what_cannot_be_is_refused():
    with pytest.raises(GradsiftError, match="`gpus` is 0"):
        validated(PlanConfig, {"model": "70B", "gpus": 0})
    with pytest.raises(
        GradsiftError, match="`load_in` is '2bit': Input should be '4bit' or '8bit'"
    ):
        validated(PlanConfig, {"model": "70B", "load_in": "2bit"})


def test_the_command(tmp_path, capsys):
    from test_cli import invoke

    LLAMA_70B.save_pretrained(tmp_path)
    code, out, _ = invoke(capsys, "plan", str(tmp_path), "--load-in", "4bit")
    assert code == 0
    assert "70.6 G parameters" in out
    assert "not measured" in out
    assert out.count("   fits") == 3
    tiny_gpt2().config.save_pretrained(tmp_path)
    code, out, _ = invoke(capsys, "plan", str(tmp_path), "--full", "--json")
    assert [p["training"] for p in json.loads(out)["placements"]] == ["full"] * 3
    code, _, error = invoke(capsys, "plan", str(tmp_path), "--full", "--load-in", "4bit")
    assert (code, error.count("\n")) == (2, 1)
