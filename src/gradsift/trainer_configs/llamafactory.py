"""Keys of LLaMA-Factory's arguments: model, data, method, and transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradsift.data.containers.rows import read_rows
from gradsift.data.containers.sources import find_source
from gradsift.data.dataset_configs import read_dataset_info
from gradsift.trainer_configs.keys import Joint, OneOf, Reading, Setting, Tool, each, same, table
from gradsift.trainer_configs.shared import (
    NO_CLIPPING,
    ONE_FILE,
    TRAINED_WEIGHTS,
    TRAINING_ARGUMENTS,
    batching,
    lora,
    set_data,
    trains_adapters,
    warmup,
)
from gradsift.trainer_configs.values import flag, integer, names, number, text

# Its names of templates → the same under the names of data/chat_templates.py.
TEMPLATES = {
    "chatml": "chatml",
    "qwen3_nothink": "chatml",
    "smollm": "chatml",
    "qwen": "qwen",
    "smollm2": "smollm2",
    "llama3": "llama3",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "phi": "phi",
    "phi4": "phi4",
    "granite3": "granite3",
}
TEMPLATE = (
    "rows are rendered by the model's own chat template, which is compared with these: "
    f"{', '.join(TEMPLATES)}; `chat_template: tokenizer_default` takes it as it is"
)

LLAMAFACTORY_KEYS = table(
    "LLaMA-Factory",
    {
        **TRAINING_ARGUMENTS,
        # Model
        "model_name_or_path": Setting("model", text),
        "model_revision": Setting("revision", text),
        "disable_gradient_checkpointing": OneOf(
            {
                True: {"sft.gradient_checkpointing": False},
                False: {"sft.gradient_checkpointing": True},
            },
            "expected true or false",
        ),
        # Quantisation
        "quantization_bit": OneOf(
            {4: {"load_in": "4bit"}, 8: {"load_in": "8bit"}}, "weights are loaded in 4 or 8 bits"
        ),
        "quantization_method": OneOf({"bnb": {}}, "weights are quantised by bitsandbytes: bnb"),
        "quantization_type": OneOf({"nf4": {}}, "4-bit weights are nf4"),
        # Precision
        **each("bf16 fp16 pure_bf16", Joint("sft.bf16, sft.fp16, dtype", flag)),
        # Method
        "stage": OneOf({"sft": {}}, "gradsift records supervised fine-tuning; known is sft"),
        "finetuning_type": Joint("lora"),
        "lora_rank": Setting("lora.r", integer),
        "lora_alpha": Joint("lora.lora_alpha", number),
        "lora_dropout": Setting("lora.lora_dropout", number),
        "lora_target": Joint("lora.target_modules", names),
        "additional_target": Setting("lora.modules_to_save", names),
        **same("use_rslora use_dora", "lora.", flag),
        # Data
        "template": OneOf(
            {name: {"chat_template": known} for name, known in TEMPLATES.items()}, TEMPLATE
        ),
        "dataset": Joint("data", names),
        "dataset_dir": Joint("dataset_info", text),
        "max_samples": Joint("nothing, where the file has no more rows", integer),
        "cutoff_len": Setting(
            "max_length",
            integer,
            "longer rows keep their beginning (`truncation`); LLaMA-Factory shortens prompt and "
            "answer",
        ),
        "mask_history": OneOf({True: {"train_on": "last"}, False: {}}, "expected true or false"),
        **each("packing neat_packing", Joint("batching", flag)),
        "ignore_pad_token_for_loss": OneOf({True: {}}, "padding is never trained on"),
    },
)


def _join(reading: Reading) -> None:
    values = reading.values
    method = values.get("finetuning_type")
    if method not in ("lora", "full"):
        reading.refuse(
            "finetuning_type",
            f"{TRAINED_WEIGHTS}, by an optimizer of transformers; known are lora and full",
        )
    targets = values.get("lora_target", ["all"])
    adapters = trains_adapters(reading, method == "lora")
    lora(
        reading,
        with_adapters=adapters,
        keys=LLAMAFACTORY_KEYS,
        targets="all-linear" if targets == ["all"] else targets,
    )
    if adapters:
        rank = reading.settings.get("lora.r", 8)
        reading.set("lora.lora_alpha", values.get("lora_alpha", 2 * rank))
    _precision(reading, adapters=adapters)
    warmup(reading)
    packing = values.get("packing") or values.get("neat_packing")
    batching(
        reading,
        packing=packing if packing else values.get("packing"),
        sees_others=not values.get("neat_packing"),
    )
    _data(reading)


def _precision(reading: Reading, *, adapters: bool) -> None:
    # LLaMA-Factory loads the weights in the type that is computed in, and keeps what it trains in
    # float32.
    values = reading.values
    if values.get("pure_bf16"):
        if adapters:
            reading.refuse("pure_bf16", "adapters are kept in float32; say bf16: true")
        reading.set("dtype", "bfloat16")
        reading.set("sft.bf16", False)
        return
    if values.get("bf16") and values.get("fp16"):
        reading.refuse("fp16", "bf16 is true as well; take one")
    computed = "bfloat16" if values.get("bf16") else "float16" if values.get("fp16") else "float32"
    reading.set("sft.bf16", computed == "bfloat16")
    reading.set("sft.fp16", computed == "float16")
    reading.set("dtype", computed if adapters else "float32")


def _data(reading: Reading) -> None:
    values = reading.values
    if reading.is_taken("data"):
        reading.decided |= {
            key: "DATA is said otherwise" for key in ("dataset", "dataset_dir") if key in values
        }
        if "max_samples" in values:
            data = reading.taken["data"]
            _require_few(reading, data if isinstance(data, list | tuple) else [data])
        return
    if "dataset" not in values:
        others = [key for key in ("dataset_dir", "max_samples") if key in values]
        reading.decided |= dict.fromkeys(others, "no dataset is named")
        return
    datasets = values["dataset"]
    if len(datasets) != 1:
        reading.refuse("dataset", ONE_FILE)
        return
    folder = values.get("dataset_dir", "data")
    if folder == "ONLINE":
        set_data(reading, datasets[0], "")
    elif folder.startswith("REMOTE:"):
        reading.refuse("dataset_dir", "a dataset_info.json of this machine is read, or none")
    else:
        reading.set("data", datasets[0])
        reading.set("dataset_info", str(Path(folder) / "dataset_info.json"))
    if "max_samples" in values:
        file = datasets[0]
        if reading.settings.get("dataset_info"):
            file = read_dataset_info(reading.settings["dataset_info"], file).data
        _require_few(reading, [] if file is None else [file])


def _require_few(reading: Reading, files: Sequence[str]) -> None:
    # The first rows of a file that has no more are all of them.
    limit = reading.values["max_samples"]
    if files and all(Path(file).is_file() for file in files):
        n_rows = sum(1 for _ in read_rows(find_source(files, None)))
        if n_rows <= limit:
            return
    reading.refuse(
        "max_samples",
        "all rows are captured: put the first ones into a file of their own, or take it out",
    )


LLAMAFACTORY = Tool(
    "LLaMA-Factory",
    "stage finetuning_type template cutoff_len dataset dataset_dir lora_rank lora_target",
    LLAMAFACTORY_KEYS,
    {
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_dropout": 0.0,
        "cutoff_len": 2048,
        "learning_rate": 5e-5,
        "seed": 42,
    },
    _join,
    {"max_grad_norm": NO_CLIPPING},
)
