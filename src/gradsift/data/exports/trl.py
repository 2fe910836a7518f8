"""Rows for trl's SFTTrainer, in whichever of its forms gives the tokens that were recorded."""

from __future__ import annotations

import pprint
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradsift.config import RunConfig
from gradsift.data.example import Chat, Example, Plain
from gradsift.data.exports.rows import Exported, ExportRow, Setup, as_text, write_lines
from gradsift.data.rendering import Template, asks_for_the_day
from gradsift.data.tokenization import Instance, build_instances
from gradsift.errors import GradsiftError
from gradsift.files import write_text
from gradsift.terms import IGNORED_LABEL
from gradsift.wording import counted, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Longer than any row: whether a form says the same is asked of whole rows.
UNCUT = 2**31

SCRIPT = '''\
"""Trains {model} with trl on {file}."""

import json
from pathlib import Path

from datasets import {datasets}
{imports}from trl import SFTConfig, SFTTrainer

# Said, not guessed: load_dataset makes timestamps of a field whose texts are all dates.
FEATURES = Features({features})

with (Path(__file__).resolve().parent / "{file}").open(encoding="utf-8") as lines:
    dataset = Dataset.from_list([json.loads(line) for line in lines], features=FEATURES)
{quantization}config = SFTConfig(
{settings})
trainer = SFTTrainer(
    model={model!r},
    args=config,
    train_dataset=dataset,
{adapters})

if __name__ == "__main__":
    trainer.train()
'''
# What the user's own settings may say as gradsift does it, and the script says for its rows.
DECIDED = (
    "model_init_kwargs",
    "assistant_only_loss",
    "completion_only_loss",
    "dataset_kwargs",
    "dataset_text_field",
    "trust_remote_code",
    "remove_unused_columns",
    "resume_from_checkpoint",
)
TEXT, TURNS, TOKENS = 'Value("string")', "List(Json())", 'List(Value("int64"))'
# Fields that some rows have: what they hold, and what the others have there.
OPTIONAL: dict[str, tuple[str, Any]] = {
    "tools": (TEXT, None),
    "chat_template_kwargs": ("Json()", {}),
}
QUANTIZATION = """\
quantization = BitsAndBytesConfig({})
"""


class Form(NamedTuple):
    """A form of trl's.

    Attributes:
        features: What a record's fields hold.
        settings: What SFTConfig must say for it.
        note: What a user must know of it.
    """

    features: dict[str, str]
    settings: dict[str, bool]
    note: str = ""


PLAIN = Form({"text": TEXT}, {})
PAIR = Form({"prompt": TEXT, "completion": TEXT}, {"completion_only_loss": True})
LAST = Form({"prompt": TURNS, "completion": TURNS}, {"completion_only_loss": True})
MARKED = Form({"messages": TURNS}, {"assistant_only_loss": True})
MARKED_LAST = Form(LAST.features, LAST.settings | MARKED.settings)
TOKENIZED = Form(
    {"input_ids": TOKENS, "labels": TOKENS},
    {},
    "tokens of this model's tokenizer, since no form of trl's in text gives the tokens and labels "
    "that were recorded (such as several answers of a row under a template without "
    "{% generation %} marks, or a template that writes the day)",
)
MIXED = (
    "tokens of this model's tokenizer, since texts stand beside conversations, and no form of "
    "trl's has both"
)


def write_trl(rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows and a script that trains on them.

    The form is the first in which trl makes of every row the tokens and labels that were recorded;
    where there is none in text, tokens and labels themselves.
    """
    form, records = _choose([row.example for row in rows], setup)
    present = {name for record in records for name in record}
    more = {name: one for name, one in OPTIONAL.items() if name in present}
    empty = {name: nothing for name, (_, nothing) in more.items()}
    file = write_lines(folder / "trl.jsonl", (empty | record for record in records))
    # Not trl.py: beside it, `import trl` would find it.
    script = folder / "train_trl.py"
    features = form.features | {name: feature for name, (feature, _) in more.items()}
    write_text(script, _script(file.name, features, form.settings, setup.config))
    note = form.note
    if form is TOKENIZED and len({isinstance(row.example, Plain) for row in rows}) > 1:
        note = MIXED
    notes = (f"{counted(len(rows), 'row')}: {note}",) if note else ()
    return Exported((file, script), len(rows), notes)


def _choose(examples: Sequence[Example], setup: Setup) -> tuple[Form, list[dict[str, Any]]]:
    """Return the form, and the records in it."""
    # What is plain text needs no template and no tokenizer.
    plain = [example for example in examples if isinstance(example, Plain)]
    if len(plain) == len(examples):
        if not any(example.prompt for example in plain):
            return PLAIN, [{"text": example.response} for example in plain]
        return PAIR, [{"prompt": one.prompt, "completion": one.response} for one in plain]
    tokenizer, config = setup.tokenizer(), setup.config
    # What a template writes of the day of training was not recorded.
    if not plain and tokenizer.chat_template and not asks_for_the_day(tokenizer):
        template = Template(tokenizer, kwargs=config.chat_template_kwargs)
        formed = [
            replace(
                example,
                messages=tuple(template.form.of(example.messages)),
                template_kwargs={**config.chat_template_kwargs, **example.template_kwargs},
            )
            for example in examples
            if isinstance(example, Chat)
        ]
        forms = [one for one in (LAST, MARKED, MARKED_LAST) if _can_be(one, formed, template)]
        whole = _instances(examples, setup, UNCUT) if forms else ()
        recorded = [(one.input_ids, one.labels) for one in whole]
        for form in forms:
            read = (_as_trl(example, form, tokenizer) for example in formed)
            if all(a == b for a, b in zip(read, recorded, strict=True)):
                return form, [_record(example, form) for example in formed]
    instances = _instances(examples, setup, config.max_length)
    return TOKENIZED, [{"input_ids": one.input_ids, "labels": one.labels} for one in instances]


def _instances(examples: Sequence[Example], setup: Setup, max_length: int) -> Sequence[Instance]:
    config = setup.config
    built = build_instances(
        ((str(i), example) for i, example in enumerate(examples)),
        setup.tokenizer(),
        max_length=max_length,
        truncation=config.truncation,
        template_kwargs=config.chat_template_kwargs,
        template_date=setup.day(),
    )
    if built.dropped:
        # They were instances when they were captured, perhaps by an earlier gradsift.
        (_, (reason, detail)), *_ = built.dropped.items()
        raise GradsiftError(
            f"{len(built.dropped)} of the selected rows are dropped by this version of gradsift "
            f"({reason}: {short(detail)}). Capture and select again."
        )
    return built.items


def _can_be(form: Form, examples: Iterable[Chat], template: Template) -> bool:
    """Return whether a form can say which turns of the rows are trained on."""
    if "assistant_only_loss" in form.settings and not template.has_marks:
        return False
    if form is MARKED:
        return all(
            list(example.train) == [message["role"] == "assistant" for message in example.messages]
            for example in examples
        )
    return all(
        example.train[-1] and sum(example.train) == 1 and len(example.train) > 1
        for example in examples
    )


def _as_trl(
    example: Chat, form: Form, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]] | None:
    """Return the tokens and labels that trl makes of a row in a form; None if it is refused.

    The row is in the form that the template wants, with all arguments of the template.
    """
    messages, marked = list(example.messages), "assistant_only_loss" in form.settings
    given = {"tools": example.tools, "return_dict": True, **example.template_kwargs}
    try:
        whole = tokenizer.apply_chat_template(
            messages, return_assistant_tokens_mask=marked, **given
        )
        ids, labels = whole["input_ids"], list(whole["input_ids"])
        if marked:
            labels = _masked(labels, whole["assistant_masks"])
        if form is not MARKED:
            prompt = tokenizer.apply_chat_template(
                messages[:-1], add_generation_prompt=True, **given
            )["input_ids"]
            pairs = zip(prompt, ids, strict=False)
            n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            labels = [IGNORED_LABEL] * n + labels[n:]
    except Exception:  # A template is a program: it may raise anything.
        return None
    return ids, labels


def _masked(labels: list[int], mask: Sequence[int]) -> list[int]:
    return [label if on else IGNORED_LABEL for label, on in zip(labels, mask, strict=True)]


def _record(example: Chat, form: Form) -> dict[str, Any]:
    *before, last = example.messages
    record: dict[str, Any] = (
        {"messages": [*before, last]}
        if form is MARKED
        else {"prompt": before, "completion": [last]}
    )
    if example.tools:
        # As text, which trl reads: so schemas of other rows put nothing into it.
        record["tools"] = as_text(example.tools)
    if example.template_kwargs:
        record["chat_template_kwargs"] = example.template_kwargs
    return record


def _script(
    file: str, features: dict[str, str], settings: dict[str, bool], config: RunConfig
) -> str:
    kinds = ", ".join(f'"{name}": {kind}' for name, kind in features.items())
    used = ["Dataset", "Features", *(k for k in ("Json", "List", "Value") if k in kinds)]
    lora = config.lora_settings()
    adapters = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **(lora or {})}
    imports = [] if lora is None else ["from peft import LoraConfig"]
    quantized = _quantization(config)
    imports += ["from transformers import BitsAndBytesConfig"] if quantized else []
    return SCRIPT.format(
        model=config.model,
        file=file,
        datasets=", ".join(used),
        features=f"{{{kinds}}}",
        imports="".join(f"{line}\n" for line in imports),
        quantization=QUANTIZATION.format(quantized) if quantized else "",
        settings="".join(_settings(settings, config)),
        adapters=("" if lora is None else f"    peft_config=LoraConfig(**{_literal(adapters)}),\n"),
    )


def _settings(form: dict[str, bool], config: RunConfig) -> Iterator[str]:
    loading: list[str] = [f'"dtype": {config.dtype!r}']
    loading += [f'"revision": {config.revision!r}'] if config.revision else []
    loading += ['"trust_remote_code": True'] if config.trust_remote_code else []
    loading += ['"quantization_config": quantization'] if config.load_in else []
    cut = {"truncation_mode": "keep_end"} if config.truncation == "keep_end" else {}
    own = {name: value for name, value in config.sft.items() if name not in DECIDED}
    said = {"output_dir": "trained", "max_length": config.max_length, **cut, **own, **form}
    for name, value in said.items():
        yield f"    {name}={_literal(value)},\n"
    yield f"    model_init_kwargs={{{', '.join(loading)}}},\n"


def _quantization(config: RunConfig) -> str:
    # As the capture loads them; see training/quantized.
    if config.load_in == "8bit":
        return "load_in_8bit=True, llm_int8_threshold=0.0"
    if config.load_in == "4bit":
        return (
            'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
            'bnb_4bit_compute_dtype="bfloat16"'
        )
    return ""


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=80, sort_dicts=False)
