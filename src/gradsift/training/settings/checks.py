"""Whether the user's settings for trl's SFTConfig can be: checked before anything is loaded.

transformers and torch find many of them only when training begins, and some not at all.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import trainer_log_levels
from trl import SFTConfig

from gradsift.errors import GradsiftError
from gradsift.schema import LONGEST_VALUE, misspelt, of_type
from gradsift.training.reports import reports_to
from gradsift.training.settings.known import (
    ACCELERATOR_PASSED,
    RESERVED,
    SFT_PASSED,
    refused_of_sft,
    require_plain_files,
    unknown_fields,
)
from gradsift.wording import one_line, short

MAPPINGS = (
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
)
# Optimizers that are made for a model's own layers.
MODEL_OPTIMIZERS = ("galore", "apollo", "lomo")
STEP_SETTINGS = (
    "optim",
    "optim_args",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
)
LOADER_SETTINGS = (
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)
AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "pad_to_multiple_of",
    "dataloader_prefetch_factor",
)
NOT_NEGATIVE = (
    "weight_decay",
    "max_grad_norm",
    "dataloader_num_workers",
    "data_seed",
    "logging_steps",
)
# Settings that do nothing without another one.
NEED_ANOTHER = {
    "liger_kernel_config": "use_liger_kernel",
    "fsdp_config": "fsdp",
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "activation_checkpointing",
}
SAME_THING = (
    ("activation_checkpointing", "gradient_checkpointing"),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)
# What is missed only when training begins: module, and what pip calls it.
PACKAGES = {
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
    "deepspeed": ("deepspeed", "deepspeed"),
}
# Where trainings are reported to: named as their packages are.
REPORTERS = ("tensorboard", "wandb", "trackio")
# Sections of DeepSpeed's configuration that write or send what happens.
DEEPSPEED_REPORTS = ("tensorboard", "wandb", "comet", "csv_monitor", "flops_profiler")
PACKAGES_OF_OPTIMIZERS = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
}
# What an argument of an optimizer may be set to, to see whether it is looked at.
OTHER_VALUES = ("0.5", "True", "False", "float16")
# Schedules that look at no arguments, and of these one that does not warm up.
CONSTANT, CONSTANTS = "constant", ("constant", "constant_with_warmup")


def require_values(sft: Mapping[str, object]) -> None:
    """Refuse settings that gradsift decides or does not have, and values of the wrong kind."""
    require_plain_files(sft)
    reasons = [f"{key}: {reason}" for key, reason in refused_of_sft(sft).items()]
    if reasons:
        raise GradsiftError(f"sft settings that gradsift decides itself: {'; '.join(reasons)}.")
    fields = SFTConfig.__dataclass_fields__
    unknown = unknown_fields(sft, fields, RESERVED)
    if unknown:
        raise GradsiftError(
            f"sft settings that trl's SFTConfig does not know: {misspelt(unknown, fields)}."
        )
    untried = unknown_fields(sft, SFT_PASSED, RESERVED)
    if untried:
        raise GradsiftError(
            f"sft settings of a newer trl or transformers, which gradsift does not know yet: "
            f"{', '.join(untried)}. Take them out: what they do to a recording was not tried."
        )
    for key, value in sft.items():
        if key in SFT_PASSED:
            _require_value(key, value)
    _require_packages(sft)
    _require_reports(sft)
    _require_no_reports(sft)
    _require_accelerator(sft)


def require_config(config: SFTConfig, sft: Mapping[str, object]) -> None:
    """Refuse what a configuration would fail at, or ignore, once training begins."""
    _require_partners(config, sft)
    _require_log_levels(config)
    _require_checkpointing(config, sft)
    _require_rows_dealt_once(config)
    _require_loader(config, sft)
    _require_compiler(config)
    _require_steps(config, sft)


def without_effect(config: SFTConfig, sft: Mapping[str, object]) -> Iterator[str]:
    """Say which settings do nothing beside the others, as in trl itself."""
    if config.learning_rate == 0:
        yield "sft setting learning_rate is 0: no weight changes, whatever the rows are"
    schedule, optimizer = _name(config.lr_scheduler_type), _name(config.optim)
    if schedule == CONSTANT and config.warmup_steps:
        yield (
            f"sft setting warmup_steps has no effect with lr_scheduler_type: {CONSTANT}, as in "
            "trl; constant_with_warmup warms up"
        )
    if _is_of_model(optimizer):
        return
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        other = 0.5 if "beta" in key else 1e-3
        if key in sft and not _acts(config, key, other if sft[key] != other else other / 2):
            yield f"sft setting {key} has no effect with optim: {optimizer}, as in trl"
    for name in _idle_optim_args(config):
        yield f"sft setting optim_args: {name} has no effect with optim: {optimizer}, as in trl"


def _name(value: object) -> str:
    """Return the name of a choice that is an Enum, or text."""
    return str(getattr(value, "value", value))


def _is_of_model(optimizer: str) -> bool:
    return any(name in optimizer for name in MODEL_OPTIMIZERS)


def _require_value(key: str, value: object) -> None:
    field = SFTConfig.__dataclass_fields__[key]

    def expected(what: str) -> GradsiftError:
        return GradsiftError(
            f"sft setting {key} is {short(repr(value), LONGEST_VALUE)}, expected {what}."
        )

    # Where a share of all steps may stand for their number, the default is 0, the type float.
    kind = float if field.type is float else type(field.default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and abs(value) <= sys.float_info.max
    if key in MAPPINGS and value is not None:
        kind = dict
    elif key == "optim_args" and value is not None:
        pairs = value.split(",") if isinstance(value, str) else [""]
        if not all(pair.count("=") == 1 for pair in pairs):
            raise expected("name=value,name=value")
    elif key == "pad_to_multiple_of":
        kind = int if value not in ("auto", None) else str
    if number and not finite and kind is not int:
        raise expected("a finite number")
    fits = {
        bool: isinstance(value, bool),
        int: finite and value == int(value),
        float: finite,
        dict: isinstance(value, dict),
    }.get(kind)
    if fits is False:
        raise expected(f"a value of type {kind.__name__}")
    if fits is None and value is not None:
        _require_of_hint(key, value)
    if key in AT_LEAST_ONE and number and value < 1:
        raise expected("at least 1")
    if key in NOT_NEGATIVE and number and value < 0:
        raise expected("at least 0")


def _require_of_hint(key: str, value: object) -> None:
    """Check a value whose default says nothing by what the field is annotated with."""
    hint = get_type_hints(SFTConfig)[key]
    kinds = get_args(hint) or (hint,)
    plain = (int, float, bool, str, type(None), dict, list)
    if not all(kind in plain or get_origin(kind) in plain for kind in kinds):
        return  # An Enum: transformers names the choices.
    if key == "fsdp" and isinstance(value, bool | list):
        return  # Older transformers' ways, which it still takes.
    of_type(hint, value, f"sft setting {key}")


def _require_packages(sft: Mapping[str, object]) -> None:
    optimizer = _name(sft.get("optim"))
    needed = {key: value for key, value in PACKAGES.items() if sft.get(key)}
    for name, package in PACKAGES_OF_OPTIMIZERS.items():
        if name in optimizer:
            needed[f"optim: {optimizer}"] = package
    for setting, (module, package) in needed.items():
        if importlib.util.find_spec(module) is None:
            raise GradsiftError(
                f"sft setting {setting} needs the package {package}: pip install {package}, or "
                "take the setting out."
            )


def _require_reports(sft: Mapping[str, object]) -> None:
    said = sft.get("report_to") or []
    for name in [said] if not isinstance(said, list | tuple) else said:
        if name not in (*REPORTERS, "none"):
            raise GradsiftError(
                f"sft setting report_to is {short(repr(name), LONGEST_VALUE)}; known are "
                f"{', '.join(REPORTERS)} and none."
            )
    names = reports_to(sft)
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise GradsiftError(
                f"sft setting report_to: {name} needs the package {name}: pip install {name}, or "
                "take the setting out."
            )
    for key in ("run_name", "project"):
        if sft.get(key) and not names:
            raise GradsiftError(
                f"sft setting {key} has no effect without report_to: set that, too, or take it out."
            )
    if sft.get("project") and "trackio" not in names:
        raise GradsiftError(
            "sft setting project is Trackio's alone; for wandb it is in the environment "
            "(WANDB_PROJECT): take it out."
        )


def _require_no_reports(sft: Mapping[str, object]) -> None:
    """Refuse what DeepSpeed would write or send elsewhere."""
    said = sft.get("deepspeed")
    if isinstance(said, str) and Path(said).is_file():
        try:
            said = json.loads(Path(said).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise GradsiftError(f"sft setting deepspeed: {said}: not JSON: {error}.") from None
    for name in DEEPSPEED_REPORTS if isinstance(said, dict) else ():
        report = said.get(name)
        if isinstance(report, dict) and report.get("enabled"):
            raise GradsiftError(
                f"sft setting deepspeed: {name}: nothing is sent anywhere, or written elsewhere "
                "than in the run folder; take it out."
            )


def _require_accelerator(sft: Mapping[str, object]) -> None:
    if sft.get("use_liger_kernel") and not torch.accelerator.is_available():
        raise GradsiftError(
            "sft setting use_liger_kernel: its kernels need an accelerator, and there is none; "
            "take it out."
        )


def _require_partners(config: SFTConfig, sft: Mapping[str, object]) -> None:
    for key, other in NEED_ANOTHER.items():
        if sft.get(key) and not getattr(config, other):
            raise GradsiftError(
                f"sft setting {key} has no effect without {other}: set that, too, or take it out."
            )
    for new, old in SAME_THING:
        if new in sft and old in sft and sft[new] != sft[old]:
            raise GradsiftError(
                f"sft settings {new} and {old} are the same thing, and differ: take one out."
            )
    optimizer, schedule = _name(config.optim), _name(config.lr_scheduler_type)
    if config.lr_scheduler_kwargs and schedule in CONSTANTS:
        raise GradsiftError(
            f"sft setting lr_scheduler_kwargs has no effect with lr_scheduler_type: {schedule}; "
            "take it out."
        )
    if config.optim_target_modules and not any(name in optimizer for name in ("galore", "apollo")):
        raise GradsiftError(
            f"sft setting optim_target_modules has no effect with optim: {optimizer}, only with "
            "those of GaLore and APOLLO; take it out."
        )


def _require_log_levels(config: SFTConfig) -> None:
    for key in ("log_level", "log_level_replica"):
        value = getattr(config, key)
        if value not in trainer_log_levels:
            raise GradsiftError(
                f"sft setting {key} is {short(repr(value), LONGEST_VALUE)}; known are "
                f"{', '.join(trainer_log_levels)}."
            )


def _require_checkpointing(config: SFTConfig, sft: Mapping[str, object]) -> None:
    """Try the arguments on a function of no consequence: torch refuses what it does not know."""
    for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if not sft.get(key):
            continue
        try:
            value = torch.zeros(1, requires_grad=True)
            checkpoint(torch.neg, value, **{"use_reentrant": False, **sft[key]})
        except Exception as error:  # In its own ways.
            raise GradsiftError(f"sft settings ({given(sft, [key])}): {one_line(error)}") from error


def _require_rows_dealt_once(config: SFTConfig) -> None:
    usual = AcceleratorConfig()
    changed = [
        name
        for name in AcceleratorConfig.__dataclass_fields__
        if name not in ACCELERATOR_PASSED
        and getattr(config.accelerator_config, name) != getattr(usual, name)
    ]
    if changed:
        raise GradsiftError(
            f"sft setting accelerator_config: gradsift decides itself how rows are dealt out, so "
            f"that each is recorded once: take out {', '.join(changed)}."
        )


def _require_loader(config: SFTConfig, sft: Mapping[str, object]) -> None:
    try:
        # Workers are started only by an iteration.
        DataLoader(
            [0], **{k.removeprefix("dataloader_"): getattr(config, k) for k in LOADER_SETTINGS}
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise GradsiftError(
            f"sft settings ({given(sft, LOADER_SETTINGS)}): {one_line(error)}"
        ) from error


def _require_compiler(config: SFTConfig) -> None:
    if not config.torch_compile:
        return
    backends = torch._dynamo.list_backends(exclude_tags=())
    if config.torch_compile_backend not in backends:
        raise GradsiftError(
            f"sft setting torch_compile_backend is {config.torch_compile_backend!r}; known are "
            f"{', '.join(backends)}."
        )
    modes = torch._inductor.list_mode_options()
    if config.torch_compile_mode not in (None, *modes):
        raise GradsiftError(
            f"sft setting torch_compile_mode is {config.torch_compile_mode!r}; known are "
            f"{', '.join(modes)}."
        )


def given(sft: Mapping[str, object], keys: Iterable[str]) -> str:
    """Return what the user says of some settings, for a message."""
    return (
        ", ".join(f"{key}: {short(repr(sft[key]), LONGEST_VALUE)}" for key in keys if key in sft)
        or "all defaults"
    )


def _require_steps(config: SFTConfig, sft: Mapping[str, object]) -> None:
    """Try optimizer and schedule on a parameter of no consequence: they check their own values."""
    if _is_of_model(_name(config.optim)):
        return
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(2),
            num_training_steps=2,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    # Each optimizer and schedule refuses in its own way.
    except Exception as error:
        reason = one_line(error)
        raise GradsiftError(f"sft settings ({given(sft, STEP_SETTINGS)}): {reason}") from error


def _idle_optim_args(config: SFTConfig) -> Iterator[str]:
    """Yield the names in `optim_args` that the optimizer does not look at."""
    pairs = [pair.split("=") for pair in (config.optim_args or "").split(",") if pair]
    for name, _ in pairs:
        rest = [f"{other}={value}" for other, value in pairs if other != name]
        others = [",".join([*rest, f"{name}={value}"]) for value in OTHER_VALUES]
        if not any(_acts(config, "optim_args", other) for other in [",".join(rest), *others]):
            yield name.strip()


def _acts(config: SFTConfig, key: str, value: Any) -> bool:
    """Return whether another value of a setting makes another optimizer, or is refused."""
    changed = copy.copy(config)
    setattr(changed, key, value)
    made = repr(Trainer.get_optimizer_cls_and_kwargs(config))
    try:
        return repr(Trainer.get_optimizer_cls_and_kwargs(changed)) != made
    except (ValueError, TypeError, AttributeError):
        return True
