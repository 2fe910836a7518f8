import pytest
from torch import nn
from transformers import PretrainedConfig

from gradsift.gradients.head import HeadTransform
from gradsift.training.layers import head_transform, track
from gradsift.training.model import (
    find_model,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    tokenizer_fingerprint,
)
from tiny import save_tiny, tiny_gpt2, tiny_llama


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, HeadTransform()),
        ({"final_logit_softcapping": 30.0}, HeadTransform(1.0, 30.0)),
        ({"logit_scale": 0.25}, HeadTransform(0.25)),
        ({"logit_scale": None}, HeadTransform()),
        ({"logits_scaling": 4.0}, HeadTransform(0.25)),
        ({"lm_head_multiplier": 0.5}, HeadTransform(0.5)),
    ],
)
def test_the_head_transform_is_read_from_the_configuration(fields, expected):
    assert head_transform(PretrainedConfig(**fields)) == expected


def test_tracking_finds_the_modules_also_inside_peft():
    from peft import LoraConfig, get_peft_model

    model = tiny_llama()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    embedding, head, backbone = model.model.embed_tokens, model.lm_head, model.model
    wrapped = get_peft_model(model, config)
    tracked = track(wrapped)
    assert tracked.outer is wrapped
    assert (tracked.embedding, tracked.head, tracked.backbone) == (embedding, head, backbone)


def test_other_heads_and_embeddings_are_refused_by_name():
    model = tiny_gpt2()
    model.lm_head = nn.Sequential(nn.Linear(32, 262))
    with pytest.raises(ValueError, match="output head is a Sequential"):
        track(model)
    model = tiny_gpt2()
    model.transformer.wte = nn.Sequential(model.transformer.wte)
    with pytest.raises(ValueError, match="input embedding is a Sequential"):
        track(model)


def test_fingerprints_tell_models_and_tokenizers_apart(tmp_path):
    sources = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_tiny(tmp_path / name, seed=seed)
        sources.append(find_model(str(tmp_path / name)))
    prints = [model_fingerprint(source, load_config(source)) for source in sources]
    assert prints[0] == prints[1] != prints[2]
    tokenizer = load_tokenizer(sources[0])
    before = tokenizer_fingerprint(tokenizer)
    assert before == tokenizer_fingerprint(load_tokenizer(sources[1]))
    tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tokenizer) != before


def test_a_pickle_is_not_opened(tmp_path):
    import torch

    save_tiny(tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load the model"):
        load_model(find_model(str(tmp_path / "m")))


def test_what_cannot_be_loaded_says_what_would(tmp_path):
    for load in (load_model, load_tokenizer, load_config):
        with pytest.raises(ValueError, match=r"cannot load the .* Give a folder"):
            load(find_model(str(tmp_path)))
    with pytest.raises(ValueError, match="`dtype` is 'int8': Input should be"):
        find_model("x", dtype="int8")
