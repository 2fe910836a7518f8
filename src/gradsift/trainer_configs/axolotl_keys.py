"""Keys of axolotl's configuration, and of an entry of its `datasets`."""

from __future__ import annotations

from typing import Any

from gradsift.data.chat_templates import TOKENIZER_DEFAULT
from gradsift.errors import GradsiftError
from gradsift.trainer_configs.keys import Joint, OneOf, Refused, Setting, each, same, table
from gradsift.trainer_configs.values import (
    anything,
    flag,
    integer,
    lists,
    mapping,
    names,
    number,
    one_of,
    ratio,
    text,
    texts,
)

# Its names of templates → the same under the names of data/chat_templates.py.
TEMPLATES = {
    TOKENIZER_DEFAULT: TOKENIZER_DEFAULT,
    "chatml": "chatml",
    "qwen_25": "qwen",
    "llama3": "llama3",
}
FALLBACKS = tuple(
    f"{TOKENIZER_DEFAULT}_fallback_{name}" for name in ("chatml", "llama3", "qwen_25", "gemma")
)
TEMPLATE = (
    "rows are rendered by the model's own chat template, which is compared with these: "
    f"{', '.join(TEMPLATES)}; `chat_template: {TOKENIZER_DEFAULT}` takes it as it is"
)
MICRO_BATCH = "sft.per_device_train_batch_size"

_template = OneOf(
    {
        **{name: {"chat_template": known} for name, known in TEMPLATES.items()},
        **{name: {"chat_template": TOKENIZER_DEFAULT} for name in FALLBACKS},
    },
    TEMPLATE,
)
# Optimizers of axolotl's own, which transformers does not have.
OPTIMIZERS = (
    "optimi_adamw ao_adamw_4bit ao_adamw_8bit ao_adamw_fp8 adopt_adamw came_pytorch muon dion "
    "sinkgd flash_adamw flash_adam flash_sgd flash_sgdw flash_lion q_galore_adamw8bit "
    "adamw_anyprecision"
)


def _optimizer(value: Any) -> str:
    if text(value) in OPTIMIZERS.split():
        raise GradsiftError("an optimizer of axolotl's own; expected one of transformers")
    return value


def _scheduler(value: Any) -> str:
    if text(value) in ("one_cycle", "rex"):
        raise GradsiftError("a schedule of axolotl's own; expected one of transformers")
    return value


def _targets(value: Any) -> list[str] | str:
    # One text is a regular expression, for peft; several names are a list.
    return value if isinstance(value, str) else names(value)


def _optim_args(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={part}" for key, part in value.items())
    return text(value)


AXOLOTL_KEYS = table(
    "axolotl",
    {
        # Model
        "base_model": Setting("model", text),
        **each("model_revision revision_of_model", Setting("revision", text)),
        **each(
            "base_model_config cls_model_config tokenizer_config",
            Joint("model: must be base_model"),
        ),
        **each("model_type type_of_model", Joint("model: a causal language model")),
        "special_tokens": Joint(
            "nothing, where it says pad_token alone: padding is never trained on", mapping
        ),
        # Quantisation and adapters
        **each("load_in_4bit load_in_8bit", Joint("load_in", flag)),
        "adapter": Joint("lora"),
        "lora_r": Setting("lora.r", integer),
        "lora_alpha": Setting("lora.lora_alpha", number),
        "lora_dropout": Setting("lora.lora_dropout", number),
        "lora_target_modules": Joint("lora.target_modules", _targets),
        "lora_target_linear": Joint("lora.target_modules", flag),
        "lora_target_parameters": Setting("lora.target_parameters", names),
        "lora_modules_to_save": Setting("lora.modules_to_save", names),
        "lora_fan_in_fan_out": Setting("lora.fan_in_fan_out", flag),
        "lora_rank_pattern": Setting("lora.rank_pattern", anything),
        "lora_alpha_pattern": Setting("lora.alpha_pattern", anything),
        "peft_layers_to_transform": Setting("lora.layers_to_transform", anything),
        "peft_layers_pattern": Setting("lora.layers_pattern", names),
        "peft_use_dora": Setting("lora.use_dora", flag),
        "peft_use_rslora": Setting("lora.use_rslora", flag),
        "peft_init_lora_weights": Setting("lora.init_lora_weights", anything),
        "peft_trainable_token_indices": Setting("lora.trainable_token_indices", anything),
        "peft_autocast_adapter_dtype": OneOf(
            {True: {}}, "adapters are kept in float32; take it out"
        ),
        # Optimizer
        "micro_batch_size": Setting(MICRO_BATCH, integer),
        **each(
            "gradient_accumulation_steps batch_size",
            Joint("sft.gradient_accumulation_steps", integer),
        ),
        "learning_rate": Setting("sft.learning_rate", number),
        "lr_scheduler": Setting("sft.lr_scheduler_type", _scheduler),
        "lr_scheduler_kwargs": Setting("sft.lr_scheduler_kwargs", anything),
        "warmup_ratio": Joint("sft.warmup_steps", ratio),
        "warmup_steps": Joint("sft.warmup_steps", number),
        "optimizer": Setting("sft.optim", _optimizer),
        "optim_args": Setting("sft.optim_args", _optim_args),
        "optim_target_modules": Setting("sft.optim_target_modules", anything),
        **same("weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm", "sft.", number),
        "torch_empty_cache_steps": Setting("sft.torch_empty_cache_steps", integer),
        "seed": Setting("seed", integer),
        "accelerator_config": Setting("sft.accelerator_config", anything),
        # 0 is not off: it would freeze them.
        **each(
            "embedding_lr embedding_lr_scale lr_groups",
            Refused("one learning rate for all parameters; take it out", off=()),
        ),
        # Precision and memory
        "bf16": Joint("sft.bf16, dtype", one_of(True, False, "auto", "full")),
        **each("fp16 bfloat16 float16 float32", Joint("sft.bf16, sft.fp16, dtype", flag)),
        "tf32": Joint("sft.tf32", one_of(True, False, "auto")),
        "gradient_checkpointing": Joint(
            "sft.gradient_checkpointing", one_of(True, False, "offload", "offload_disk", "unsloth")
        ),
        "gradient_checkpointing_kwargs": Setting("sft.gradient_checkpointing_kwargs", anything),
        # Rows
        "datasets": Joint("data, format, split"),
        "sequence_len": Setting("max_length", integer),
        "excess_length_strategy": OneOf(
            {"drop": {"truncation": "drop"}, "truncate": {"truncation": "keep_start"}},
            "known are drop and truncate",
        ),
        "chat_template": _template,
        **each("sample_packing group_by_length", Joint("batching", flag)),
        # Methods
        "plugins": Joint("nothing, where they only make training faster", names),
    },
)

# Of an entry of `datasets`.
ENTRY_KEYS = table(
    "axolotl datasets",
    {
        **each("path data_files", Joint("data")),
        "split": Joint("split", text),
        "type": Joint("format"),
        **each("field_messages message_field_role message_field_content", Joint("format", text)),
        "message_property_mappings": Joint("format", texts),
        "roles": Joint("format: must be as roles are read anyway", lists),
        "field": OneOf({"text": {}}, "rows of plain text are read from the field text"),
        "field_system": OneOf({"system": {}}, "the system prompt is read from the field system"),
        "field_tools": OneOf({"tools": {}}, "tool schemas are read from the field tools"),
        "field_thinking": OneOf({"reasoning_content": {}}, "turns are rendered as they are"),
        "chat_template": _template,
        "roles_to_train": Joint("assistant turns only", names),
        **each(
            "train_on_eos train_on_eot", OneOf({"turn": {}}, "an answer is trained on to its end")
        ),
        "message_field_training": OneOf(
            {"weight": {}}, "turns that are not trained on have weight: 0"
        ),
    },
)
