"""Rows for LLaMA-Factory: ShareGPT turns with tags, and a dataset_info.json that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gradsift.config import RunConfig
from gradsift.data.dataset_configs import TAG_ROLES, USUAL_COLUMNS
from gradsift.data.example import Chat, Plain
from gradsift.data.exports.rows import (
    CannotSayError,
    Exported,
    ExportRow,
    Notes,
    Setup,
    as_object,
    as_text,
    calls_of,
    kind_of,
    note_template_kwargs,
    plain_record,
    require_texts,
    say_rows,
    upto_last_answer,
    without_fields,
    write_lines,
)
from gradsift.data.exports.settings import TOKENIZER, in_words, same, without_words
from gradsift.files import write_text

FIELDS = ("role", "content", "tool_calls", "function_call")
NAME = "selected"
# What a template calls a role → the tag of it.
TAGS = {role: word for word, role in TAG_ROLES.values()}
SFT_WORDS = {
    **same(
        "per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type "
        "lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon "
        "max_grad_norm optim optim_args optim_target_modules bf16 fp16 tf32 full_determinism "
        "data_seed torch_empty_cache_steps accelerator_config logging_steps "
        "dataloader_num_workers deepspeed"
    ),
    # Said the other way round.
    "gradient_checkpointing": "disable_gradient_checkpointing",
    "use_liger_kernel": "enable_liger_kernel",
}
LORA_WORDS = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target",
    "modules_to_save": "additional_target",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
HEAD = "# llamafactory-cli train {file}\n"
TEMPLATE = """\
# `template` is left out: it is then made of the tokenizer's own chat template. Name one of
# LLaMA-Factory's if that is refused.
"""


def write_llamafactory(rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows, a dataset_info.json and a configuration for `llamafactory-cli train`.

    Which answers are trained on is said for the whole file: all of them, or the last of each row
    (`mask_history`); rows that say the other are left out, the fewer ones.
    """
    folder = folder / "llamafactory"
    kind = kind_of(rows)
    last_only = _last_only([row for row in rows if not row.is_replay])

    def record(row: ExportRow, notes: Notes) -> dict[str, Any]:
        note_template_kwargs(row, notes, setup.config)
        return _record(row, notes, kind, last_only)

    done, notes = say_rows(rows, record, "llamafactory")
    entry: dict[str, Any] = {"file_name": "data.jsonl"}
    more: dict[str, Any] = {"mask_history": True} if last_only else {}
    if kind == "text":
        entry |= {"columns": {"prompt": "text"}}
    elif kind == "pair":
        entry |= {"columns": {key: USUAL_COLUMNS[key] for key in ("prompt", "response")}}
        # Prompt and answer as they are, one after the other.
        more["template"] = "empty"
    else:
        tools = {"tools": "tools"} if any("tools" in record for _, record in done) else {}
        entry |= {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", **tools},
            "tags": {
                "role_tag": "from",
                "content_tag": "value",
                **{tag: word for tag, (word, _) in TAG_ROLES.items()},
            },
        }
        for _, record in done:
            record.update({"tools": record.get("tools", "")} if tools else {})
    file = write_lines(folder / "data.jsonl", (record for _, record in done))
    if kind != "chat":
        require_texts(file, "llamafactory")
    info, config = folder / "dataset_info.json", folder / "sft.yaml"
    write_text(info, json.dumps({NAME: entry}, indent=2, ensure_ascii=False) + "\n")
    # Its stage pt packs rows if nothing is said, across the length.
    more |= {"stage": "pt", "packing": False} if kind == "text" else {}
    settings, missing = _settings(setup.config, folder)
    settings |= more
    head = HEAD.format(file=config) + (TEMPLATE if kind == "chat" else "")
    write_text(config, head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return Exported((file, info, config), len(done), (*notes.lines(), *without_words(missing)))


def _last_only(rows: Sequence[ExportRow]) -> bool:
    every, last = 0, 0
    for row in rows:
        if isinstance(row.example, Chat):
            answers = sum(message["role"] == "assistant" for message in row.example.messages)
            trained = sum(row.example.train)
            every += trained == answers
            last += trained == 1
    return last > every


def _record(row: ExportRow, notes: Notes, kind: str, last_only: bool) -> dict[str, Any]:
    if isinstance(row.example, Plain):
        return plain_record(row.example, kind, USUAL_COLUMNS["prompt"], USUAL_COLUMNS["response"])
    if kind != "chat":
        raise CannotSayError("a conversation among plain text, and a file of its form is of one")
    example = upto_last_answer(row, notes)
    turns = []
    for i, message in enumerate(example.messages):
        turn = without_fields(row, message, FIELDS, notes)
        turns.append(_turn(turn, i))
    answers = [turn["from"] in ("gpt", "function_call") for turn in turns]
    trained = sum(example.train)
    if trained != (1 if last_only else sum(answers)):
        raise CannotSayError(
            "trained on other answers than "
            + ("the last" if last_only else "all")
            + ", while its form says that of the whole file"
        )
    first = 1 if turns[0]["from"] == "system" else 0
    if answers[first:] != [bool(i % 2) for i in range(len(turns) - first)]:
        raise CannotSayError("its form takes question and answer by turns only")
    tools = {"tools": as_text(example.tools)} if example.tools else {}
    return {"conversations": turns, **tools}


def _turn(message: dict[str, Any], i: int) -> dict[str, str]:
    calls = calls_of(message)
    if calls:
        if message.get("content"):
            raise CannotSayError("its form takes either text or tool calls in a turn")
        named = [{"name": c["name"], "arguments": as_object(c.get("arguments"))} for c in calls]
        return {"from": "function_call", "value": as_text(named[0] if len(named) == 1 else named)}
    role = message["role"]
    if role not in TAGS or (role == "system" and i):
        raise CannotSayError(f"its form takes no {role} turn" + (" but the first" if i else ""))
    return {"from": TAGS[role], "value": message["content"]}


def _settings(config: RunConfig, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration, and the settings that have no place in it."""
    lora = config.lora_settings()
    words, missing = in_words(config, SFT_WORDS, LORA_WORDS)
    missing += [f"sft.{key}" for key in TOKENIZER if config.sft.get(key) is not None]
    if config.truncation != "keep_start":
        missing.append(f"truncation: {config.truncation}")
    settings: dict[str, Any] = {
        "model_name_or_path": config.model,
        **({"model_revision": config.revision} if config.revision else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if lora is None else "lora",
        "dataset_dir": str(folder),
        "dataset": NAME,
        "cutoff_len": config.max_length,
        "output_dir": "trained",
        **words,
    }
    if "disable_gradient_checkpointing" in settings:
        on = settings["disable_gradient_checkpointing"]
        settings["disable_gradient_checkpointing"] = not on
    if settings.get("lora_target") == "all-linear":
        settings["lora_target"] = "all"
    if config.load_in:
        settings["quantization_bit"] = int(config.load_in.removesuffix("bit"))
    return settings, missing
