"""Keys of transformers' TrainingArguments, which trl and LLaMA-Factory share."""

from __future__ import annotations

from gradsift.trainer_configs.keys import Decided, Joint, Key, Refused, Setting, each, same
from gradsift.trainer_configs.values import anything, flag, integer, number, ratio, text

DEVICES = "how the work is spread over devices is said when the process is started"
EVALUATION = "nothing is evaluated while recording; all rows of the file are captured"
FETCHING = "how rows are fetched and kept in memory"
LOGGING = "gradsift tells its progress itself"
REPORTS = "nothing is sent anywhere"
SAVING = "checkpoints are gradsift's own, in the run folder (`save_steps`)"
SPEED = "speed and memory only: the same training up to rounding"
FOLDER = "the run folder (`out`) is used"
EPOCHS = "the preliminary epoch is one epoch"
NEFTUNE = "its noise would be in the recorded gradients; take it out"
NO_CLIPPING = "gradients would not be clipped: say 0 for that"
LOSS = "a row's loss is its negative log-likelihood; take it out"

TRAINING_ARGUMENTS: dict[str, Key] = {
    **same(
        "per_device_train_batch_size gradient_accumulation_steps data_seed torch_empty_cache_steps",
        "sft.",
        integer,
    ),
    **same(
        "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
        "sft.",
        number,
    ),
    **same("lr_scheduler_type optim", "sft.", text),
    **same(
        "lr_scheduler_kwargs optim_args optim_target_modules gradient_checkpointing_kwargs "
        "activation_checkpointing_kwargs accelerator_config",
        "sft.",
        anything,
    ),
    **same(
        "average_tokens_across_devices fp16 tf32 gradient_checkpointing activation_checkpointing "
        "full_determinism use_cpu",
        "sft.",
        flag,
    ),
    "bf16": Setting("sft.bf16", flag),
    "warmup_steps": Joint("sft.warmup_steps", number),
    "warmup_ratio": Joint("sft.warmup_steps", ratio),
    "seed": Setting("seed", integer),
    **each("num_train_epochs max_steps", Decided(EPOCHS)),
    **each("output_dir overwrite_output_dir logging_dir", Decided(FOLDER)),
    **each(
        "save_strategy save_steps save_total_limit save_only_model save_on_each_node "
        "save_safetensors enable_jit_checkpoint resume_from_checkpoint ignore_data_skip "
        "restore_callback_states_from_checkpoint",
        Decided(SAVING),
    ),
    **each(
        "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen include_tokens_per_second log_level log_level_replica "
        "disable_tqdm skip_memory_metrics debug",
        Decided(LOGGING),
    ),
    **each(
        "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push "
        "hub_revision",
        Decided(REPORTS),
    ),
    **each(
        "do_eval do_predict eval_strategy evaluation_strategy eval_steps eval_delay eval_on_start "
        "per_device_eval_batch_size prediction_loss_only eval_do_concat_batches "
        "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics "
        "bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model "
        "greater_is_better label_names use_cache",
        Decided(EVALUATION),
    ),
    "do_train": Decided("the preliminary epoch is what gradsift does"),
    **each(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order "
        "remove_unused_columns length_column_name",
        Decided(FETCHING),
    ),
    **each(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
        "ddp_backend ddp_timeout fsdp fsdp_config deepspeed parallelism_config local_rank",
        Decided(DEVICES),
    ),
    **each(
        "torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
        "liger_kernel_config",
        Decided(SPEED),
    ),
    "group_by_length": Joint("batching", flag),
    "train_sampling_strategy": Joint("batching", text),
    "neftune_noise_alpha": Refused(NEFTUNE),
    "label_smoothing_factor": Refused(LOSS),
    "auto_find_batch_size": Refused(
        "the batch size must be known: give per_device_train_batch_size"
    ),
    "dataloader_drop_last": Refused("every row is recorded; take it out"),
}
