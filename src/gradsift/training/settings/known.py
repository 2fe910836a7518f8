"""Every field of trl's SFTConfig and peft's LoraConfig: passed on, decided here, or refused.

A field of a newer version that is in no table is refused when somebody gives it, and turns
`tests/training/settings/test_known_settings.py` red: nothing is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradsift.files import MOST_SETTINGS, require_plain
from gradsift.terms import LM_HEAD


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _by_name(reasons: Mapping[str, str]) -> dict[str, str]:
    """Turn names (with spaces) → reason into name → reason."""
    return {name: reason for names, reason in reasons.items() for name in names.split()}


# Passed on, and with an effect on the training, its speed, its memory or what it logs.
SFT_PASSED = _names(
    """
    per_device_train_batch_size gradient_accumulation_steps average_tokens_across_devices
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm
    optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon
    bf16 fp16 tf32 use_cpu full_determinism data_seed
    activation_checkpointing activation_checkpointing_kwargs activation_offloading
    gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps
    torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter
    log_level log_level_replica log_on_each_node disable_tqdm report_to run_name project
    accelerator_config dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed
    chat_template_path eos_token pad_token pad_to_multiple_of
    """
)

# Of those, what rows are rendered and tokenized with: see tokenizer.py.
# Settings that may name a file, or a folder.
PATHS = ("chat_template_path", "deepspeed", "fsdp_config", "accelerator_config")
TOKENIZER_SETTINGS = ("chat_template_path", "eos_token", "pad_token")

_EPOCHS = "the preliminary epoch is one epoch; an arm has `epochs`"
_CHECKPOINTS = "checkpoints are gradsift's own: use `save_steps`"
_LOSS = "the instance loss is the negative log-likelihood"
_NOT_EVALUATED = "nothing is evaluated while it trains: `gradsift compare` evaluates"
_NOT_SENT = "no model is sent anywhere"
_SPACE = "Trackio takes its Space from the environment (TRACKIO_SPACE_ID)"
_RESPONSE_MASK = "the response mask is made already: use `train_on`"
_BATCHING = "use `batching`"
_COUNTED = "gradsift counts and measures this itself"

# Decided here: what is used instead.
SFT_DECIDED = _by_name(
    {
        "output_dir": "the run folder is used",
        "num_train_epochs max_steps": _EPOCHS,
        "max_length": "use `max_length`",
        "truncation_mode": "use `truncation`",
        "seed": "use `seed`",
        "save_strategy save_steps save_total_limit save_on_each_node enable_jit_checkpoint": (
            _CHECKPOINTS
        ),
        "resume_from_checkpoint": "running the same command again resumes",
        "model_init_kwargs": "the model is loaded before: use `load_in`, `dtype` and `revision`",
        "trust_remote_code": "use `trust_remote_code`",
        "packing packing_strategy padding_free group_by_length train_sampling_strategy": _BATCHING,
        "length_column_name": "gradsift knows the lengths: use `batching`",
        "shuffle_dataset": "rows are shuffled: use `seed`",
        "dataset_num_proc": "rows are tokenized by gradsift",
        "dataset_kwargs": "instances are tokenized already",
        "dataset_text_field": "use `prompt_column`, with `format: text`",
        "chat_template_kwargs": "use `chat_template_kwargs`",
        "remove_unused_columns": "instances carry an index",
        "assistant_only_loss completion_only_loss": _RESPONSE_MASK,
        "do_train": "every command trains what it says",
        "use_cache": "nothing is generated while it trains: it is off",
        "local_rank": "accelerate launch and torchrun say it",
        "warmup_ratio": "use warmup_steps, which is a share of all steps where it is below 1",
        "include_num_input_tokens_seen skip_memory_metrics": _COUNTED,
    }
)

# Refused: why it cannot be had.
SFT_REFUSED = _by_name(
    {
        "dataloader_drop_last": "every row is recorded, those of the last micro-batch, too",
        "dataloader_in_order": "a run that is resumed needs the same order of rows",
        "auto_find_batch_size": "the batch size must be known: use per_device_train_batch_size",
        "ignore_data_skip": "a run that is resumed would record rows twice",
        "save_only_model": "a run that is resumed needs the optimizer's state",
        "restore_callback_states_from_checkpoint": "a run that is resumed has its own callbacks",
        "loss_type label_smoothing_factor": _LOSS,
        "router_aux_loss_coef": f"{_LOSS}, without the auxiliary loss, which couples rows",
        "neftune_noise_alpha": "its noise would be in the recorded gradients",
        "parallelism_config": "rows are not cut over devices: use accelerate launch with FSDP2",
        "trackio_space_id trackio_bucket_id trackio_static_space_id": _SPACE,
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push "
        "hub_revision": _NOT_SENT,
        "do_eval do_predict eval_strategy eval_steps eval_delay eval_on_start eval_packing "
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
        "per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics "
        "bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model "
        "greater_is_better label_names": _NOT_EVALUATED,
        "debug": "rows whose gradient is not finite are found and named by gradsift",
    }
)

# What gradsift decides itself or refuses, and why the user's value is refused.
RESERVED = SFT_DECIDED | SFT_REFUSED

# Values that say what is done anyway: they may stand in a file.
_OFF: tuple[Any, ...] = (None, False, 0, 0.0, "no", "none", "", [], {})
_SAID_ANYWAY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        _names(
            """
            packing padding_free group_by_length dataloader_drop_last auto_find_batch_size
            ignore_data_skip save_only_model restore_callback_states_from_checkpoint save_strategy
            label_smoothing_factor neftune_noise_alpha router_aux_loss_coef parallelism_config
            push_to_hub hub_always_push do_eval do_predict eval_strategy eval_on_start
            load_best_model_at_end use_cache debug shuffle_dataset trust_remote_code
            enable_jit_checkpoint model_init_kwargs dataset_kwargs resume_from_checkpoint
            include_num_input_tokens_seen trackio_space_id trackio_bucket_id
            trackio_static_space_id hub_token hub_private_repo hub_model_id hub_revision
            """
        ),
        _OFF,
    ),
    "dataloader_in_order": (True,),
    "dataset_text_field": ("text",),
    "do_train": (True,),
    "loss_type": ("nll", "chunked_nll"),
    "remove_unused_columns": (False,),
    "skip_memory_metrics": (True,),
    "completion_only_loss": (None, True),
    "assistant_only_loss": (True,),
}


def said_anyway(name: str, value: object) -> bool:
    """Return whether a value of a reserved setting says what gradsift does anyway."""
    return any(type(value) is type(one) and value == one for one in _SAID_ANYWAY.get(name, ()))


def refused_of_sft(sft: Mapping[str, object]) -> dict[str, str]:
    """Return the settings for SFTConfig that are refused by their name, each with the reason."""
    return {
        key: RESERVED[key]
        for key in sorted(sft.keys() & RESERVED.keys())
        if not said_anyway(key, sft[key])
    }


def refused_of_lora(lora: Mapping[str, object]) -> dict[str, str]:
    """Return the settings for LoraConfig that are refused by their name, each with the reason."""
    return {
        key: reason
        for key, (accepted, reason) in RESERVED_LORA.items()
        if lora.get(key) is not None and lora[key] not in accepted
    }


# Of `accelerator_config`: what deals the rows out, and must not lose or repeat any.
ACCELERATOR_PASSED = ("non_blocking", "use_seedable_sampler")

LORA_PASSED = _names(
    """
    r target_modules exclude_modules target_parameters lora_alpha lora_dropout fan_in_fan_out bias
    lora_bias use_rslora use_dora modules_to_save trainable_token_indices ensure_weight_tying
    init_lora_weights loftq_config layers_to_transform layers_pattern layer_replication
    rank_pattern alpha_pattern
    """
)

# What gradsift decides itself: the values that say so, and why another is refused.
LORA_DECIDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "adapters are LoRA's"),
    "task_type": (("CAUSAL_LM",), "causal language models only"),
    "inference_mode": ((False,), "the adapters are trained"),
    "base_model_name_or_path": ((), "use `model`"),
    "revision": ((), "use `revision`"),
    "auto_mapping": ((), "the model's class is the one that transformers chooses"),
    "peft_version": ((), "it is the one that is installed"),
    "runtime_config": ((), "adapters are kept where the model is"),
}

_FROM_DATA = "such adapters are started from data, by code before the training"
_MEGATRON = "only for Megatron's own layers"
_GPTQ = "only for weights quantised by GPTQ, which are not trained over here"
LORA_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "eva_config": ((), _FROM_DATA),
    "corda_config": ((), _FROM_DATA),
    "lora_ga_config": ((), _FROM_DATA),
    "megatron_config": ((), _MEGATRON),
    "megatron_core": (("megatron.core",), _MEGATRON),
    "use_qalora": ((False,), _GPTQ),
    "qalora_group_size": ((16,), _GPTQ),
    "alora_invocation_tokens": ((), "its adapters begin inside a row, which packed rows do not"),
    "arrow_config": ((), "it routes among adapters that are trained already"),
    "kasa_config": ((), f"its loss has more terms; {_LOSS}"),
    "monteclora_config": ((), f"it draws adapters at random, and its loss has more terms; {_LOSS}"),
    "velora_config": ((), "its gradients are approximate, and so would be what is recorded"),
    "use_bdlora": ((), "only for serving over several devices"),
}
RESERVED_LORA = LORA_DECIDED | LORA_REFUSED
# Ways to start adapters that peft does not carry out alone: it leaves their start at random.
INIT_FROM_DATA = ("eva", "corda", "lora_ga")


def unknown_fields(given: Iterable[str], *tables: Iterable[str]) -> list[str]:
    """Return the names that are in none of some tables."""
    known = {name for table in tables for name in table}
    return sorted(set(given) - known)


HEAD_IS_NOT_ADAPTED = (
    "trl trains no adapter of the head. Leave it out, or train the head itself: "
    f"modules_to_save: [{LM_HEAD}]."
)


def require_plain_files(sft: Mapping[str, object]) -> None:
    """Refuse a pipe, a device or a huge file in place of one of settings or a template."""
    for key in PATHS:
        value = sft.get(key)
        if isinstance(value, str) and not Path(value).is_dir():
            require_plain(Path(value), f"sft setting {key}: {value}", most=MOST_SETTINGS)
