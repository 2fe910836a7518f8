"""Keys of LLaMA-Factory's arguments: model, data, method, and transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path

from gradsift.data.containers import read_rows
from gradsift.data.dataset_configs import read_dataset_info
from gradsift.data.sources import find_source
from gradsift.trainer_configs.joint import (
    ONE_FILE,
    adapters_wanted,
    batching,
    lora,
    set_data,
    warmup,
)
from gradsift.trainer_configs.keys import (
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
    EVALUATION,
    FETCHING,
    LOGGING,
    LOSS,
    NO_CLIPPING,
    REPORTS,
    SAVING,
    SPEED,
    TRAINING_ARGUMENTS,
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
    f"{', '.join(TEMPLATES)}; `chat_template` tokenizer_default takes it as it is"
)
TOKENS = "the tokenizer is the model's own; add them to the model's folder"
TEXT_ONLY = "rows of text only"
GENERATION = "nothing is generated while recording"
EXPORT = "nothing is exported"
OTHER_METHOD = "only read by a method that is refused where it is asked for"
METHOD = "gradsift trains all parameters or LoRA adapters, by an optimizer of transformers"
FOREIGN = "another training engine; take it out"

LLAMAFACTORY_KEYS: dict[str, Key] = {
    **TRAINING_ARGUMENTS,
    # Model
    "model_name_or_path": Setting("model", text),
    "model_revision": Setting("revision", text),
    "trust_remote_code": Decided("code runs only where `trust_remote_code` says so"),
    "adapter_name_or_path": Refused("adapters start anew; merge it into the model first"),
    "resize_vocab": Refused(TOKENS),
    "split_special_tokens": Refused(TOKENS),
    **each("add_tokens add_special_tokens new_special_tokens_config", Refused(TOKENS)),
    "init_special_tokens": Decided(OTHER_METHOD),
    "rope_scaling": Refused("positions are those of the model; set it in its config.json"),
    "shift_attn": Refused("attention is the model's own; take it out"),
    "mixture_of_depths": Refused(FOREIGN),
    "moe_aux_loss_coef": Refused(LOSS),
    "train_from_scratch": Refused("the model's weights are loaded; save new ones in a folder"),
    "block_diag_attn": Decided("rows never see each other"),
    **each(
        "use_fast_tokenizer low_cpu_mem_usage cache_dir adapter_folder offload_folder "
        "hf_hub_token ms_hub_token om_hub_token print_param_status device_map",
        Decided("how model and tokenizer are loaded is decided by transformers"),
    ),
    **each(
        "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_reentrant_gc use_kv_cache "
        "use_v1_kernels upcast_layernorm upcast_lmhead_output",
        Decided(SPEED),
    ),
    "disable_gradient_checkpointing": OneOf(
        {
            True: {"sft.gradient_checkpointing": False},
            False: {"sft.gradient_checkpointing": True},
        },
        "expected true or false",
    ),
    **each("compute_dtype model_max_length", Decided("set by LLaMA-Factory itself")),
    # Quantisation
    "quantization_bit": OneOf(
        {4: {"load_in": "4bit"}, 8: {"load_in": "8bit"}}, "weights are loaded in 4 or 8 bits"
    ),
    "quantization_method": OneOf({"bnb": {}}, "weights are quantised by bitsandbytes: bnb"),
    "quantization_type": OneOf({"nf4": {}}, "4-bit weights are nf4"),
    **each(
        "double_quantization quantization_device_map",
        Decided("how quantised weights are stored is decided by `load_in`"),
    ),
    # Precision
    **each("bf16 fp16 pure_bf16", Joint("sft.bf16, sft.fp16, dtype", flag)),
    **each("fp8 fp8_enable_fsdp_float8_all_gather", Refused("known are bf16, fp16 and float32")),
    "fp8_backend": Decided(OTHER_METHOD),
    # Method
    "stage": OneOf({"sft": {}}, "gradsift records supervised fine-tuning; known is sft"),
    "finetuning_type": Joint("lora"),
    "lora_rank": Setting("lora.r", integer),
    "lora_alpha": Joint("lora.lora_alpha", number),
    "lora_dropout": Setting("lora.lora_dropout", number),
    "lora_target": Joint("lora.target_modules", names),
    "additional_target": Setting("lora.modules_to_save", names),
    **same("use_rslora use_dora", "lora.", flag),
    "loraplus_lr_ratio": Refused("one learning rate for all parameters; take it out"),
    "loraplus_lr_embedding": Decided(OTHER_METHOD),
    "pissa_init": Refused("adapters start as peft's do; take it out"),
    **each("pissa_iter pissa_convert create_new_adapter", Decided(OTHER_METHOD)),
    **each("use_galore use_apollo use_badam use_llama_pro use_adam_mini use_muon", Refused(METHOD)),
    **each("use_dft_loss use_asft_loss use_eaft_loss", Refused(LOSS)),
    **each("use_mca use_megatron_bridge use_hyper_parallel use_kt", Refused(FOREIGN)),
    **each(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules module_dropout "
        "oft_rank oft_block_size oft_target galore_target galore_rank galore_update_interval "
        "galore_scale galore_proj_type galore_layerwise apollo_target apollo_rank "
        "apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
        "apollo_layerwise apollo_scale_front badam_mode badam_start_block badam_switch_mode "
        "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose asft_alpha "
        "eaft_alpha megatron_bridge_args hyper_parallel_args hyper_parallel_cp_size "
        "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight "
        "kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target "
        "ppo_whiten_rewards ref_model ref_model_adapters ref_model_quantization_bit reward_model "
        "reward_model_adapters reward_model_quantization_bit reward_model_type ld_alpha "
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size",
        Decided(OTHER_METHOD),
    ),
    **each(
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model media_dir "
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches "
        "video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video "
        "audio_sampling_rate",
        Decided(TEXT_ONLY),
    ),
    # Data
    "template": OneOf(
        {name: {"chat_template": form} for name, form in TEMPLATES.items()}, TEMPLATE
    ),
    "dataset": Joint("data", names),
    "dataset_dir": Joint("dataset_info", text),
    "max_samples": Joint("nothing, where the file has no more rows", integer),
    "cutoff_len": Setting(
        "max_length",
        integer,
        "longer rows keep their beginning (`truncation`); LLaMA-Factory shortens prompt and answer",
    ),
    "mask_history": OneOf({True: {"train_on": "last"}, False: {}}, "expected true or false"),
    "train_on_prompt": Refused("gradsift trains on answers only (`text` rows: on every token)"),
    **each("packing neat_packing", Joint("batching", flag)),
    "disable_shuffling": Refused("the rows are shuffled, by `seed`; take it out"),
    **each("mix_strategy interleave_probs", Decided("there is one dataset")),
    **each(
        "streaming buffer_size overwrite_cache preprocessing_batch_size "
        "preprocessing_num_workers data_shared_file_system",
        Decided(FETCHING),
    ),
    "tokenized_path": Refused("rows are read as text; take it out"),
    "default_system": Refused("write the system prompt into the rows, or into the chat template"),
    "tool_format": Refused("tools are written by the model's own chat template; take it out"),
    **each(
        "enable_thinking preserve_thinking",
        Decided("thinking is written by the model's own chat template, as the rows have it"),
    ),
    "ignore_pad_token_for_loss": OneOf({True: {}}, "padding is never trained on"),
    # Evaluation, generation, export, logging
    **each(
        "eval_dataset val_size eval_on_each_dataset eval_num_beams compute_accuracy "
        "early_stopping_steps",
        Decided(EVALUATION),
    ),
    **each(
        "predict_with_generate generation_config generation_max_length generation_num_beams "
        "sortish_sampler do_sample temperature top_p top_k num_beams max_length max_new_tokens "
        "repetition_penalty length_penalty skip_special_tokens infer_backend infer_dtype "
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config "
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
        Decided(GENERATION),
    ),
    **each(
        "export_dir export_size export_device export_quantization_bit "
        "export_quantization_dataset export_quantization_nsamples export_quantization_maxlen "
        "export_legacy_format export_hub_model_id",
        Decided(EXPORT),
    ),
    **each(
        "plot_loss include_effective_tokens_per_second include_num_input_tokens_seen "
        "enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
        "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory "
        "profiler_with_stack profile_modules",
        Decided(LOGGING),
    ),
    **each(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode "
        "swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret",
        Decided(REPORTS),
    ),
    **each(
        "ray_num_workers ray_init_kwargs master_addr master_port ray_run_name ray_storage_path "
        "resources_per_worker placement_strategy",
        Decided(DEVICES),
    ),
    "save_hf_weights": Decided(SAVING),
}


def _join(reading: Reading) -> None:
    said = reading.said
    method = said.get("finetuning_type")
    if method not in ("lora", "full"):
        reading.refuse("finetuning_type", f"{METHOD}; known are lora and full")
    targets = said.get("lora_target", ["all"])
    adapters = adapters_wanted(reading, method == "lora")
    lora(
        reading,
        wanted=adapters,
        keys=LLAMAFACTORY_KEYS,
        targets="all-linear" if targets == ["all"] else targets,
    )
    if adapters:
        rank = reading.settings.get("lora.r", 8)
        reading.set("lora.lora_alpha", said.get("lora_alpha", 2 * rank))
    _precision(reading, adapters=adapters)
    warmup(reading)
    packing = said.get("packing") or said.get("neat_packing")
    batching(
        reading,
        packing=packing if packing else said.get("packing"),
        sees_others=not said.get("neat_packing"),
    )
    _data(reading)


def _precision(reading: Reading, *, adapters: bool) -> None:
    # LLaMA-Factory loads the weights in the type that is computed in, and keeps what it trains in
    # float32.
    said = reading.said
    if said.get("pure_bf16"):
        if adapters:
            reading.refuse("pure_bf16", "adapters are kept in float32; say bf16: true")
        reading.set("dtype", "bfloat16")
        reading.set("sft.bf16", False)
        return
    if said.get("bf16") and said.get("fp16"):
        reading.refuse("fp16", "bf16 is true as well; take one")
    computed = "bfloat16" if said.get("bf16") else "float16" if said.get("fp16") else "float32"
    reading.set("sft.bf16", computed == "bfloat16")
    reading.set("sft.fp16", computed == "float16")
    reading.set("dtype", computed if adapters else "float32")


def _data(reading: Reading) -> None:
    said = reading.said
    if reading.is_taken("data"):
        reading.decided |= {
            key: "DATA is said otherwise" for key in ("dataset", "dataset_dir") if key in said
        }
        if "max_samples" in said:
            _require_few(reading, str(reading.taken["data"]))
        return
    if "dataset" not in said:
        others = [key for key in ("dataset_dir", "max_samples") if key in said]
        reading.decided |= dict.fromkeys(others, "no dataset is named")
        return
    datasets = said["dataset"]
    if len(datasets) != 1:
        reading.refuse("dataset", ONE_FILE)
        return
    folder = said.get("dataset_dir", "data")
    if folder == "ONLINE":
        set_data(reading, datasets[0], "")
    elif folder.startswith("REMOTE:"):
        reading.refuse("dataset_dir", "a dataset_info.json of this machine is read, or none")
    else:
        reading.set("data", datasets[0])
        reading.set("dataset_info", str(Path(folder) / "dataset_info.json"))
    if "max_samples" in said:
        file = datasets[0]
        if reading.settings.get("dataset_info"):
            file = read_dataset_info(reading.settings["dataset_info"], file).data
        _require_few(reading, file)


def _require_few(reading: Reading, file: str | None) -> None:
    # The first rows of a file that has no more are all of them.
    limit = reading.said["max_samples"]
    if file is not None and Path(file).is_file():
        found = sum(1 for _ in read_rows(find_source(file, None)))
        if found <= limit:
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
