"""Every field of the installed SFTConfig and LoraConfig is in one table, and is what it says."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import SFTConfig

from gradsift.errors import GradsiftError
from gradsift.training.settings import checks as sft_checks
from gradsift.training.settings.known import (
    LORA_DECIDED,
    LORA_PASSED,
    LORA_REFUSED,
    SFT_DECIDED,
    SFT_PASSED,
    SFT_REFUSED,
    TOKENIZER_SETTINGS,
    said_anyway,
)
from gradsift.training.settings.lora import adapting, lora_config
from gradsift.training.settings.trainer import TrainerSettings, require_settings, sft_config
from tiny import tiny_llama

TABLES = {
    "SFTConfig": (SFTConfig, (SFT_PASSED, SFT_DECIDED, SFT_REFUSED)),
    "LoraConfig": (LoraConfig, (LORA_PASSED, LORA_DECIDED, LORA_REFUSED)),
}
FIELDS = [
    (name, field.name) for name, (kind, _) in TABLES.items() for field in dataclasses.fields(kind)
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_field_is_in_one_table(kind, field):
    """A red one is new in trl, transformers or peft: try what it does to a recording."""
    assert sum(field in table for table in TABLES[kind][1]) == 1


def config_of(sft):
    return sft_config(TrainerSettings(sft, None, 0), Path())


def require(sft):
    require_settings(TrainerSettings(sft, None, 0))


@pytest.mark.parametrize("name", sorted(SFT_DECIDED | SFT_REFUSED))
def test_what_is_not_passed_on_is_refused_with_the_reason(name):
    reason = (SFT_DECIDED | SFT_REFUSED)[name]
    with pytest.raises(GradsiftError) as caught:
        require({name: 12345})
    assert f"{name}: {reason}" in str(caught.value)


@pytest.mark.parametrize("name", sorted(LORA_DECIDED | LORA_REFUSED))
def test_lora_what_is_not_passed_on_is_refused_with_the_reason(name):
    with pytest.raises(GradsiftError) as caught:
        lora_config({name: 12345})
    assert f"{name}: {(LORA_DECIDED | LORA_REFUSED)[name][1]}" in str(caught.value)


@pytest.mark.parametrize(
    "sft",
    [
        {"report_to": "none", "push_to_hub": False, "save_strategy": "no", "eval_strategy": "no"},
        {"packing": False, "padding_free": False, "dataloader_drop_last": False},
        {"trackio_space_id": None, "hub_token": None, "report_to": ["none"]},
        {"label_smoothing_factor": 0, "router_aux_loss_coef": 0.0, "neftune_noise_alpha": None},
        {"dataset_text_field": "text", "loss_type": "nll", "assistant_only_loss": True},
    ],
)
def test_what_is_done_anyway_may_be_said(sft):
    require(sft)
    assert not all(said_anyway(name, "other") for name in sft)


def test_no_limit_of_length_is_not_what_is_done():
    with pytest.raises(GradsiftError, match="max_length: use `max_length`"):
        require({"max_length": None})


# Another value than the default of each field that is passed on, where one machine allows it.
ARRIVING = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "average_tokens_across_devices": False,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-6},
    "warmup_steps": 0.25,
    "max_grad_norm": 0.5,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "bf16": True,
    "use_cpu": True,
    "full_determinism": True,
    "data_seed": 3,
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "torch_empty_cache_steps": 4,
    "torch_compile": True,
    "torch_compile_backend": "aot_eager",
    "torch_compile_mode": "reduce-overhead",
    "logging_strategy": "epoch",
    "logging_steps": 7,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "disable_tqdm": False,
    "accelerator_config": {"use_seedable_sampler": False},
    "dataloader_num_workers": 2,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": True,
    "ddp_timeout": 60,
    "pad_to_multiple_of": 8,
}
BESIDE = {
    "lr_scheduler_type": {"lr_scheduler_kwargs": {"min_lr": 1e-6}},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_min_lr"},
    "optim_args": {"optim": "sgd"},
    "bf16": {"use_cpu": True},
}


@pytest.mark.parametrize("name", sorted(ARRIVING))
def test_what_is_passed_on_arrives(name):
    config = config_of({name: ARRIVING[name], **BESIDE.get(name, {})})
    found = getattr(config, name)
    found = getattr(found, "value", found)
    if name == "accelerator_config":
        assert found.use_seedable_sampler is False
    else:
        assert found == ARRIVING[name]
    assert name in SFT_PASSED


@pytest.mark.parametrize("name", sorted(set(TOKENIZER_SETTINGS)))
def test_what_the_tokenizer_has_is_not_done_again_by_trl(name):
    assert getattr(config_of({name: "</s>"}), name) is None


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected a finite number"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is inf, expected a finite number"),
        ({"max_grad_norm": -1}, "max_grad_norm is -1, expected at least 0"),
        ({"warmup_steps": -0.1}, "warmup_steps = -0.1"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: use warmup_steps"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1, expected at least 0"),
        ({"data_seed": "a"}, "data_seed is 'a', expected a valid integer"),
        ({"pad_to_multiple_of": "foo"}, "pad_to_multiple_of is 'foo', expected a value of type"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0, expected at least 1"),
        ({"bf16": "auto"}, "bf16 is 'auto', expected a valid boolean"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers: True"),
        (
            {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "foo"},
            "multiprocessing_context: 'foo'",
        ),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
        ({"torch_compile_backend": "foo"}, "torch_compile_backend is 'foo'; known are"),
        ({"torch_compile_mode": "foo"}, "torch_compile_mode is 'foo'; known are"),
        ({"accelerator_config": {"split_batches": True}}, "take out split_batches"),
        ({"accelerator_config": {"even_batches": False}}, "take out even_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "take out dispatch_batches"),
        ({"accelerator_config": "no.json"}, "accelerator_config: 'no.json'.*No such file"),
        ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config has no effect without use"),
        ({"fsdp_config": {"fsdp_version": 2}}, "fsdp_config has no effect without fsdp"),
        (
            {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"a": 1}},
            "gradient_checkpointing_kwargs has no effect without gradient_checkpointing",
        ),
        (
            {"gradient_checkpointing": False, "activation_checkpointing": True},
            "are the same thing, and differ",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1}},
            "lr_scheduler_kwargs has no effect with lr_scheduler_type: constant",
        ),
        ({"optim_target_modules": ["q_proj"]}, "optim_target_modules has no effect with optim"),
        ({"log_level": "zz"}, "log_level is 'zz'; known are detail, debug"),
        (
            {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 0},
            "dataloader_prefetch_factor is 0, expected at least 1",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"bogus": 1}},
            "gradient_checkpointing_kwargs: .*bogus",
        ),
        ({"logging_steps": -5}, "logging_steps is -5, expected at least 0"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last: every row is recorded"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs: use `chat_template_kwargs`"),
    ],
)
def test_what_would_fail_or_be_ignored_is_refused_at_once(sft, message):
    with pytest.raises(GradsiftError, match=message) as caught:
        require(sft)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sft", "module"),
    [
        ({"use_liger_kernel": True}, "liger_kernel"),
        ({"optim": "galore_adamw", "optim_target_modules": ["up_proj"]}, "galore_torch"),
        ({"optim": "lomo"}, "lomo_optim"),
        ({"deepspeed": "zero2.json"}, "deepspeed"),
        ({"optim": "apollo_adamw", "optim_target_modules": ["up_proj"]}, "apollo_torch"),
    ],
)
def test_a_missing_package_is_named_with_its_setting(monkeypatch, sft, module):
    find = sft_checks.importlib.util.find_spec
    monkeypatch.setattr(
        sft_checks.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    setting = next(iter(sft))
    package = module.replace("_", "-")
    with pytest.raises(GradsiftError, match=rf"sft setting {setting}.* pip install {package}"):
        require(sft)


@pytest.mark.parametrize(
    ("sft", "note"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0: no weight changes"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps has no effect"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 has no effect with optim: sgd"),
        ({"optim": "adafactor", "optim_args": "clip=2"}, "optim_args: clip has no effect"),
    ],
)
def test_what_has_no_effect_beside_others_is_noted(caplog, sft, note):
    with caplog.at_level("WARNING", "gradsift"):
        require(sft)
    assert note in caplog.text


@pytest.mark.parametrize(
    "sft",
    [
        {},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"},
        {"adam_beta1": 0.9, "adam_beta2": 0.5, "adam_epsilon": 1e-3},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
    ],
)
def test_what_has_an_effect_is_not_noted(caplog, sft):
    with caplog.at_level("WARNING", "gradsift"):
        require(sft)
    assert not caplog.text


def test_a_field_of_a_newer_version_is_refused(monkeypatch):
    """Not passed on: nobody has tried what it does to a recording."""
    monkeypatch.setattr(sft_checks, "SFT_PASSED", SFT_PASSED - {"adam_beta1"})
    with pytest.raises(GradsiftError, match="gradsift does not know yet: adam_beta1"):
        require({"adam_beta1": 0.8})


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"init_lora_weights": "eva"}, "init_lora_weights is 'eva': such adapters are started"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config has no effect without"),
        ({"target_modules": "lm_head"}, "target_modules has 'lm_head': trl trains no adapter"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens: its adapters begin inside"),
        ({"lora_alpha": 0}, "lora_alpha is 0, expected more than 0"),
        ({"lora_alpha": -1}, "lora_alpha is -1, expected more than 0"),
        ({"layers_to_transform": [0]}, "layers_to_transform needs target_modules as a list"),
        ({"layers_pattern": ["layers"]}, "layers_pattern needs target_modules as a list"),
        ({"use_qalora": True}, "use_qalora: only for weights quantised by GPTQ"),
    ],
)
def test_lora_settings_that_would_do_something_else_are_refused(lora, message):
    with pytest.raises(GradsiftError, match=message):
        lora_config(lora)


def test_kernels_need_an_accelerator(monkeypatch):
    monkeypatch.setattr(sft_checks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(GradsiftError, match="use_liger_kernel: its kernels need an accelerator"):
        require({"use_liger_kernel": True})


@pytest.mark.parametrize(
    ("lora", "tied", "message"),
    [
        ({"fan_in_fan_out": True}, False, "fan_in_fan_out has no effect: no adapted module"),
        ({"ensure_weight_tying": True}, False, "embedding and head are not tied"),
        ({"ensure_weight_tying": True}, True, "no module that it ties"),
        ({"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}, True, None),
    ],
)
def test_lora_settings_without_an_effect_on_the_model_are_refused(lora, tied, message):
    model = tiny_llama(tied=tied)
    expected = nullcontext() if message is None else pytest.raises(GradsiftError, match=message)
    with expected, adapting(model, lora):
        get_peft_model(model, lora_config(lora))


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    require({"optim": "sgd", "optim_args": "momentum=0.9", "adam_beta1": 0.8})
    assert torch.equal(torch.get_rng_state(), before)
