"""What axolotl's keys say together: adapters, precision, steps, and the rows of its dataset."""

from __future__ import annotations

from typing import Any

from gradsift.data.chat_templates import TOKENIZER_DEFAULT
from gradsift.data.formats import SHAREGPT_ROLES
from gradsift.trainer_configs.axolotl_keys import AXOLOTL_KEYS, ENTRY_KEYS, MICRO_BATCH
from gradsift.trainer_configs.keys import EMPTY, Reading, Tool
from gradsift.trainer_configs.shared import (
    SPEED,
    TRAINED_WEIGHTS,
    batching,
    lora,
    one_dataset,
    trains_adapters,
    warmup,
)

TYPES = "alpaca, chat_template, completion, and sharegpt as it was"
TOKENS = (
    "the tokenizer is the model's own: take out what it has already, add the rest to its folder"
)
# Plugins that make training faster and change nothing else.
PLUGINS = (
    "axolotl.integrations.liger.LigerPlugin",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
    "axolotl.integrations.kernels.KernelsPlugin",
    "axolotl.integrations.lm_eval.LMEvalPlugin",
    "axolotl.integrations.swanlab.SwanLabPlugin",
    "axolotl.integrations.expert_parallel.ExpertParallelPlugin",
)


def _join(reading: Reading) -> None:
    values = reading.values
    for key in ("base_model_config", "tokenizer_config"):
        if values.get(key, values.get("base_model")) != values.get("base_model"):
            reading.refuse(key, "must be that of base_model")
    for key in ("model_type", "type_of_model", "cls_model_config"):
        if key in values and not str(values[key]).endswith(("ForCausalLM", "Config")):
            reading.refuse(key, "causal language models only")
    _tokens_and_plugins(reading)
    _adapter(reading)
    _precision(reading)
    _steps(reading)
    batching(reading, packing=values.get("sample_packing"), sees_others=False)
    if "datasets" not in values:
        return
    if reading.is_taken("data"):
        reading.decided["datasets"] = "DATA is said otherwise"
        return
    entry = one_dataset(reading, "datasets", ENTRY_KEYS)
    if entry is not None:
        _format(reading, entry.values)


def _tokens_and_plugins(reading: Reading) -> None:
    tokens = reading.values.get("special_tokens", {})
    others = [key for key in tokens if key != "pad_token" and tokens[key] not in EMPTY]
    if others:
        reading.refuse("special_tokens", f"{TOKENS} ({', '.join(map(str, others))})")
    elif tokens:
        reading.decided["special_tokens"] = "padding is never trained on"
    plugins = reading.values.get("plugins", [])
    others = [plugin for plugin in plugins if plugin not in PLUGINS]
    if others:
        reading.refused[f"plugins: {', '.join(others)}"] = f"known are {', '.join(PLUGINS)}"
    elif plugins:
        reading.decided["plugins"] = SPEED


def _adapter(reading: Reading) -> None:
    values = reading.values
    adapter = values.get("adapter")
    if adapter not in (None, "lora", "qlora"):
        reading.refuse("adapter", f"{TRAINED_WEIGHTS}; take it out; known are lora and qlora")
    targets = values.get("lora_target_modules")
    if values.get("lora_target_linear"):
        targets = "all-linear"
    with_adapters = trains_adapters(reading, adapter is not None)
    lora(reading, with_adapters=with_adapters, keys=AXOLOTL_KEYS, targets=targets)
    in_4_bits = values.get("load_in_4bit", adapter == "qlora")
    if in_4_bits and values.get("load_in_8bit"):
        reading.refuse("load_in_8bit", "load_in_4bit is true as well; take one")
    elif adapter == "qlora" and not in_4_bits:
        reading.refuse("load_in_4bit", "adapter: qlora has weights in 4 bits; say adapter: lora")
    elif in_4_bits or values.get("load_in_8bit"):
        reading.set("load_in", "4bit" if in_4_bits else "8bit")


def _precision(reading: Reading) -> None:
    # axolotl loads the weights in the type that is computed in; bf16 comes before the others.
    values = reading.values
    bf16 = values.get("bf16", False)
    if bf16 == "auto":
        from transformers.utils import is_torch_bf16_gpu_available

        bf16 = is_torch_bf16_gpu_available()
        halved = values.get("fp16") or values.get("float16") or values.get("bfloat16")
        if not bf16 and not halved and not reading.is_taken("dtype"):
            reading.remarks["bf16"] = (
                "auto: this device has no bf16, so float32 is taken; axolotl takes fp16 (fp16: "
                "true says so)"
            )
    bf16 = bf16 or values.get("bfloat16", False)
    fp16 = values.get("fp16", False) and not bf16
    half = fp16 or values.get("float16", False)
    reading.set("sft.bf16", bf16 is True)
    reading.set("sft.fp16", fp16)
    reading.set("dtype", "bfloat16" if bf16 else "float16" if half else "float32")
    used = ("bf16", "bfloat16") if bf16 else ("fp16", "float16") if half else ("float32",)
    for key in ("fp16", "float16", "float32"):
        if values.get(key) and key not in used:
            reading.decided[key] = f"{' or '.join(used)} comes before it"
    if values.get("tf32", "auto") != "auto":
        reading.set("sft.tf32", values["tf32"])
    checkpointing = values.get("gradient_checkpointing")
    if checkpointing is not None:
        # offload, offload_disk, unsloth: where what is kept lies.
        reading.set("sft.gradient_checkpointing", bool(checkpointing))


def _steps(reading: Reading) -> None:
    values = reading.values
    accumulation = values.get("gradient_accumulation_steps")
    if accumulation is None and "batch_size" in values:
        accumulation = _accumulation(reading)
    if accumulation is not None:
        reading.set("sft.gradient_accumulation_steps", accumulation)
        if "batch_size" in values and "gradient_accumulation_steps" in values:
            reading.decided["batch_size"] = "gradient_accumulation_steps comes before it"
    warmup(reading)
    if "learning_rate" not in values and not reading.is_taken("sft.learning_rate"):
        reading.remarks["learning_rate"] = "is not said: trl's default is taken"


def _accumulation(reading: Reading) -> int | None:
    # The command line may say the micro-batch, and then the file's own does not count.
    whole, micro = reading.values["batch_size"], reading.settings.get(MICRO_BATCH)
    if reading.is_taken(MICRO_BATCH):
        micro = reading.taken.get(MICRO_BATCH)
    if reading.is_taken("sft.gradient_accumulation_steps"):
        return None
    if not isinstance(micro, int) or micro < 1:
        return None  # It is refused itself.
    if whole < micro or whole % micro:
        reading.refuse(
            "batch_size",
            f"expected a multiple of the micro-batch's {micro} rows; or say "
            "gradient_accumulation_steps",
        )
        return None
    return whole // micro


def _format(reading: Reading, entry: Any) -> None:
    """Set the row format that an entry of `datasets` names."""
    kind = entry.get("type")
    if isinstance(kind, dict):
        _columns(reading, kind)
        return
    formats = {"alpaca": "alpaca", "completion": "text", "sharegpt": "sharegpt"}
    if kind == "chat_template":
        _turns(reading, entry)
    elif isinstance(kind, str) and kind in formats:
        reading.set("format", formats[kind])
    else:
        reading.refused[f"datasets[0].type: {kind}"] = f"known are {TYPES}"
    if kind == "alpaca":
        _own_prompt(reading)
    trained = entry.get("roles_to_train", ["assistant"])
    if not set(trained) <= {"assistant", "gpt"} or not trained:
        reading.refused[f"datasets[0].roles_to_train: {trained}"] = "answers only are trained on"


def _own_prompt(reading: Reading) -> None:
    reading.remarks["datasets[0].type"] = (
        "rows are rendered by the model's own chat template, not by axolotl's prompt for them"
    )


def _turns(reading: Reading, entry: Any) -> None:
    if not reading.is_taken("chat_template"):
        reading.settings.setdefault("chat_template", TOKENIZER_DEFAULT)
    messages = entry.get("field_messages", "messages")
    mapping = entry.get("message_property_mappings", {})
    role = mapping.get("role", entry.get("message_field_role", "role"))
    content = mapping.get("content", entry.get("message_field_content", "content"))
    others = [
        key for key, name in mapping.items() if key not in ("role", "content") and key != name
    ]
    tags = (role, content)
    row_format = (
        "messages" if messages == "messages" and tags == ("role", "content") else "sharegpt"
    )
    if (
        messages not in ("messages", "conversations")
        or tags not in (("role", "content"), ("from", "value"))
        or others
    ):
        turns = f"datasets[0]: turns in {messages}, of {', '.join((role, content, *others))}"
        reading.refused[turns] = (
            "turns are read from messages or conversations, of role and content or of from and "
            "value"
        )
    for target, words in entry.get("roles", {}).items():
        known = {"messages": {target: target}, "sharegpt": SHAREGPT_ROLES}[row_format]
        odd = [word for word in words if known.get(word, word) != target]
        if odd:
            reading.refused[f"datasets[0].roles: {odd} for {target}"] = (
                f"known are {', '.join(SHAREGPT_ROLES)}"
            )
    reading.set("format", row_format)


def _columns(reading: Reading, kind: dict[str, Any]) -> None:
    # What `gradsift select` writes for axolotl: question and answer as they are.
    values = {key: value for key, value in kind.items() if value not in EMPTY}
    fields = {"field_instruction": "prompt", "field_output": "response", "field_system": "system"}
    formats = [values.pop("format", None), values.pop("no_input_format", None)]
    odd_format = any(form not in ("{instruction}", None) for form in formats)
    odd_name = not all(isinstance(name, str) for name in values.values())
    if odd_format or odd_name or not {*list(fields)[:2]} <= values.keys() <= fields.keys():
        reading.refused[f"datasets[0].type: {kind}"] = (
            f"known are {TYPES}, and fields for instruction, output and system with format "
            "{instruction}"
        )
        return
    reading.set("format", "qa")
    for key, name in values.items():
        reading.set(f"{fields[key]}_column", name)
    _own_prompt(reading)


AXOLOTL = Tool(
    "axolotl",
    "base_model micro_batch_size sequence_len sample_packing adapter lora_target_linear",
    AXOLOTL_KEYS,
    {
        "sequence_len": 512,
        "excess_length_strategy": "drop",
        "micro_batch_size": 1,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.03,
        "bf16": "auto",
        "seed": 42,
    },
    _join,
)
