"""A capture by another trainer's configuration equals the one by the same settings, by hand."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

from test_cli import invoke
from tiny import save_tiny

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMAFACTORY = """
model_name_or_path: model
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: mine
dataset_dir: data
template: qwen3_nothink
cutoff_len: 128
max_samples: 1000
output_dir: saves/mine
logging_steps: 10
plot_loss: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-2
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
report_to: none
"""
LLAMAFACTORY_BY_HAND = {
    "format": "alpaca",
    "max_length": 128,
    "dtype": "bfloat16",
    "seed": 42,
    "sft": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "bf16": True,
    },
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
}

TRL = """
model_name_or_path: model
dataset_name: rows.jsonl
dtype: float32
learning_rate: 1.0e-3
per_device_train_batch_size: 4
lr_scheduler_type: constant_with_warmup
warmup_steps: 2
weight_decay: 0.1
optim: adamw_torch
max_grad_norm: 0.5
bf16: false
max_length: 64
completion_only_loss: true
seed: 7
num_train_epochs: 2
output_dir: out
"""
TRL_BY_HAND = {
    "max_length": 64,
    "seed": 7,
    "sft": {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "optim": "adamw_torch",
        "max_grad_norm": 0.5,
    },
}

AXOLOTL = """
base_model: model
datasets:
  - path: data/mine.json
    type: alpaca
adapter: qlora
load_in_4bit: true
sequence_len: 128
sample_packing: true
lora_r: 4
lora_alpha: 8
lora_dropout: 0.0
lora_target_linear: true
micro_batch_size: 4
gradient_accumulation_steps: 1
num_epochs: 3
learning_rate: 1.0e-2
lr_scheduler: cosine
optimizer: adamw_torch
bf16: false
flash_attention: true
output_dir: out
"""
AXOLOTL_BY_HAND = {
    "format": "alpaca",
    "max_length": 128,
    "truncation": "drop",
    "seed": 42,
    "load_in": "4bit",
    "batching": "packed",
    "sft": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "bf16": False,
        "warmup_steps": 0.03,  # axolotl's own default.
    },
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny("model", chat_template=CHATML)
    answers = ["red green blue cat "[: 4 + i % 9] * (1 + i % 3) for i in range(12)]
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"instruction": f"what is {i}?", "input": "", "output": a} for i, a in enumerate(answers)
    ]
    (data / "mine.json").write_text(json.dumps(rows))
    (data / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    pairs = [{"prompt": f"what is {i}?", "completion": a} for i, a in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path


def recorded(folder):
    parts = sorted((folder / "gradients").glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert rows
    return rows


@pytest.mark.parametrize(
    ("theirs", "by_hand", "data"),
    [
        (LLAMAFACTORY, LLAMAFACTORY_BY_HAND, "data/mine.json"),
        (TRL, TRL_BY_HAND, "rows.jsonl"),
        (AXOLOTL, AXOLOTL_BY_HAND, "data/mine.json"),
    ],
    ids=["LLaMA-Factory", "trl", "axolotl QLoRA, packed"],
)
def test_the_records_are_those_of_the_same_settings_by_hand(here, capsys, theirs, by_hand, data):
    if "load_in" in by_hand:
        pytest.importorskip("bitsandbytes")
    (here / "theirs.yaml").write_text(theirs)
    (here / "ours.yaml").write_text(yaml.safe_dump(by_hand | {"model": "model", "data": data}))
    for slower in (False, True):
        command = ["capture", "--out", f"hand{slower}", "--config", "ours.yaml"]
        command += ["--sft", "learning_rate=1e-5"] if slower else []
        code, _, err = invoke(capsys, *command)
        assert code == 0, err
    code, _, err = invoke(capsys, "capture", "--trainer-config", "theirs.yaml", "--out", "file")
    assert code == 0, err
    assert err.count("theirs.yaml: read as a configuration of") == 1
    assert "num_train_epochs" in err or "num_epochs" in err
    assert recorded(here / "file") == recorded(here / "handFalse")
    if "load_in" in by_hand:
        about = json.loads((here / "file/manifest.json").read_text())["about"]
        assert about["batching"] == "packed"
        assert "nf4" in json.dumps(about)
    # The comparison can fail: another learning rate gives other records.
    assert recorded(here / "file") != recorded(here / "handTrue")
    # The run folder needs the trainer's file no longer.
    code, _, err = invoke(capsys, "capture", "--config", "file/config.yaml")
    assert code == 0, err
    assert "nothing to do" in err


def test_run_takes_it_and_the_command_line_wins(here, capsys):
    (here / "theirs.yaml").write_text(LLAMAFACTORY.replace("qwen3_nothink", "unheard_of"))
    command = ["run", "rows.jsonl", "--trainer-config", "theirs.yaml", "--out", "run", "--full"]
    command += ["--budget", "50%", "--set", "chat_template=tokenizer_default", "--dtype", "float32"]
    code, out, err = invoke(capsys, *command, "--sft", "bf16=false", "--json")
    assert code == 0, err
    assert json.loads(out)["selected"] == 6
    config = yaml.safe_load((here / "run/config.yaml").read_text())
    assert (config["lora"], config["dataset_info"]) == (False, None)
    assert config["chat_template"] == "tokenizer_default"
    assert "LLaMA-Factory does: seed 42" in err


@pytest.mark.parametrize("option", ["--config", "--trainer-config"])
@pytest.mark.parametrize("command", ["run", "capture", "check"])
def test_a_file_that_is_named_twice_is_refused(here, capsys, option, command):
    (here / "theirs.yaml").write_text(LLAMAFACTORY)
    files = [option, "theirs.yaml", option, "other.yaml"]
    code, _, err = invoke(capsys, command, *files)
    assert code == 2
    assert f"{option} is given 2 times (theirs.yaml, other.yaml): expected one file." in err


MISTAKES = [
    (LLAMAFACTORY.replace("sft", "dpo"), "stage: dpo (gradsift records supervised fine-tuning"),
    (LLAMAFACTORY + "lora_rnk: 3\nneat_pack: true", "lora_rnk, neat_pack; correct them"),
    (LLAMAFACTORY.replace("qwen3_nothink", "llama3"), "chat_template is 'llama3', which writes"),
    (LLAMAFACTORY.replace("max_samples: 1000", "max_samples: 11"), "max_samples: 11 (all rows"),
    (LLAMAFACTORY.replace("dataset: mine", "dataset: yours"), "no dataset 'yours'; there are"),
    ("learning_rate: 1", "no known trainer; looked for axolotl"),
    ("- a\n- b", "found list, expected settings"),
    ("a: !!python/object/apply:os.getcwd []", "not YAML"),
]


@pytest.mark.parametrize(("theirs", "message"), MISTAKES)
def test_a_mistake_is_one_line(here, capsys, theirs, message):
    (here / "theirs.yaml").write_text(theirs)
    code, _, err = invoke(capsys, "capture", "--trainer-config", "theirs.yaml", "--out", "o")
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("gradsift: ")
    assert message in last
    assert not (here / "o").exists()
