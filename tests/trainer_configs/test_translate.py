"""Configurations of axolotl, LLaMA-Factory and trl, key by key; none is ignored in silence."""

import json
import re
from pathlib import Path

import pytest
import yaml

from gradsift.config_files import resolve
from gradsift.trainer_configs.keys import Decided, Joint, OneOf, Refused, Setting
from gradsift.trainer_configs.translate import TOOLS, tool_of, translate

AXOLOTL_QLORA = """
base_model: NousResearch/Llama-3.2-1B
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: data/chats.jsonl
    ds_type: json
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles_to_train: ["assistant"]
    train_on_eos: turn
chat_template: chatml
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/qlora-out

adapter: qlora
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true

lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_modules_to_save:
  - embed_tokens
  - lm_head

wandb_project: mine
wandb_entity:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 2e-4
weight_decay: 0.01

bf16: true
tf32: false
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
train_on_inputs: false
group_by_length: false
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
special_tokens:
  pad_token: "<|end_of_text|>"
plugins:
  - axolotl.integrations.liger.LigerPlugin
liger_rms_norm: true
"""

LLAMAFACTORY_LORA = """
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true

stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
additional_target: lm_head

dataset: mine
dataset_dir: data
template: qwen3_nothink
cutoff_len: 4096
mask_history: true
preprocessing_num_workers: 16
neat_packing: true

output_dir: saves/mine
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: none

per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
"""

TRL_FULL = """
model_name_or_path: Qwen/Qwen2-0.5B
dtype: bfloat16
attn_implementation: sdpa
dataset_name: trl-lib/Capybara
dataset_num_proc: 4

learning_rate: 2.0e-5
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
lr_scheduler_type: cosine
warmup_steps: 0.1
weight_decay: 0.1
optim: adafactor
max_grad_norm: 0.5
bf16: true
max_length: 2048
packing: true
packing_strategy: wrapped
assistant_only_loss: true
num_train_epochs: 1
seed: 7
output_dir: Qwen2-0.5B-SFT
eval_strategy: steps
eval_steps: 100
push_to_hub: true
"""


def read(text, ours=None):
    return translate(yaml.safe_load(text), "theirs.yaml", ours)


def test_axolotl_qlora_with_packing():
    done = read(AXOLOTL_QLORA.replace("2e-4", "2.0e-4"))
    assert done.tool == "axolotl"
    assert done.settings == {
        "model": "NousResearch/Llama-3.2-1B",
        "data": "data/chats.jsonl",
        "split": "train",
        "format": "sharegpt",
        "chat_template": "chatml",
        "load_in": "4bit",
        "dtype": "bfloat16",
        "max_length": 2048,
        "truncation": "drop",
        "batching": "packed",
        "seed": 42,
        "lora": {
            "r": 32,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "target_modules": "all-linear",
            "modules_to_save": ["embed_tokens", "lm_head"],
        },
        "sft": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "optim": "adamw_torch",
            "lr_scheduler_type": "cosine",
            "learning_rate": 2e-4,
            "weight_decay": 0.01,
            "warmup_steps": 10,
            "bf16": True,
            "fp16": False,
            "tf32": False,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    }
    decided, otherwise, defaults = done.notes
    assert "packing: a micro-batch has as many rows as its size says" in otherwise
    named = """tokenizer_type strict datasets[0].ds_type dataset_prepared_path val_set_size
        output_dir eval_sample_packing pad_to_sequence_len wandb_project num_epochs logging_steps
        flash_attention evals_per_epoch saves_per_epoch special_tokens plugins liger_rms_norm"""
    for key in named.split():
        assert decided.count(key) == 1, key
    assert "wandb_entity" not in decided
    assert "so as axolotl does: excess_length_strategy drop, seed 42" in defaults


def test_llamafactory_lora(tmp_path, monkeypatch):
    done = read(LLAMAFACTORY_LORA)
    assert done.tool == "LLaMA-Factory"
    assert done.settings == {
        "model": "Qwen/Qwen3-4B-Instruct-2507",
        "data": "mine",
        "dataset_info": "data/dataset_info.json",
        "chat_template": "chatml",
        "train_on": "last",
        "dtype": "bfloat16",
        "max_length": 4096,
        "batching": "packed",
        "seed": 42,
        "lora": {
            "r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": ["lm_head"],
        },
        "sft": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "bf16": True,
            "fp16": False,
        },
    }
    decided, otherwise, defaults = done.notes
    assert "trust_remote_code (code runs only where `trust_remote_code` says so)" in decided
    assert "val_size" in decided
    assert "cutoff_len: longer rows keep their beginning" in otherwise
    assert "packing: a micro-batch has as many rows as its size says" in otherwise
    assert "kept apart" not in otherwise
    assert "lora_dropout 0.0, seed 42" in defaults


def test_trl_full():
    done = read(TRL_FULL)
    assert done.tool == "trl"
    assert done.settings == {
        "model": "Qwen/Qwen2-0.5B",
        "data": "trl-lib/Capybara",
        "split": "train",
        "dtype": "bfloat16",
        "max_length": 2048,
        "batching": "packed",
        "seed": 7,
        "sft": {
            "learning_rate": 2e-5,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "gradient_checkpointing": True,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "weight_decay": 0.1,
            "optim": "adafactor",
            "max_grad_norm": 0.5,
            "bf16": True,
        },
    }
    decided, otherwise = done.notes
    for key in ("attn_implementation", "dataset_num_proc", "num_train_epochs", "output_dir"):
        assert key in decided
    assert "rows of a sequence are kept apart" in otherwise
    assert "packing_strategy: no row is cut in two" in otherwise


DEFAULTS = [
    (
        {"base_model": "m", "adapter": "lora"},
        {
            "model": "m",
            "max_length": 512,
            "truncation": "drop",
            "dtype": "float32",
            "seed": 42,
            "lora": {"target_modules": None},
            "sft": {
                "per_device_train_batch_size": 1,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.03,
                "bf16": False,
                "fp16": False,
            },
        },
    ),
    (
        {"model_name_or_path": "m", "stage": "sft"},
        {
            "model": "m",
            "max_length": 2048,
            "dtype": "float32",
            "seed": 42,
            "lora": {
                "r": 8,
                "lora_alpha": 16,
                "lora_dropout": 0.0,
                "target_modules": "all-linear",
            },
            "sft": {"learning_rate": 5e-5, "bf16": False, "fp16": False},
        },
    ),
    (
        {"model_name_or_path": "m", "use_peft": True},
        {
            "model": "m",
            "seed": 42,
            "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": None},
        },
    ),
]


@pytest.mark.parametrize(("file", "expected"), DEFAULTS, ids=["axolotl", "LLaMA-Factory", "trl"])
def test_what_a_file_does_not_say_is_as_its_trainer_has_it(monkeypatch, file, expected):
    utils = pytest.importorskip("transformers.utils")
    monkeypatch.setattr(utils, "is_torch_bf16_gpu_available", lambda: False)
    done = translate(file, "x")
    assert done.settings == expected
    assert done.notes[-1].startswith(f"x: not said there, so as {done.tool} does: ")
    for name, value in expected.items():
        if name in ("max_length", "seed"):
            assert f" {value}" in done.notes[-1]


# Files of each tool in which every key could matter.
BASES = {
    "axolotl": {"base_model": "m", "sequence_len": 64, "micro_batch_size": 2, "learning_rate": 1},
    "LLaMA-Factory": {"model_name_or_path": "m", "stage": "sft", "cutoff_len": 64},
    "trl": {"model_name_or_path": "m", "use_peft": True, "max_length": 64, "dataset_name": "a/b"},
}
BASES["axolotl"] |= {"adapter": "lora", "lora_r": 4}
ODD_VALUES = ("an odd value", 3, ["an odd value"], {"an odd key": 3})


@pytest.mark.parametrize("value", ODD_VALUES, ids=str)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_key_is_honoured_told_of_or_refused(tool, value):
    base = BASES[tool.name]
    plain = translate(base, "theirs.yaml")
    for key in tool.keys:
        # It needs the dataset's file, and has a test of its own.
        if key == "max_samples":
            continue
        settings, told = _end(base | {key: value})
        assert settings not in (None, plain.settings) or key in told, key


def _end(file):
    """The settings that a file becomes (None if it is refused), and what is said about it."""
    try:
        done = translate(file, "theirs.yaml")
    except ValueError as error:
        # What was refused is named before the reason, which may name other keys.
        return None, re.sub(r"\([^()]*\)", "", str(error))
    return done.settings, " ".join(note for note in done.notes if "not said there" not in note)


def test_every_key_of_the_installed_trl_has_its_end():
    trl = pytest.importorskip("trl")
    table = next(tool for tool in TOOLS if tool.name == "trl").keys
    for kind in (trl.SFTConfig, trl.ModelConfig, trl.ScriptArguments):
        for key in kind.__dataclass_fields__:
            assert isinstance(table.get(key), Setting | OneOf | Joint | Decided | Refused), key


def test_every_key_of_the_installed_transformers_has_its_end_in_llamafactory():
    transformers = pytest.importorskip("transformers")
    table = next(tool for tool in TOOLS if tool.name == "LLaMA-Factory").keys
    for key in transformers.Seq2SeqTrainingArguments.__dataclass_fields__:
        assert key.startswith("_") or key in table, key


def test_what_becomes_an_sft_setting_is_one_that_gradsift_takes():
    trl = pytest.importorskip("trl")
    peft = pytest.importorskip("peft")
    from gradsift.config import RunConfig
    from gradsift.training.settings.known import RESERVED

    names = set()
    for tool in TOOLS:
        for key in tool.keys.values():
            if isinstance(key, Setting):
                names.add(key.to)
            elif isinstance(key, OneOf):
                names |= {name for settings in key.values.values() for name in settings}
    # Some transformers have it, and some have not yet.
    names -= {"sft.activation_checkpointing", "sft.activation_checkpointing_kwargs"}
    for name in names:
        where, dot, inner = name.partition(".")
        if where == "sft":
            assert inner in trl.SFTConfig.__dataclass_fields__.keys() - RESERVED.keys(), name
        elif where == "lora":
            assert inner in peft.LoraConfig.__dataclass_fields__, name
        else:
            assert not dot
            assert name in RunConfig.model_fields


AXOLOTL = {"base_model": "m", "sequence_len": 64, "learning_rate": 1}
LLAMAFACTORY = {"model_name_or_path": "m", "stage": "sft", "cutoff_len": 64}
TRL = {"model_name_or_path": "m", "dataset_name": "a/b", "max_length": 64}

REFUSALS = [
    (AXOLOTL, {"rl": "dpo"}, "rl: dpo (gradsift records supervised fine-tuning"),
    (AXOLOTL, {"adapter": "llama-adapter"}, "known are lora and qlora"),
    (AXOLOTL, {"adapter": "qlora", "load_in_4bit": False}, "load_in_4bit: false"),
    (AXOLOTL, {"load_in_4bit": True, "load_in_8bit": True}, "take one"),
    (AXOLOTL, {"train_on_inputs": True}, "train_on_inputs: true (gradsift trains on answers"),
    (AXOLOTL, {"chat_template": "alpaca"}, "chat_template: alpaca (rows are rendered by"),
    (AXOLOTL, {"neftune_noise_alpha": 5}, "neftune_noise_alpha: 5 (its noise"),
    (AXOLOTL, {"datasets": [{"path": "a"}, {"path": "b"}]}, "datasets (2 of them) (give one file"),
    (AXOLOTL, {"datasets": [{"path": "a", "type": "jeopardy"}]}, "datasets[0].type: jeopardy"),
    (AXOLOTL, {"datasets": [{"path": "a", "type": "alpaca", "pth": 1}]}, "datasets[0].pth"),
    (
        AXOLOTL,
        {"datasets": [{"path": "a", "type": "chat_template", "roles_to_train": ["user"]}]},
        "datasets[0].roles_to_train: ['user']",
    ),
    (
        AXOLOTL,
        {"datasets": [{"path": "a", "type": "chat_template", "field_messages": "turns"}]},
        "datasets[0]: turns in turns, of role, content",
    ),
    (
        AXOLOTL,
        {"datasets": [{"path": "a", "type": "chat_template", "roles": {"user": ["boss"]}}]},
        "datasets[0].roles: ['boss'] for user",
    ),
    (AXOLOTL, {"special_tokens": {"eos_token": "</s>"}}, "special_tokens"),
    (AXOLOTL, {"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "SpectrumPlugin"),
    (AXOLOTL, {"optimizer": "muon"}, "optimizer: muon (an optimizer of axolotl's own"),
    (AXOLOTL, {"lr_scheduler": "rex"}, "lr_scheduler: rex"),
    (AXOLOTL, {"tokenizer_config": "other"}, "tokenizer_config: other (must be that of base"),
    (AXOLOTL, {"learning_rate": "fast"}, "learning_rate: fast (expected a number)"),
    (LLAMAFACTORY, {"stage": "dpo"}, "stage: dpo"),
    (LLAMAFACTORY, {"stage": "pt"}, "stage: pt"),
    (LLAMAFACTORY, {"finetuning_type": "freeze"}, "known are lora and full"),
    (LLAMAFACTORY, {"quantization_bit": 3}, "weights are loaded in 4 or 8 bits"),
    (LLAMAFACTORY, {"quantization_bit": 4, "quantization_method": "hqq"}, "hqq"),
    (LLAMAFACTORY, {"dataset": "one,two"}, "dataset: ['one', 'two'] (give one file"),
    (LLAMAFACTORY, {"template": "vicuna"}, "template: vicuna"),
    (LLAMAFACTORY, {"pure_bf16": True}, "pure_bf16: true (adapters are kept in float32"),
    (LLAMAFACTORY, {"train_on_prompt": True}, "train_on_prompt: true"),
    (LLAMAFACTORY, {"warmup_ratio": 3}, "a number of steps is warmup_steps"),
    (TRL, {"assistant_only_loss": False}, "assistant_only_loss: false"),
    (TRL, {"loss_type": "dft"}, "loss_type: dft"),
    (TRL, {"dtype": "auto"}, "dtype: auto (expected one of float32"),
    (TRL, {"dataset_config": "en"}, "dataset_config: en"),
    (TRL, {"train_sampling_strategy": "sequential"}, "train_sampling_strategy: sequential"),
    (TRL, {"datasets": [{"path": "text", "data_files": "a.txt"}]}, "datasets"),
    (TRL, {"use_peft": 1}, "use_peft: 1 (expected true or false)"),
    (TRL, {"use_peft": "true"}, "use_peft: 'true' (expected true or false)"),
    (AXOLOTL, {"bf16": "true"}, "bf16: 'true' (expected one of true, false, auto, full)"),
    (TRL, {"max_length": None}, "max_length: null (no row would be cut"),
    (TRL, {"max_grad_norm": None}, "max_grad_norm: null (gradients would not be clipped"),
    (LLAMAFACTORY, {"bf16": True, "fp16": True}, "fp16: true (bf16 is true as well"),
    (LLAMAFACTORY, {"max_grad_norm": None}, "max_grad_norm: null"),
    (LLAMAFACTORY, {"lora_rank": float("inf")}, "lora_rank: inf (expected a finite number)"),
    (LLAMAFACTORY, {"learning_rate": 10**400}, "(expected a finite number)"),
    (TRL, {"pad_to_multiple_of": "x"}, "pad_to_multiple_of: x (expected a number)"),
    (LLAMAFACTORY, {"cutoff_len": float("nan")}, "cutoff_len: nan (expected a finite number)"),
    (AXOLOTL, {"seed": "2024-13-45"}, "seed: 2024-13-45 (expected a number)"),
    (AXOLOTL, {"batch_size": 10, "micro_batch_size": 4}, "batch_size: 10 (expected a multiple of"),
    (AXOLOTL, {"batch_size": 2, "micro_batch_size": 4}, "batch_size: 2 (expected a multiple of"),
    (AXOLOTL, {"special_tokens": {1: 2}}, "(1))"),
    (AXOLOTL, {"datasets": "a.jsonl"}, "datasets: a.jsonl (expected a list of one entry, `- path"),
    (AXOLOTL, {"datasets": {"path": "a"}}, "(expected a list of one entry"),
    (AXOLOTL, {"datasets": [{"path": "https://x.y/a.jsonl"}]}, "a.jsonl (an address: download"),
    (AXOLOTL, {"datasets": [{"path": "~/a.jsonl"}]}, "[0].path: ~/a.jsonl (~ is not expanded"),
    (AXOLOTL, {"datasets": [{"path": "*.jsonl"}]}, "[0].path: *.jsonl (a pattern: give one file"),
    (AXOLOTL, {"datasets": [{"path": "a" * 5000}]}, "no path (File name too long)"),
    (TRL, {"dataset_name": "a" * 5000}, "no path (File name too long)"),
]

CHATS = {"path": "a", "type": "chat_template"}
REFUSALS += [
    (AXOLOTL, {"datasets": [entry]}, message)
    for entry, message in [
        ({"path": "a", "type": ["alpaca"]}, "datasets[0].type: ['alpaca'] (known are"),
        ({"path": "a", "type": {"format": ["x"]}}, "datasets[0].type: {'format': ['x']} (known"),
        ({"path": "a", "type": {"field_instruction": 1, "field_output": ["o"]}}, "[0].type"),
        ({**CHATS, "roles": {"user": 1}}, "datasets[0].roles: {'user': 1} (expected names, each"),
        ({**CHATS, "roles": {"x": None}}, "datasets[0].roles: {'x': None} (expected names"),
        ({**CHATS, "message_property_mappings": {"role": ["from"]}}, "(expected names, each with"),
        ({**CHATS, "message_property_mappings": {1: "from"}}, "(expected names, each with a text)"),
    ]
]


@pytest.mark.parametrize(("base", "more", "message"), REFUSALS)
def test_what_would_train_otherwise_is_refused_by_name(base, more, message):
    with pytest.raises(ValueError, match=r"^theirs\.yaml: ") as error:
        translate(base | more, "theirs.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_that_is_wrong_stands_in_one_message():
    wrong = {"rl": "dpo", "neftune_noise_alpha": 5, "mikro_batch_size": 2, "lora_rnk": 8}
    with pytest.raises(ValueError, match="gradsift does not do") as error:
        translate(AXOLOTL | wrong, "theirs.yaml")
    for key in wrong:
        assert key in str(error.value)
    assert "not known as axolotl's: mikro_batch_size, lora_rnk;" in str(error.value)


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_null_is_not_said(nothing):
    empty = dict.fromkeys(("rl", "lora_model_dir", "chat_template", "no_key_at_all"), nothing)
    assert translate(AXOLOTL | empty, "x") == translate(AXOLOTL, "x")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_is_switched_off_is_no_matter(tool):
    base = BASES[tool.name]
    for off in (False, 0, 0.0):
        file = {
            name: off
            for name, key in tool.keys.items()
            if isinstance(key, Refused) and off in key.off
        }
        assert len(file) > 5
        assert translate(base | file, "x").settings == translate(base, "x").settings


def test_a_learning_rate_of_0_is_not_off():
    with pytest.raises(ValueError, match="embedding_lr_scale: 0"):
        translate(AXOLOTL | {"embedding_lr_scale": 0}, "x")


def test_what_the_command_line_says_wins():
    ours = {
        "data": "other.jsonl",
        "max_length": 16,
        "chat_template": "tokenizer_default",
        "dtype": "float32",
        "sft": {"learning_rate": 0.5},
        "lora": False,
    }
    done = read(AXOLOTL_QLORA.replace("chatml", "unheard_of"), ours)
    assert not done.settings.keys() & {"data", "format", "split", "max_length", "lora", "dtype"}
    assert "learning_rate" not in done.settings["sft"]
    assert "datasets (DATA is said otherwise)" in done.notes[0]


def test_adapters_that_are_asked_for_are_as_the_file_says():
    full = TRL | {"lora_r": 3, "lora_alpha": 5}
    assert "lora" not in translate(full, "x").settings
    assert "lora_r, lora_alpha (without an adapter" in translate(full, "x").notes[0]
    assert translate(full, "x", {"lora": True}).settings["lora"] == {
        "r": 3,
        "lora_alpha": 5,
        "lora_dropout": 0.05,
        "target_modules": None,
    }
    assert translate(full, "x", {"lora": {"r": 4}}).settings["lora"] == {
        "lora_alpha": 5,
        "lora_dropout": 0.05,
        "target_modules": None,
    }


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"base_model": "m", "micro_batch_size": 1}, "axolotl"),
        ({"model_name_or_path": "m", "finetuning_type": "full"}, "LLaMA-Factory"),
        ({"model_name_or_path": "m", "use_peft": True}, "trl"),
        ({"model_name_or_path": "m", "stage": "sft", "template": "x", "max_length": 5},
         "LLaMA-Factory"),
    ],
)  # fmt: skip
def test_the_trainer_is_told_by_its_keys(content, name):
    assert tool_of(content, "x").name == name


@pytest.mark.parametrize("content", [{}, {"lr": 1}, {"model_name_or_path": "m"}])
def test_a_file_of_no_trainer_is_refused_with_what_was_looked_for(content):
    with pytest.raises(
        ValueError, match=r"looked for axolotl: base_model, .*LLaMA-Factory: .*trl: "
    ):
        tool_of(content, "x")


@pytest.mark.parametrize("there", [True, False])
def test_auto_follows_the_device(monkeypatch, there):
    utils = pytest.importorskip("transformers.utils")
    monkeypatch.setattr(utils, "is_torch_bf16_gpu_available", lambda: there)
    done = translate(AXOLOTL | {"bf16": "auto"}, "x")
    assert done.settings["sft"]["bf16"] is there
    assert done.settings["dtype"] == ("bfloat16" if there else "float32")
    assert any("this device has no bf16" in note for note in done.notes) is not there


PRECISIONS = [
    (AXOLOTL, {"bf16": "full"}, ("bfloat16", False, False)),
    (AXOLOTL, {"bf16": False, "fp16": True}, ("float16", False, True)),
    (AXOLOTL, {"bf16": False}, ("float32", False, False)),
    (AXOLOTL, {"bf16": True, "fp16": True}, ("bfloat16", True, False)),
    (AXOLOTL, {"bf16": False, "float16": True}, ("float16", False, False)),
    (LLAMAFACTORY, {"bf16": True}, ("bfloat16", True, False)),
    (LLAMAFACTORY, {"finetuning_type": "full", "bf16": True}, ("float32", True, False)),
    (LLAMAFACTORY, {"finetuning_type": "full", "pure_bf16": True}, ("bfloat16", False, None)),
    (LLAMAFACTORY, {}, ("float32", False, False)),
    (TRL, {"dtype": "float16"}, ("float16", None, None)),
]


@pytest.mark.parametrize(("base", "more", "expected"), PRECISIONS)
def test_precision(base, more, expected):
    settings = translate(base | more, "x").settings
    sft = settings.get("sft", {})
    assert (settings["dtype"], sft.get("bf16"), sft.get("fp16")) == expected


BATCHES = [
    (AXOLOTL, {"sample_packing": True, "group_by_length": True}, "packed"),
    (AXOLOTL, {"sample_packing": False, "group_by_length": True}, "by_length"),
    (AXOLOTL, {"sample_packing": False}, "random"),
    (AXOLOTL, {}, None),
    (LLAMAFACTORY, {"packing": True}, "packed"),
    (LLAMAFACTORY, {"train_sampling_strategy": "group_by_length"}, "by_length"),
    (TRL, {"group_by_length": True}, "by_length"),
]


@pytest.mark.parametrize(("base", "more", "expected"), BATCHES)
def test_batches(base, more, expected):
    done = translate(base | more, "x")
    assert done.settings.get("batching") == expected
    apart = any("kept apart" in note for note in done.notes)
    assert apart is (more == {"packing": True})


WARMUPS = [
    ({"warmup_ratio": 0.1}, 0.1),
    ({"warmup_steps": 5}, 5),
    ({"warmup_steps": 5, "warmup_ratio": 0.1}, 5),
    ({"warmup_steps": 0, "warmup_ratio": 0.1}, 0.1),
    ({"warmup_steps": 0}, 0),
]


@pytest.mark.parametrize("base", [AXOLOTL, LLAMAFACTORY, TRL], ids=["axolotl", "lf", "trl"])
@pytest.mark.parametrize(("more", "expected"), WARMUPS)
def test_warmup(base, more, expected):
    done = translate(base | more, "x")
    assert done.settings["sft"]["warmup_steps"] == expected
    told = [note for note in done.notes if "comes before it" in note]
    assert len(told) == len(more) - 1


def test_two_names_of_one_setting_must_agree():
    assert translate(TRL | {"max_seq_length": 64}, "x").settings["max_length"] == 64
    with pytest.raises(ValueError, match=r"max_seq_length: 63 \(another key says 64"):
        translate(TRL | {"max_seq_length": 63}, "x")
    with pytest.raises(ValueError, match="load_in_4bit: true"):
        translate(TRL | {"load_in_8bit": True, "load_in_4bit": True}, "x")


def test_quantised_weights():
    assert translate(AXOLOTL | {"adapter": "qlora"}, "x").settings["load_in"] == "4bit"
    assert translate(AXOLOTL | {"load_in_8bit": True}, "x").settings["load_in"] == "8bit"
    assert translate(LLAMAFACTORY | {"quantization_bit": 8}, "x").settings["load_in"] == "8bit"
    assert translate(TRL | {"load_in_4bit": True}, "x").settings["load_in"] == "4bit"
    assert "load_in" not in translate(TRL | {"load_in_4bit": False}, "x").settings


TURNS = {"type": "chat_template", "message_field_training": "weight", "field_tools": "tools"}
SHAREGPT = {
    "type": "chat_template",
    "field_messages": "conversations",
    "message_property_mappings": {"role": "from", "content": "value"},
    "roles": {"user": ["human"], "assistant": ["gpt"]},
}
FIELDS = {
    "field_instruction": "question",
    "field_output": "answer",
    "field_system": "hint",
    "format": "{instruction}",
    "no_input_format": "{instruction}",
}


@pytest.mark.parametrize(
    ("entry", "row_format"),
    [
        (TURNS, "messages"),
        (SHAREGPT, "sharegpt"),
        ({"type": "completion", "field": "text"}, "text"),
        ({"type": "alpaca"}, "alpaca"),
        ({"type": FIELDS}, "qa"),
    ],
)
def test_row_formats_of_axolotl(entry, row_format):
    entry = {"path": "rows.jsonl", "ds_type": "json", **entry}
    done = translate(AXOLOTL | {"datasets": [entry]}, "x").settings
    assert (done["data"], done["format"]) == ("rows.jsonl", row_format)
    if row_format == "qa":
        assert (done["prompt_column"], done["response_column"]) == ("question", "answer")
        assert done["system_column"] == "hint"


def test_batch_size_in_all():
    done = translate(AXOLOTL | {"batch_size": 8, "micro_batch_size": 2}, "x")
    assert done.settings["sft"]["gradient_accumulation_steps"] == 4


def test_batch_size_in_all_with_a_micro_batch_of_the_command_line():
    file = AXOLOTL | {"batch_size": 8, "micro_batch_size": 3}
    done = translate(file, "x", {"sft": {"per_device_train_batch_size": 4}})
    assert done.settings["sft"]["gradient_accumulation_steps"] == 2
    with pytest.raises(ValueError, match="multiple of the micro-batch's 5 rows"):
        translate(file, "x", {"sft": {"per_device_train_batch_size": 5}})
    both = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 7}
    assert "gradient_accumulation_steps" not in translate(file, "x", {"sft": both}).settings["sft"]


@pytest.mark.parametrize("file", [AXOLOTL | {"adapter": "lora"}, LLAMAFACTORY, TRL], ids=str)
def test_all_parameters_where_the_command_line_says_so(file):
    file |= {"lora_r" if "stage" not in file else "lora_rank": 4, "bf16": True}
    done = translate(file, "x", {"lora": False})
    assert "lora" not in done.settings
    assert any("(`lora: false` trains all parameters)" in note for note in done.notes)
    if "stage" in file:
        assert done.settings["dtype"] == "float32"
        assert translate(file, "x").settings["dtype"] == "bfloat16"


def test_what_the_command_line_says_otherwise_is_named():
    file = LLAMAFACTORY | {"learning_rate": 1e-4, "template": "chatml", "val_size": 0.1}
    ours = {"sft": {"learning_rate": 1e-5}, "chat_template": "chatml", "max_length": 8}
    notes = translate(file, "x", ours).notes
    note = next(note for note in notes if "otherwise by `config`" in note)
    assert note.endswith(": cutoff_len, learning_rate, template")
    assert not any("otherwise by `config`" in note for note in translate(file, "x").notes)


def test_a_learning_rate_that_axolotl_would_ask_for_is_told():
    file = {key: value for key, value in AXOLOTL.items() if key != "learning_rate"}
    told = "learning_rate: is not said: trl's default is taken"
    assert any(told in note for note in translate(file, "x").notes)
    assert not any(told in note for note in translate(AXOLOTL, "x").notes)
    ours = {"sft": {"learning_rate": 1e-5}}
    assert not any(told in note for note in translate(file, "x", ours).notes)


def test_auto_without_bf16_says_what_axolotl_would_do(monkeypatch):
    utils = pytest.importorskip("transformers.utils")
    monkeypatch.setattr(utils, "is_torch_bf16_gpu_available", lambda: False)
    told = "bf16: auto: this device has no bf16, so float32 is taken; axolotl takes fp16"
    assert any(told in note for note in translate(AXOLOTL, "x").notes)
    assert not any(told in note for note in translate(AXOLOTL | {"bf16": False}, "x").notes)
    assert not any(told in note for note in translate(AXOLOTL | {"fp16": True}, "x").notes)


YAML_MISTAKES = [
    ("seed: 1\nmax_length: 5\nseed: 2\n", "seed is said twice, in line 1 and in line 3"),
    ("sft:\n  optim: a\n  optim: b\n", "optim is said twice, in line 2 and in line 3"),
    ("seed: 1\n---\nseed: 2\n", "a second YAML document begins in line 2"),
    ("seed: 2024-13-45\n", "`seed` is '2024-13-45'"),
    ("a: " + "[" * 5000 + "]" * 5000, "nested more than 100 levels deep"),
]


@pytest.mark.parametrize(("content", "message"), YAML_MISTAKES, ids=range(len(YAML_MISTAKES)))
def test_mistakes_in_a_file_are_refused_by_key_and_line(tmp_path, content, message):
    file = tmp_path / "ours.yaml"
    file.write_text(content)
    given = {"data": "d", "model": "m", "out": "o"}
    with pytest.raises(ValueError, match=message) as error:
        resolve(given, file)
    assert str(error.value).startswith(str(file))
    file.write_text("base_model: m\nsequence_len: 8\n" + content)
    with pytest.raises(ValueError, match=str(file)):
        resolve(given, None, file)


def test_merged_keys_may_be_said_again(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("sft: &a {optim: sgd, seed: 1}\nlora: {<<: *a, r: 2, seed: 3}\n")
    config = resolve({"data": "d", "model": "m", "out": "o"}, file)
    assert config.lora == {"optim": "sgd", "seed": 3, "r": 2}


def test_our_own_file_goes_to_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: d\nmodel: m\nout: o\nmax_length: 5\n")
    with pytest.raises(ValueError, match="settings of gradsift's own: use `config`"):
        resolve({}, None, file)


def test_all_parameters_over_weights_in_4_bits(tmp_path):
    file = tmp_path / "theirs.yaml"
    file.write_text("base_model: m\nadapter: qlora\nlearning_rate: 1\n")
    given = {"data": "d", "out": "o", "lora": False}
    with pytest.raises(ValueError, match="take `lora: false` or `load_in` out"):
        resolve(given, None, file)


def test_the_first_rows_of_a_file_that_has_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.jsonl"}}))
    Path("data/mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    file = LLAMAFACTORY | {"dataset": "mine", "max_samples": 3}
    assert translate(file, "x").settings["data"] == "mine"
    with pytest.raises(ValueError, match="max_samples: 2"):
        translate(file | {"max_samples": 2}, "x")
    # DATA of the command line counts as well.
    ours = {"data": "data/mine.jsonl"}
    assert "dataset_info" not in translate(file, "x", ours).settings
    with pytest.raises(ValueError, match="max_samples: 2"):
        translate(file | {"max_samples": 2}, "x", ours)


def test_a_local_file_of_trl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    mixture = {"datasets": [{"path": "json", "data_files": "rows.jsonl", "split": "train"}]}
    settings = translate({"use_peft": False, "max_length": 5} | mixture, "x").settings
    assert settings["data"] == "rows.jsonl"
    assert "split" not in settings
    mixture["datasets"][0]["split"] = "test"
    with pytest.raises(ValueError, match="a file has no splits"):
        translate({"use_peft": False, "max_length": 5} | mixture, "x")


def test_resolve_puts_three_together(tmp_path, caplog):
    caplog.set_level("INFO", "gradsift")
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(AXOLOTL_QLORA)
    ours.write_text("max_length: 300\nsft: {weight_decay: 0.5}\nlora: {r: 2}\n")
    given = {"data": "rows.jsonl", "out": "o", "sft": {"warmup_steps": 1}, "max_length": None}
    config = resolve(given, ours, theirs)
    assert config.max_length == 300
    assert config.sft["weight_decay"] == pytest.approx(0.5)
    assert config.sft["warmup_steps"] == 1
    # 2e-4 is a number, as people mean it.
    assert config.sft["learning_rate"] == pytest.approx(2e-4)
    assert config.lora == {
        "r": 2,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    assert (config.load_in, config.batching, config.data) == ("4bit", "packed", "rows.jsonl")
    assert len(caplog.messages) == 5
    overridden = "command line: sequence_len, lora_r, weight_decay, warmup_steps"
    assert caplog.messages[2].endswith(overridden)
    assert resolve({"data": "r", "out": "o", "lora": True}, None, theirs).lora["r"] == 32
    theirs.write_text(AXOLOTL_QLORA.replace("qlora", "lora").replace("4bit: true", "4bit: false"))
    assert resolve({"data": "r", "out": "o", "lora": False}, None, theirs).lora is False
