"""What trainers share: transformers' TrainingArguments, and keys that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsift.trainer_configs.keys import EMPTY, Joint, Key, Reading, Setting, same, table
from gradsift.trainer_configs.values import anything, flag, integer, number, ratio, text

SPEED = "speed and memory only: the same training up to rounding"
TRAINED_WEIGHTS = "gradsift trains all parameters or LoRA adapters"
LOSS = "a row's loss is its negative log-likelihood; take it out"
NO_CLIPPING = "gradients would not be clipped: say 0 for that"
# Names that load_dataset takes for "the files that follow".
FILE_KINDS = ("json", "csv", "parquet", "arrow")
ONE_FILE = "give one file: merge the others into it, or name DATA on the command line"


TRAINING_ARGUMENTS = table(
    "TrainingArguments",
    {
        **same(
            "per_device_train_batch_size gradient_accumulation_steps data_seed "
            "torch_empty_cache_steps",
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
            "average_tokens_across_devices fp16 tf32 gradient_checkpointing "
            "activation_checkpointing full_determinism use_cpu",
            "sft.",
            flag,
        ),
        "bf16": Setting("sft.bf16", flag),
        "warmup_steps": Joint("sft.warmup_steps", number),
        "warmup_ratio": Joint("sft.warmup_steps", ratio),
        "seed": Setting("seed", integer),
        "group_by_length": Joint("batching", flag),
        "train_sampling_strategy": Joint("batching", text),
    },
)


def trains_adapters(reading: Reading, in_file: bool) -> bool:
    """Return whether adapters are trained: the command line or `config` may say it, too."""
    if reading.taken.get("lora") is False:
        return False
    return in_file or any(name.startswith("lora.") for name in reading.taken)


def lora(
    reading: Reading, *, with_adapters: bool, keys: Mapping[str, Key], targets: Any = None
) -> None:
    """Settle where adapters are trained; without them, no `lora.` settings stay.

    `targets` is what the file says of the modules: names, "all-linear", or None for the choice that
    peft makes for the architecture.
    """
    if with_adapters:
        reading.set("lora.target_modules", targets)
        return
    for name in [name for name in reading.settings if name.startswith("lora.")]:
        del reading.settings[name]
    why = "without an adapter it is of no consequence"
    if reading.taken.get("lora") is False:
        why = "`lora: false` trains all parameters"
    for name in [name for name in reading.values if name in reading.given]:
        to = getattr(keys.get(name), "to", "")
        if to.startswith("lora."):
            reading.decided[name] = why


def warmup(reading: Reading) -> None:
    """Settle the steps of warmup: their number comes before their share of all steps."""
    values = reading.values
    # 0 is what transformers takes for "not said".
    if values.get("warmup_steps") or "warmup_ratio" not in reading.given:
        used, other = "warmup_steps", "warmup_ratio"
    else:
        used, other = "warmup_ratio", "warmup_steps"
    if used not in values:
        used, other = other, used
    if used in values:
        reading.set("sft.warmup_steps", values[used])
        values.pop(other, None)
        if other in reading.given:
            reading.decided[other] = f"{used} comes before it"


def batching(reading: Reading, *, packing: bool | None, sees_others: bool) -> None:
    """Settle how rows come together in a batch.

    `packing` is whether the file says that rows share a sequence, `sees_others` whether they would
    see each other there.
    """
    alike = _by_length(reading)
    if packing and not reading.is_taken("batching"):
        apart = "; rows of a sequence are kept apart: none sees another" if sees_others else ""
        reading.remarks["packing"] = (
            "a micro-batch has as many rows as its size says, packed, and not as many full "
            f"sequences: raise the batch size for as many rows in a step{apart}"
        )
    if packing:
        reading.set("batching", "packed")
    elif alike:
        reading.set("batching", "by_length")
    elif packing is False or reading.values.get("group_by_length") is False:
        reading.set("batching", "random")


def one_dataset(reading: Reading, key: str, keys: Mapping[str, Key]) -> Reading | None:
    """Read the only entry of a list of datasets, and set `data` and `split`; several are refused.

    What belongs together in the entry is left to the tool; None if there is not one entry.
    """
    entries = reading.values[key]
    if not isinstance(entries, list) or not isinstance(entries[0], dict):
        reading.refuse(key, "expected a list of one entry, `- path: …` and what else it says")
        return None
    if len(entries) != 1:
        reading.refused[f"{key} ({len(entries)} of them)"] = ONE_FILE
        return None
    values = {name: value for name, value in entries[0].items() if value not in EMPTY}
    entry = Reading(values, frozenset(values), reading.taken, reading.settings)
    entry.read(keys)
    path, files = values.get("path"), values.get("data_files")
    files = files if isinstance(files, list) else [files] if files else []
    if len(files) > 1:
        entry.refuse("data_files", ONE_FILE)
    elif files and path not in FILE_KINDS:
        entry.refuse("data_files", f"expected with path: one of {', '.join(FILE_KINDS)}")
    elif not files and not isinstance(path, str):
        entry.refuse("path", "expected a file or a hub id")
    else:
        set_data(entry, str(files[0]) if files else path, "split")
    for name in ("decided", "remarks", "refused"):
        getattr(reading, name).update(
            {f"{key}[0].{inner}": why for inner, why in getattr(entry, name).items()}
        )
    reading.unknown += [f"{key}[0].{name}" for name in entry.unknown]
    return entry


def set_data(reading: Reading, name: str, split_key: str) -> None:
    """Set where the rows come from: a path (from the working directory) or a hub id."""
    split = reading.values.get(split_key)
    key = next(key for key in ("data_files", "path", "dataset_name", "dataset")
               if key in reading.values)  # fmt: skip
    reading.set("data", name)
    try:
        exists = Path(name).exists()
    except OSError as error:
        reading.refuse(key, f"no path ({error.strerror})")
        return
    if not exists and (why := _no_file(name)):
        reading.refuse(key, why)
    elif not exists:
        # That is what all of them take of a hub dataset.
        reading.set("split", split or "train")
    elif Path(name).is_dir():
        reading.set("split", split)
    elif split not in (None, "train"):
        reading.refuse(split_key, "a file has no splits; put those rows into a file of their own")


def _by_length(reading: Reading) -> bool | None:
    # Whether rows of a length come together.
    sampler = reading.values.get("train_sampling_strategy", "random")
    if sampler not in ("random", "group_by_length"):
        reading.refuse("train_sampling_strategy", "known are random and group_by_length")
    return sampler == "group_by_length" or reading.values.get("group_by_length")


def _no_file(name: str) -> str | None:
    # Why it can be no file and no hub id, if it cannot.
    if "://" in name:
        return "an address: download the file, and name it"
    if name.startswith("~"):
        return "~ is not expanded in a file: write the path out"
    if any(sign in name for sign in "*?["):
        return f"a pattern: {ONE_FILE}"
    return None
