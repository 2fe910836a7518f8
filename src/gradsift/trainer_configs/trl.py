"""Keys of trl's SFT script: SFTConfig, ModelConfig, ScriptArguments and a mixture of datasets."""

from __future__ import annotations

from gradsift.config import ModelConfig
from gradsift.schema import choices_of
from gradsift.trainer_configs.keys import Joint, OneOf, Reading, Setting, Tool, each, same, table
from gradsift.trainer_configs.shared import (
    LOSS,
    NO_CLIPPING,
    TRAINING_ARGUMENTS,
    batching,
    lora,
    one_dataset,
    set_data,
    trains_adapters,
    warmup,
)
from gradsift.trainer_configs.values import flag, integer, names, number, text

DTYPES = choices_of(ModelConfig, "dtype")
# trl trains on whole conversations unless told otherwise.
WHOLE = (
    "gradsift trains on answers only (`text` rows: on every token). Take the key out to have it "
    "so, or say true"
)
NO_LIMIT = "no row would be cut: say how long the longest is, here or by `max_length`"

_dtype = OneOf(
    {name: {"dtype": name} for name in DTYPES},
    f"expected one of {', '.join(DTYPES)}; `dtype` says one",
)
_length = Setting("max_length", integer)

TRL_KEYS = table(
    "trl",
    {
        **TRAINING_ARGUMENTS,
        # ModelConfig
        "model_name_or_path": Setting("model", text),
        "model_revision": Setting("revision", text),
        "dtype": _dtype,
        "torch_dtype": _dtype,
        "use_peft": Joint("lora", flag),
        "lora_r": Setting("lora.r", integer),
        "lora_alpha": Setting("lora.lora_alpha", number),
        "lora_dropout": Setting("lora.lora_dropout", number),
        "lora_target_modules": Joint("lora.target_modules", names),
        "lora_target_parameters": Setting("lora.target_parameters", names),
        "lora_modules_to_save": Setting("lora.modules_to_save", names),
        "lora_task_type": OneOf({"CAUSAL_LM": {}}, "causal language models only"),
        **same("use_rslora use_dora", "lora.", flag),
        "load_in_8bit": OneOf({True: {"load_in": "8bit"}, False: {}}, "expected true or false"),
        "load_in_4bit": OneOf({True: {"load_in": "4bit"}, False: {}}, "expected true or false"),
        "bnb_4bit_quant_type": OneOf({"nf4": {}}, "4-bit weights are nf4"),
        # ScriptArguments, DatasetMixtureConfig
        "dataset_name": Joint("data", text),
        "datasets": Joint("data, split"),
        "dataset_train_split": Joint("split", text),
        # SFTConfig
        **same("chat_template_path eos_token pad_token", "sft.", text),
        "dataset_text_field": OneOf(
            {"text": {}}, "say `format: text` and `prompt_column` with its name"
        ),
        "max_length": _length,
        "max_seq_length": _length,
        "truncation_mode": OneOf(
            {mode: {"truncation": mode} for mode in ("keep_start", "keep_end")},
            "known are keep_start and keep_end",
        ),
        "packing": Joint("batching", flag),
        "packing_strategy": Joint("batching", text),
        "pad_to_multiple_of": Setting("sft.pad_to_multiple_of", integer),
        "completion_only_loss": OneOf({True: {}}, WHOLE),
        "assistant_only_loss": OneOf({True: {}}, WHOLE),
        "loss_type": OneOf({"nll": {}, "chunked_nll": {}}, LOSS),
        "activation_offloading": Setting("sft.activation_offloading", flag),
    },
)

# Of an entry of `datasets`.
ENTRY_KEYS = table(
    "trl datasets",
    {**each("path data_files", Joint("data")), "split": Joint("split", text)},
)


def _join(reading: Reading) -> None:
    values = reading.values
    targets = values.get("lora_target_modules")
    targets = targets[0] if targets == ["all-linear"] else targets
    with_adapters = trains_adapters(reading, bool(values.get("use_peft")))
    lora(reading, with_adapters=with_adapters, keys=TRL_KEYS, targets=targets)
    warmup(reading)
    packing_strategy = values.get("packing_strategy", "bfd")
    if packing_strategy not in ("bfd", "bfd_split", "wrapped"):
        reading.refuse("packing_strategy", "known are bfd, bfd_split and wrapped")
    if packing_strategy != "bfd" and values.get("packing"):
        reading.remarks["packing_strategy"] = "no row is cut in two; longer ones: `truncation`"
    batching(reading, packing=values.get("packing"), sees_others=packing_strategy == "wrapped")
    if "assistant_only_loss" not in values and not reading.is_taken("train_on"):
        reading.remarks["assistant_only_loss"] = (
            "is not said: of conversations gradsift trains on the assistant's turns, trl on all"
        )
    _data(reading)


def _data(reading: Reading) -> None:
    values = reading.values
    given = [key for key in ("dataset_name", "datasets", "dataset_train_split") if key in values]
    if reading.is_taken("data"):
        reading.decided |= dict.fromkeys(given, "DATA is said otherwise")
    elif "datasets" in values:
        one_dataset(reading, "datasets", ENTRY_KEYS)
        reading.decided |= dict.fromkeys(set(given) - {"datasets"}, "datasets comes before it")
    elif "dataset_name" in values:
        set_data(reading, values["dataset_name"], "dataset_train_split")
    else:
        reading.decided |= dict.fromkeys(given, "no dataset is named")


TRL = Tool(
    "trl",
    "dataset_name use_peft max_length max_seq_length dtype packing_strategy assistant_only_loss",
    TRL_KEYS,
    {"seed": 42, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
    _join,
    {"max_length": NO_LIMIT, "max_seq_length": NO_LIMIT, "max_grad_norm": NO_CLIPPING},
)
