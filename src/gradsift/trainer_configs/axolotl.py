"""Keys of axolotl's configuration."""

from __future__ import annotations

from typing import Any

from gradsift.data.chat_templates import TOKENIZER_DEFAULT
from gradsift.data.formats import SHAREGPT_ROLES
from gradsift.errors import GradsiftError
from gradsift.trainer_configs.joint import adapters_wanted, batching, lora, one_dataset, warmup
from gradsift.trainer_configs.keys import (
    EMPTY,
    Decided,
    Joint,
    Key,
    OneOf,
    Reading,
    Refused,
    Setting,
    Tool,
    each,
    same,
)
from gradsift.trainer_configs.training_arguments import (
    DEVICES,
    EPOCHS,
    EVALUATION,
    FETCHING,
    FOLDER,
    LOGGING,
    LOSS,
    NEFTUNE,
    REPORTS,
    SAVING,
    SPEED,
    TRAINING_ARGUMENTS,
)
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
TEMPLATES = {TOKENIZER_DEFAULT: TOKENIZER_DEFAULT, "chatml": "chatml", "qwen_25": "qwen", "llama3": "llama3"}
FALLBACKS = tuple(f"{TOKENIZER_DEFAULT}_fallback_{name}" for name in ("chatml", "llama3", "qwen_25", "gemma"))
TEMPLATE = (
    "rows are rendered by the model's own chat template, which is compared with these: "
    f"{', '.join(TEMPLATES)}; `chat_template` {TOKENIZER_DEFAULT} takes it as it is"
)
TOKENS = (
    "the tokenizer is the model's own: take out what it has already, add the rest to its folder"
)
GENERATION = "nothing is generated while recording"
OTHER_METHOD = "only read by a method that is refused where it is asked for"
METHOD = "gradsift trains all parameters or LoRA adapters; take it out"
LOADING = "how model and tokenizer are loaded is decided by transformers"
QUANTISED = "how quantised weights are stored is decided by `load_in`"
REFERENCE = "gradsift records supervised fine-tuning; take it out"
TYPES = "alpaca, chat_template, completion, and sharegpt as it was"
ROWS = "write the rows so that it is not needed"

MICRO_BATCH = "sft.per_device_train_batch_size"

_template = OneOf(
    {
        **{name: {"chat_template": form} for name, form in TEMPLATES.items()},
        **{name: {"chat_template": TOKENIZER_DEFAULT} for name in FALLBACKS},
    },
    TEMPLATE,
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
        return ",".join(f"{key}={number}" for key, number in value.items())
    return text(value)


AXOLOTL_KEYS: dict[str, Key] = {
    # Model
    "base_model": Setting("model", text),
    **each("model_revision revision_of_model", Setting("revision", text)),
    **each(
        "base_model_config cls_model_config tokenizer_config", Joint("model: must be base_model")
    ),
    **each("model_type type_of_model", Joint("model: a causal language model")),
    "trust_remote_code": Decided("code runs only where `trust_remote_code` says so"),
    **each(
        "tokenizer_type tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common "
        "tokenizer_save_jinja_files processor_type processor_kwargs "
        "experimental_skip_move_to_device low_cpu_mem_usage max_memory gpu_memory_limit device "
        "device_map hf_use_auth_token mean_resizing_embeddings is_falcon_derived_model "
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
        Decided(LOADING),
    ),
    **each(
        "model_config overrides_of_model_config model_kwargs overrides_of_model_kwargs "
        "rope_scaling",
        Refused("the model is what its config.json says; change it there"),
    ),
    **each(
        "model_quantization_config model_quantization_config_kwargs quantization qat gptq "
        "gptq_groupsize gptq_model_v1 use_onebitllms llmcompressor quantize_moe_experts",
        Refused("weights are quantised by bitsandbytes: load_in_4bit or load_in_8bit"),
    ),
    "special_tokens": Joint(
        "nothing, where it says pad_token alone: padding is never trained on", mapping
    ),
    **each("tokens added_tokens_overrides", Refused(TOKENS)),
    **each(
        "resize_token_embeddings_to_32x shrink_embeddings reinit_weights fix_untrained_tokens "
        "embeddings_skip_upcast",
        Refused("the model's weights are trained as they are; take it out"),
    ),
    # Quantisation and adapters
    **each("load_in_4bit load_in_8bit", Joint("load_in", flag)),
    "bnb_config_kwargs": Refused(QUANTISED),
    **each("qlora_sharded_model_loading lora_on_cpu", Decided(LOADING)),
    "adapter": Joint("lora"),
    "lora_model_dir": Refused("adapters start anew; merge it into the model first"),
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
    "peft_layer_replication": Refused("layers are not replicated; take it out"),
    "peft_ensure_weight_tying": Refused("tied weights are tied as the model has it; take it out"),
    "peft_autocast_adapter_dtype": OneOf({True: {}}, "adapters are kept in float32; take it out"),
    "peft": Refused("adapters start as peft's do; take it out"),
    "loraplus_lr_ratio": Refused("one learning rate for all parameters; take it out"),
    **each("loraplus_lr_embedding", Decided(OTHER_METHOD)),
    **each("merge_lora merge_method", Decided("nothing is merged while recording")),
    **each("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", Decided(SPEED)),
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
    **each(
        "embedding_lr embedding_lr_scale lr_groups",
        # 0 is not off: it would freeze them.
        Refused("one learning rate for all parameters; take it out", off=()),
    ),
    **each(
        "cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor eta_min "
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
        Refused(
            "a schedule of axolotl's own; transformers' cosine_with_min_lr with "
            "lr_scheduler_kwargs is like it"
        ),
    ),
    **each(
        "adam_epsilon2 adam_beta3 dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of "
        "qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant "
        "qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj "
        "qgalore_queue_size torchdistx_path",
        Decided(OTHER_METHOD),
    ),
    "auto_find_batch_size": TRAINING_ARGUMENTS["auto_find_batch_size"],
    **each("num_epochs max_steps", Decided(EPOCHS)),
    # Precision and memory
    "bf16": Joint("sft.bf16, dtype", one_of(True, False, "auto", "full")),
    **each("fp16 bfloat16 float16 float32", Joint("sft.bf16, sft.fp16, dtype", flag)),
    "tf32": Joint("sft.tf32", one_of(True, False, "auto")),
    **each("fp8 fp8_enable_fsdp_float8_all_gather", Refused("known are bf16, fp16 and float32")),
    **each("fp32_norms fp32_norm_classes", Refused("all weights are of one type; take it out")),
    "gradient_checkpointing": Joint(
        "sft.gradient_checkpointing", one_of(True, False, "offload", "offload_disk", "unsloth")
    ),
    "gradient_checkpointing_kwargs": Setting("sft.gradient_checkpointing_kwargs", anything),
    **each(
        "selective_checkpointing activation_offloading layer_offloading torch_compile "
        "torch_compile_backend torch_compile_mode torch_compile_options gc_steps "
        "gc_collect_steps tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp "
        "attn_implementation flash_attention sdp_attention flex_attention xformers_attention "
        "eager_attention sage_attention flex_attn_compile_kwargs flash_attn_cross_entropy "
        "flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum flash_attn_d512 "
        "large_head_attention sdpa_varlen fused_attn_kernel gemma4_hybrid_attn_impl "
        "experts_implementation chunked_cross_entropy chunked_cross_entropy_num_chunks use_kernels "
        "llama4_linearized_experts liger_rope liger_rms_norm liger_rms_norm_gated "
        "liger_layer_norm liger_swiglu liger_glu_activation liger_cross_entropy "
        "liger_fused_linear_cross_entropy cut_cross_entropy use_scattermoe use_sonicmoe "
        "use_dsv4_kernels use_glm_dsa_kernels expert_backend moe_grouped_backend "
        "moe_dequant_chunk_size moe_bnb_fast dsv4_fp4_grouped_mode dsv4_fp8_lora_kernel "
        "dsv4_shared_mlp_lora_kernel",
        Decided(SPEED),
    ),
    **each(
        "nonexpert_quantization dsv4_fp8_nonexpert_mode dsv4_bf16_all gemma4_fp8_nonexpert "
        "gemma4_nf4_nonexpert nvfp4_merge_aware nvfp4_merge_aware_start_step",
        Refused("weights are quantised by bitsandbytes: load_in_4bit or load_in_8bit"),
    ),
    **each("s2_attention scaling_softmax", Refused("attention is the model's own; take it out")),
    **each("scaling_softmax_factor scaling_softmax_bias", Decided(OTHER_METHOD)),
    **each(
        "deepspeed deepcompile fsdp fsdp_config fsdp_version fsdp_final_state_dict_type ddp "
        "ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters "
        "world_size local_rank dp_shard_size dp_replicate_size sequence_parallel_degree "
        "context_parallel_size heads_k_stride ring_attn_func tensor_parallel_size "
        "expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes "
        "expert_parallel_num_rdma_bytes expert_parallel_token_capacity "
        "expert_parallel_fallback_on_unsupported use_ray ray_run_name ray_num_workers "
        "resources_per_worker",
        Decided(DEVICES),
    ),
    # Rows
    "datasets": Joint("data, format, split"),
    **each("test_datasets val_set_size", Decided(EVALUATION)),
    "pretraining_dataset": Refused(f"{REFERENCE}, or name it in datasets with type: completion"),
    "sequence_len": Setting("max_length", integer),
    "excess_length_strategy": OneOf(
        {"drop": {"truncation": "drop"}, "truncate": {"truncation": "keep_start"}},
        "known are drop and truncate",
    ),
    "chat_template": _template,
    "chat_template_jinja": Refused("put the template into the model's tokenizer_config.json"),
    "chat_template_kwargs": Refused("put them into the model's own chat template"),
    "default_system_message": Refused("write the system prompt into the rows"),
    "eot_tokens": Decided("an answer ends where the model's own chat template ends it"),
    "train_on_inputs": Refused("gradsift trains on answers only (`text` rows: on every token)"),
    "role_boundaries": Refused("answers are told by the model's own chat template; take it out"),
    **each("sample_packing group_by_length", Joint("batching", flag)),
    **each(
        "sample_packing_eff_est sample_packing_group_size sample_packing_bin_size "
        "sample_packing_sequentially sample_packing_mp_start_method multipack_real_batches "
        "batch_flattening pad_to_sequence_len pad_to_multiple_of eval_sample_packing",
        Decided("how rows are put together is decided by `batching`"),
    ),
    **each(
        "pretrain_multipack_buffer_size pretrain_multipack_attn pretraining_sample_concatenation "
        "streaming_multipack_buffer_size pose_split_on_token_ids pose_max_context_len "
        "pose_num_chunks",
        Decided(OTHER_METHOD),
    ),
    "max_packed_sequence_len": Refused("say sequence_len and sample_packing"),
    "use_pose": Refused("positions are those of the model; take it out"),
    "curriculum_sampling": Refused("the rows are shuffled, by `seed`; take it out"),
    **each("min_sample_len max_prompt_len", Refused(ROWS)),
    **each(
        "dataset_exact_deduplication dataset_shard_num dataset_shard_idx",
        Refused("all rows are captured; save the ones that are meant"),
    ),
    **each(
        "shuffle_merged_datasets shuffle_before_merging_datasets", Decided("the trainer shuffles")
    ),
    **each(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory "
        "skip_prepare_dataset num_dataset_shards_to_save push_dataset_to_hub streaming "
        "dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor "
        "remove_unused_columns is_preprocess preprocess_iterable total_num_tokens "
        "total_supervised_tokens axolotl_config_path",
        Decided(FETCHING),
    ),
    "dataloader_drop_last": TRAINING_ARGUMENTS["dataloader_drop_last"],
    **each("image_size image_resize_algorithm freeze_mm_modules", Decided("rows of text only")),
    # Methods
    **each(
        "rl reward_model process_reward_model ebft hatchery nemo_gym_enabled diffusion kd_trainer",
        Refused(REFERENCE),
    ),
    **each(
        "trl vllm center_rewards_coefficient num_labels dpo_beta dpo_use_weighting "
        "dpo_label_smoothing dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights "
        "dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss precompute_ref_log_probs "
        "rpo_alpha orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight "
        "rl_beta kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk "
        "kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout "
        "kd_temperature_min nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths "
        "nemo_gym_head_port nemo_gym_server_timeout nemo_gym_verify_timeout nemo_gym_run_timeout "
        "nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name nemo_gym_multi_turn "
        "nemo_gym_max_turns",
        Decided(OTHER_METHOD),
    ),
    **each(
        "trainer_cls unfrozen_parameters relora lisa_n_layers mora dense_mixer grokfast_alpha "
        "grokfast_lamb spectrum_top_fraction spectrum_model_name",
        Refused(METHOD),
    ),
    **each(
        "relora_prune_ratio relora_prune_method relora_cpu_offload lisa_step_interval "
        "lisa_layers_attribute eaft_alpha eaft_k",
        Decided(OTHER_METHOD),
    ),
    **each("use_eaft liger_use_token_scaling", Refused(LOSS)),
    **each("neftune_noise_alpha noisy_embedding_alpha", Refused(NEFTUNE)),
    "plugins": Joint("nothing, where they only make training faster", names),
    # Saving, evaluation, reports
    "output_dir": Decided(FOLDER),
    **each(
        "resume_from_checkpoint auto_resume_from_checkpoints save_steps saves_per_epoch "
        "save_strategy save_total_limit save_first_step save_only_model save_safetensors "
        "dynamic_checkpoint",
        Decided(SAVING),
    ),
    **each(
        "eval_steps evals_per_epoch eval_strategy evaluation_strategy eval_batch_size "
        "eval_sequence_len eval_table_size eval_max_new_tokens do_causal_lm_eval "
        "eval_causal_lm_metrics do_bench_eval bench_dataset bench_split metric_for_best_model "
        "greater_is_better load_best_model_at_end early_stopping_patience lm_eval_tasks "
        "lm_eval_batch_size lm_eval_post_train lm_eval_model",
        Decided(EVALUATION),
    ),
    **each(
        "logging_steps profiler_steps profiler_steps_start include_tokens_per_second include_tkps "
        "debug",
        Decided(LOGGING),
    ),
    **each(
        "loss_watchdog_threshold loss_watchdog_patience",
        Decided("a step that is not finite is left out and told"),
    ),
    "strict": Decided("every key is checked here"),
    **each(
        "wandb_project wandb_entity wandb_name wandb_run_id wandb_mode wandb_watch wandb_log_model "
        "use_wandb use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name "
        "hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace comet_project_name "
        "comet_experiment_key comet_mode comet_online comet_experiment_config use_tensorboard "
        "use_trackio trackio_project_name trackio_run_name trackio_space_id use_otel_metrics "
        "otel_metrics_host otel_metrics_port use_swanlab swanlab_project swanlab_experiment_name "
        "swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model "
        "swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret "
        "swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer "
        "hub_model_id hub_strategy hub_revision",
        Decided(REPORTS),
    ),
    **each(
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens "
        "gradio_temperature generate_samples num_generation_samples generation_max_new_tokens "
        "generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
        "generation_do_sample",
        Decided(GENERATION),
    ),
}

# Of an entry of `datasets`.
ENTRY_KEYS: dict[str, Key] = {
    **each("path data_files", Joint("data")),
    "split": Joint("split", text),
    "type": Joint("format"),
    "ds_type": Decided("what a file holds is told by its name"),
    **each("field_messages message_field_role message_field_content", Joint("format", text)),
    "message_property_mappings": Joint("format", texts),
    "roles": Joint("format: must be as roles are read anyway", lists),
    "field": OneOf({"text": {}}, "rows of plain text are read from the field text"),
    "field_system": OneOf({"system": {}}, "the system prompt is read from the field system"),
    "field_tools": OneOf({"tools": {}}, "tool schemas are read from the field tools"),
    "field_thinking": OneOf({"reasoning_content": {}}, "turns are rendered as they are"),
    "template_thinking_key": Refused("turns are rendered as they are"),
    "chat_template": _template,
    "chat_template_jinja": Refused("put the template into the model's tokenizer_config.json"),
    "roles_to_train": Joint("assistant turns only", names),
    **each("train_on_eos train_on_eot", OneOf({"turn": {}}, "an answer is trained on to its end")),
    "message_field_training": OneOf({"weight": {}}, "turns that are not trained on have weight: 0"),
    "trust_remote_code": Refused("rows are data; no code runs for them"),
    **each("preprocess_shards", Decided(FETCHING)),
    **each("shards shards_idx", Refused("all rows are captured; save the ones that are meant")),
    "name": Refused("hub datasets are read without a configuration; save it as a file"),
    "revision": Refused("hub datasets are read as they are now; save it as a file"),
    **each(
        "input_transform conversation input_format field_human field_model split_thinking "
        "logprobs_field temperature message_field_training_detail drop_system_message",
        Refused(ROWS),
    ),
}


def _join(reading: Reading) -> None:
    said = reading.said
    for key in ("base_model_config", "tokenizer_config"):
        if said.get(key, said.get("base_model")) != said.get("base_model"):
            reading.refuse(key, "must be that of base_model")
    for key in ("model_type", "type_of_model", "cls_model_config"):
        if key in said and not str(said[key]).endswith(("ForCausalLM", "Config")):
            reading.refuse(key, "causal language models only")
    _tokens_and_plugins(reading)
    _adapter(reading)
    _precision(reading)
    _steps(reading)
    batching(
        reading,
        packing=said.get("sample_packing"),
        sees_others=False,
    )
    if "datasets" not in said:
        return
    if reading.is_taken("data"):
        reading.decided["datasets"] = "DATA is said otherwise"
        return
    entry = one_dataset(reading, "datasets", ENTRY_KEYS)
    if entry is not None:
        _format(reading, entry.said)


def _tokens_and_plugins(reading: Reading) -> None:
    tokens = reading.said.get("special_tokens", {})
    others = [key for key in tokens if key != "pad_token" and tokens[key] not in EMPTY]
    if others:
        reading.refuse("special_tokens", f"{TOKENS} ({', '.join(map(str, others))})")
    elif tokens:
        reading.decided["special_tokens"] = "padding is never trained on"
    plugins = reading.said.get("plugins", [])
    others = [plugin for plugin in plugins if plugin not in PLUGINS]
    if others:
        reading.refused[f"plugins: {', '.join(others)}"] = f"known are {', '.join(PLUGINS)}"
    elif plugins:
        reading.decided["plugins"] = SPEED


def _adapter(reading: Reading) -> None:
    said = reading.said
    adapter = said.get("adapter")
    if adapter not in (None, "lora", "qlora"):
        reading.refuse("adapter", f"{METHOD}; known are lora and qlora")
    targets = said.get("lora_target_modules")
    if said.get("lora_target_linear"):
        targets = "all-linear"
    wanted = adapters_wanted(reading, adapter is not None)
    lora(reading, wanted=wanted, keys=AXOLOTL_KEYS, targets=targets)
    in_4_bits = said.get("load_in_4bit", adapter == "qlora")
    if in_4_bits and said.get("load_in_8bit"):
        reading.refuse("load_in_8bit", "load_in_4bit is true as well; take one")
    elif adapter == "qlora" and not in_4_bits:
        reading.refuse("load_in_4bit", "adapter: qlora has weights in 4 bits; say adapter: lora")
    elif in_4_bits or said.get("load_in_8bit"):
        reading.set("load_in", "4bit" if in_4_bits else "8bit")


def _precision(reading: Reading) -> None:
    # axolotl loads the weights in the type that is computed in; bf16 comes before the others.
    said = reading.said
    bf16 = said.get("bf16", False)
    if bf16 == "auto":
        from transformers.utils import is_torch_bf16_gpu_available

        bf16 = is_torch_bf16_gpu_available()
        halved = said.get("fp16") or said.get("float16") or said.get("bfloat16")
        if not bf16 and not halved and not reading.is_taken("dtype"):
            reading.remarks["bf16"] = (
                "auto: this device has no bf16, so float32 is taken; axolotl takes fp16 (fp16: "
                "true says so)"
            )
    bf16 = bf16 or said.get("bfloat16", False)
    fp16 = said.get("fp16", False) and not bf16
    half = fp16 or said.get("float16", False)
    reading.set("sft.bf16", bf16 is True)
    reading.set("sft.fp16", fp16)
    reading.set("dtype", "bfloat16" if bf16 else "float16" if half else "float32")
    used = ("bf16", "bfloat16") if bf16 else ("fp16", "float16") if half else ("float32",)
    for key in ("fp16", "float16", "float32"):
        if said.get(key) and key not in used:
            reading.decided[key] = f"{' or '.join(used)} comes before it"
    if said.get("tf32", "auto") != "auto":
        reading.set("sft.tf32", said["tf32"])
    checkpointing = said.get("gradient_checkpointing")
    if checkpointing is not None:
        # offload, offload_disk, unsloth: where what is kept lies.
        reading.set("sft.gradient_checkpointing", bool(checkpointing))


def _steps(reading: Reading) -> None:
    said = reading.said
    accumulation = said.get("gradient_accumulation_steps")
    if accumulation is None and "batch_size" in said:
        accumulation = _accumulation(reading)
    if accumulation is not None:
        reading.set("sft.gradient_accumulation_steps", accumulation)
        if "batch_size" in said and "gradient_accumulation_steps" in said:
            reading.decided["batch_size"] = "gradient_accumulation_steps comes before it"
    warmup(reading)
    if "learning_rate" not in said and not reading.is_taken("sft.learning_rate"):
        reading.remarks["learning_rate"] = "is not said: trl's default is taken"


def _accumulation(reading: Reading) -> int | None:
    # The command line may say the micro-batch, and then the file's own does not count.
    whole, micro = reading.said["batch_size"], reading.settings.get(MICRO_BATCH)
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
        found = f"datasets[0]: turns in {messages}, of {', '.join((role, content, *others))}"
        reading.refused[found] = "turns are read from messages or conversations, of role and "
        reading.refused[found] += "content or of from and value"
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
    said = {key: value for key, value in kind.items() if value not in EMPTY}
    fields = {"field_instruction": "prompt", "field_output": "response", "field_system": "system"}
    formats = [said.pop("format", None), said.pop("no_input_format", None)]
    odd_format = any(form not in ("{instruction}", None) for form in formats)
    odd_name = not all(isinstance(name, str) for name in said.values())
    if odd_format or odd_name or not {*list(fields)[:2]} <= said.keys() <= fields.keys():
        reading.refused[f"datasets[0].type: {kind}"] = (
            f"known are {TYPES}, and fields for instruction, output and system with format "
            "{instruction}"
        )
        return
    reading.set("format", "qa")
    for key, name in said.items():
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
