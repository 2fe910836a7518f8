"""Rows for axolotl: conversations under the tokenizer's chat template, and its configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gradsift.data.example import Example, Plain
from gradsift.data.exports.rows import (
    NO_WEIGHTS,
    Exported,
    ExportRow,
    Notes,
    Setup,
    as_text,
    kind_of,
    note_template_kwargs,
    plain_record,
    require_texts,
    say_rows,
    write_lines,
)
from gradsift.data.exports.settings import TOKENIZER, in_words, same, without_words
from gradsift.data.rendering import thinking_of
from gradsift.files import write_text

# What each kind of rows is for axolotl.
CHAT = {"type": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
FLAGGED = {"message_field_training": "weight"}
TEXT = {"type": "completion", "field": "text"}
PAIR = {
    "type": {
        "field_instruction": "prompt",
        "field_output": "completion",
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    }
}
SFT_WORDS = {
    **same(
        "gradient_accumulation_steps learning_rate lr_scheduler_kwargs warmup_steps weight_decay "
        "adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim_args optim_target_modules bf16 "
        "fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps "
        "accelerator_config"
    ),
    "per_device_train_batch_size": "micro_batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
}
LORA_WORDS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "fan_in_fan_out": "lora_fan_in_fan_out",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "layers_to_transform": "peft_layers_to_transform",
    "layers_pattern": "peft_layers_pattern",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "init_lora_weights": "peft_init_lora_weights",
    "trainable_token_indices": "peft_trainable_token_indices",
}
HEAD = "# axolotl train {file}\n"
WEIGHTS = """\
# `weight` is the share of a file that is drawn (axolotl's pull request 3690). A version without it
# ignores the key and takes all rows: look at how many it says that it trains on.
"""


def write_axolotl(rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows and a configuration.

    Rows that are weighted and come from several sources are a file for each source, with a `weight`
    that gives the sources the shares that their rows' weights have. Rows of replay are a file of
    their own, of which as large a share is drawn as of the others together, and may be of another
    kind.
    """
    kinds = {
        is_replay: kind_of([row for row in rows if row.is_replay is is_replay])
        for is_replay in (False, True)
    }
    done, notes = say_rows(
        rows, lambda row, notes: _record(row, notes, kinds[row.is_replay]), "axolotl"
    )
    selected = [pair for pair in done if not pair[0].is_replay]
    weights = _weights([row for row, _ in selected])
    groups = [("", selected, {})]
    if weights:
        groups = [
            (
                f"-{number}-{_slug(name)}",
                [pair for pair in selected if pair[0].source == name],
                {"weight": weight},
            )
            for number, (name, weight) in enumerate(weights.items())
        ]
    replay = [pair for pair in done if pair[0].is_replay]
    share = {}
    if replay and weights:
        share = {"weight": _drawn([row for row, _ in selected], weights)}
    groups += [("-replay", replay, share)] if replay else []
    entries, files = [], []
    for part, group, entry in groups:
        kind = kinds[part == "-replay"]
        records = [record for _, record in group]
        file = write_lines(folder / f"axolotl{part}.jsonl", records)
        files.append(file)
        if kind != "chat":
            require_texts(file, "axolotl")
        place = {"path": str(file), "ds_type": "json"}
        entries.append(place | _entry(kind, records) | entry)
    config = folder / "axolotl.yaml"
    settings, missing = _settings(setup)
    settings["datasets"] = entries
    head = HEAD.format(file=config) + (WEIGHTS if weights else "")
    write_text(config, head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    drawn = weights | ({"replay": share["weight"]} if share else {})
    shares = ", ".join(f"{name} {weight}" for name, weight in drawn.items())
    told = without_words(missing)
    if not weights and any(row.weight is not None for row, _ in done):
        told.append(NO_WEIGHTS)
    if weights:
        told.append(
            f"{len(selected)} rows: axolotl is to draw a share of each source: {shares}; a version "
            "that does not know `weight` takes all"
        )
    if setup.config.truncation == "keep_end":
        told.append("axolotl has no `truncation: keep_end`: of a longer row it keeps the start")
    return Exported((*files, config), len(done), (*notes.lines(), *told))


def _record(row: ExportRow, notes: Notes, kind: str) -> dict[str, Any]:
    example = row.example
    if isinstance(example, Plain):
        return plain_record(example, kind, "prompt", "completion")
    note_template_kwargs(row, notes)
    answers = [message["role"] == "assistant" for message in example.messages]
    flagged = list(example.train) != answers
    messages = []
    for message, answer, train in zip(example.messages, answers, example.train, strict=True):
        turn = dict(message)
        thinking = thinking_of(message)
        if thinking is not None:  # What its `field_thinking` is called if nothing is said.
            turn.setdefault("reasoning_content", thinking)
        if turn.get("tool_calls"):
            turn["tool_calls"] = [_call(call) for call in turn["tool_calls"]]
        if flagged and answer:
            turn["weight"] = int(train)
        messages.append(turn)
    return {"messages": messages, **({"tools": example.tools} if example.tools else {})}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    # As text, which axolotl reads: arguments of other rows put no nulls into it.
    function = call["function"]
    return {**call, "function": {**function, "arguments": as_text(function.get("arguments") or {})}}


def _entry(kind: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if kind != "chat":
        return TEXT if kind == "text" else PAIR
    flagged = any("weight" in turn for record in records for turn in record["messages"])
    return {
        **CHAT,
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        **({"field_tools": "tools"} if any("tools" in record for record in records) else {}),
        **(FLAGGED if flagged else {}),
    }


def _weights(rows: Sequence[ExportRow]) -> dict[str | None, float]:
    """Return the mean weight of each source's rows over the largest such mean, in (0, 1].

    Empty where rows have no weights or there is one source.
    """
    by_source: dict[str | None, list[float]] = {}
    for row in rows:
        if row.weight is not None:
            by_source.setdefault(row.source, []).append(row.weight)
    if len(by_source) < 2:
        return {}
    means = {name: sum(weights) / len(weights) for name, weights in by_source.items()}
    largest = max(means.values())
    return {name: round(max(mean / largest, 1e-4), 4) for name, mean in means.items()}


def _drawn(rows: Sequence[ExportRow], weights: dict[str | None, float]) -> float:
    """Return the share of all that is trained on, in characters, that these weights draw."""
    sizes = [len(_trained(row.example)) for row in rows]
    drawn = sum(weights[row.source] * size for row, size in zip(rows, sizes, strict=True))
    return round(max(drawn / max(sum(sizes), 1), 1e-4), 4)


def _trained(example: Example) -> str:
    if isinstance(example, Plain):
        return example.response
    return "".join(str(turn.get("content") or "") for turn in example.trained)


def _slug(name: str | None) -> str:
    return re.sub(r"[^\w.-]+", "_", name or "unknown")[:40]


def _settings(setup: Setup) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration without its rows, and the settings that have no place in it."""
    config, lora = setup.config, setup.config.lora_settings()
    words, missing = in_words(config, SFT_WORDS, LORA_WORDS)
    settings: dict[str, Any] = {
        "base_model": config.model,
        **({"revision_of_model": config.revision} if config.revision else {}),
        "chat_template": "tokenizer_default",
        "sequence_len": config.max_length,
        "excess_length_strategy": "drop" if config.truncation == "drop" else "truncate",
        "num_epochs": 3,
        "bf16": False if words.get("fp16") else "auto",
        "train_on_inputs": False,
        "val_set_size": 0,
        "output_dir": "trained",
        **words,
        **_tokenizer(setup),
    }
    if config.chat_template_kwargs:
        settings["chat_template_kwargs"] = config.chat_template_kwargs
    if config.load_in:
        settings[f"load_in_{config.load_in}"] = True
    if lora is not None:
        settings["adapter"] = "qlora" if config.load_in == "4bit" else "lora"
        if settings["lora_target_modules"] == "all-linear":
            del settings["lora_target_modules"]
            settings["lora_target_linear"] = True
    return settings, missing


def _tokenizer(setup: Setup) -> dict[str, Any]:
    """Return what the user's own settings make of the tokenizer: template and tokens."""
    sft = setup.config.sft
    if not any(sft.get(key) is not None for key in TOKENIZER):
        return {}
    tokenizer, said = setup.tokenizer(), {}
    tokens = {"pad_token": tokenizer.pad_token} if sft.get("pad_token") is not None else {}
    # Another tokenizer's template brings its token.
    tokens |= {"eos_token": tokenizer.eos_token} if tokenizer.eos_token is not None else {}
    if sft.get("chat_template_path") is not None:
        said = {"chat_template": "jinja", "chat_template_jinja": tokenizer.chat_template}
    return said | ({"special_tokens": tokens} if tokens else {})
