"""Exports for LLaMA-Factory, axolotl and OpenAI: their documented fields, and read back again."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Json, model_validator

import gradsift as gs
from gradsift.config import RunConfig
from gradsift.data.example import Chat, Plain
from gradsift.data.exports.rows import ExportRow, Setup
from gradsift.data.exports.write import write_export
from gradsift.trainer_configs.translate import translate


def setup(**more):
    config = RunConfig(data="rows.jsonl", model="a/model", out="runs/x", **more)
    return Setup(config, lambda: pytest.fail("no tokenizer is needed"))


def export(folder, trainer, *examples, **more):
    rows = [ExportRow(f"r{i}", example) for i, example in enumerate(examples)]
    return write_export(trainer, rows, Path(folder), setup(**more))


def chat(*turns, train=None, tools=None):
    """Turns as (role, text) or (role, calls); all answers are trained on if nothing is said."""
    messages = []
    for role, said in turns:
        calls = [{"type": "function", "function": call} for call in said if call != ""]
        more = {} if isinstance(said, str) else {"tool_calls": calls}
        messages.append({"role": role, "content": said if isinstance(said, str) else "", **more})
    answers = tuple(role == "assistant" for role, _ in turns)
    return Chat(tuple(messages), answers if train is None else train, tools)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


LOOK = {"name": "look", "arguments": {"city": "Rome", "at": None}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
HI = chat(("user", "hi"), ("assistant", "yo"))
USED = chat(
    ("user", "hi"), ("assistant", [LOOK]), ("tool", "sun"), ("assistant", "ok"), tools=TOOLS
)
TWO = (("user", "hi"), ("assistant", "a"), ("user", "so?"), ("assistant", "b"))
FIRST_UNTRAINED = chat(*TWO, train=(False, False, False, True))

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
words = text.filter(lambda t: t.strip())
arguments = st.dictionaries(text, st.none() | st.integers() | text | st.lists(text), max_size=2)
calls = st.lists(st.fixed_dictionaries({"name": words, "arguments": arguments}), min_size=1)


@st.composite
def conversations(draw):
    """Question and answer by turns, perhaps with a system prompt, flags and tools."""
    turns = [("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", draw(text)))
        if draw(st.booleans()):
            call = draw(calls.map(lambda some: some[:1]))
            turns += [("assistant", call), ("tool", draw(text))]
        turns.append(("assistant", draw(words)))
    train = tuple(role == "assistant" and draw(st.booleans()) for role, _ in turns[:-1])
    return chat(*turns, train=(*train, True), tools=draw(st.sampled_from([None, TOOLS])))


def plain_form(example):
    """An example without what a form adds: ids of calls, and arguments as text."""
    said = []
    for message in example.messages:
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        for function in functions:
            if isinstance(function["arguments"], str):
                function["arguments"] = json.loads(function["arguments"])
        said.append((message["role"], message["content"], functions))
    return said, example.train, example.tools


def read_openai(folder, result):
    return gs.load_pool(result.files[0])


def read_axolotl(folder, result):
    said = translate(yaml.safe_load(result.files[-1].read_text()), "axolotl.yaml").settings
    names = ("format", "prompt_column", "response_column")
    return gs.load_pool(said["data"], **{name: said[name] for name in names if name in said})


def read_llamafactory(folder, result):
    said = yaml.safe_load(result.files[-1].read_text())
    info = str(Path(said["dataset_dir"]) / "dataset_info.json")
    train_on = "last" if said.get("mask_history") else "all"
    return gs.load_pool(said["dataset"], dataset_info=info, train_on=train_on)


READERS = {"openai": read_openai, "axolotl": read_axolotl, "llamafactory": read_llamafactory}


@pytest.mark.parametrize("trainer", READERS)
@given(examples=st.lists(conversations(), min_size=1, max_size=4))
@settings(max_examples=25)
def test_gradsift_reads_back_what_it_wrote(trainer, examples):
    # One answer in each: LLaMA-Factory says for the whole file which ones are trained on.
    examples = [HI, *examples]
    with tempfile.TemporaryDirectory() as folder:
        result = export(folder, trainer, *examples)
        read = [plain_form(row.example) for row in READERS[trainer](folder, result).rows]
    left_out = sum(int(n.split()[0]) for n in result.notes if "left out of the export" in n)
    assert len(read) == result.n_rows == len(examples) - left_out
    expected = [plain_form(example) for example in examples]
    if trainer != "llamafactory":
        assert read == expected
    at = iter(expected)
    assert all(one in at for one in read)  # In the same order.


@pytest.mark.parametrize("trainer", READERS)
@pytest.mark.parametrize("examples", [(HI, USED), (FIRST_UNTRAINED, HI)], ids=["all", "last"])
def test_rows_with_tools_and_rows_with_flags_come_back(tmp_path, trainer, examples):
    result = export(tmp_path, trainer, *examples)
    read = [plain_form(row.example) for row in READERS[trainer](tmp_path, result).rows]
    assert read == [plain_form(example) for example in examples]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Function(Strict):
    name: str
    arguments: Json[dict[str, Any]]


class Call(Strict):
    id: str
    type: Literal["function"]
    function: Function


class Message(Strict):
    """As OpenAI documents a message of its fine-tuning format."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None

    @model_validator(mode="after")
    def _as_documented(self):
        assert self.content is not None or self.tool_calls
        assert self.weight is None or self.role == "assistant"
        assert (self.tool_call_id is not None) == (self.role == "tool")
        return self


class Schema(Strict):
    type: Literal["function"]
    function: dict[str, Any]


class Line(Strict):
    messages: list[Message]
    tools: list[Schema] | None = None

    @model_validator(mode="after")
    def _every_answer_has_its_call(self):
        asked = [call.id for message in self.messages for call in message.tool_calls or ()]
        answered = [m.tool_call_id for m in self.messages if m.role == "tool"]
        assert sorted(asked) == sorted(answered)
        assert self.messages[-1].role == "assistant"
        return self


def test_openai_as_documented(tmp_path):
    bare = [{"name": "look", "parameters": {}}]
    many = chat(
        ("user", "hi"), ("assistant", [LOOK, LOOK]), ("tool", "1"), ("tool", "2"),
        ("assistant", "ok"), tools=bare,
    )  # fmt: skip
    result = export(tmp_path, "openai", HI, USED, FIRST_UNTRAINED, many)
    read = [Line.model_validate(line) for line in lines(result.files[0])]
    assert [m.weight for m in read[2].messages] == [None, 0, None, None]
    assert read[1].messages[1].tool_calls[0].function.arguments == LOOK["arguments"]
    assert read[3].tools[0].function == {"name": "look", "parameters": {}}
    assert result.notes == ("4 rows: the API takes 10 or more",)
    compile(result.files[1].read_text(), "train_openai.py", "exec")


def test_axolotl_as_documented(tmp_path):
    result = export(tmp_path, "axolotl", HI, USED, FIRST_UNTRAINED, lora={"r": 4}, load_in="4bit")
    config = yaml.safe_load(result.files[-1].read_text())
    assert config["base_model"] == "a/model"
    assert (config["adapter"], config["lora_r"], config["load_in_4bit"]) == ("qlora", 4, True)
    (entry,) = config["datasets"]
    assert entry == {
        "path": str(tmp_path / "axolotl.jsonl"),
        "ds_type": "json",
        "type": "chat_template",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "field_tools": "tools",
        "message_field_training": "weight",
    }
    rows = lines(entry["path"])
    assert rows[1]["tools"] == TOOLS  # A list of objects is what it takes.
    # As text: of arguments as objects, its loader would put one row's keys into another.
    assert json.loads(rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"])
    assert [turn.get("weight") for turn in rows[2]["messages"]] == [None, 0, None, 1]


def test_axolotls_shares_of_sources(tmp_path):
    rows = [
        ExportRow(f"r{i}", HI, source, weight)
        for i, (source, weight) in enumerate(
            [("a/book", 1.5), ("forum", 0.5), ("a/book", 1.5), ("forum", 1.0), (None, 0.0)]
        )
    ]
    result = write_export("axolotl", rows, tmp_path, setup())
    entries = yaml.safe_load(result.files[-1].read_text())["datasets"]
    # Above 0 and at most 1: the share of a file that axolotl draws.
    assert [entry["weight"] for entry in entries] == [1.0, 0.5, 0.0001]
    assert [len(lines(entry["path"])) for entry in entries] == [2, 2, 1]
    assert "share of each source: a/book 1.0, forum 0.5" in result.notes[0]
    alone = write_export("axolotl", rows[:1], tmp_path, setup())
    assert "weight" not in yaml.safe_load(alone.files[-1].read_text())["datasets"][0]


def test_of_replay_as_large_a_share_is_drawn_as_of_the_rest(tmp_path):
    def said(answer):
        turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": answer})
        return Chat(turns, (False, True))

    rows = [
        ExportRow("a", said("x" * 30), "one", 2.0),
        ExportRow("b", said("x" * 90), "two", 1.0),
        ExportRow("replay/c", said("x" * 10), is_replay=True),
    ]
    result = write_export("axolotl", rows, tmp_path, setup())
    entries = yaml.safe_load(result.files[-1].read_text())["datasets"]
    # Of 120 characters 30 + 0.5 * 90 are drawn, so 10 of replay become 6.25.
    assert [entry["weight"] for entry in entries] == [1.0, 0.5, 0.625]
    assert any("replay 0.625" in note for note in result.notes)
    result = write_export("axolotl", rows[1:], tmp_path, setup())
    entries = yaml.safe_load(result.files[-1].read_text())["datasets"]
    assert not any("weight" in entry for entry in entries)


def read_as_llamafactory(entry, row):
    """What its converter for ShareGPT makes of a row; None where it skips one with a warning."""
    tags, columns = entry["tags"], entry["columns"]
    turns = [(t[tags["role_tag"]], t[tags["content_tag"]]) for t in row[columns["messages"]]]
    system = turns.pop(0)[1] if turns[0][0] == tags["system_tag"] else ""
    asking = (tags["user_tag"], tags["observation_tag"])
    answering = (tags["assistant_tag"], tags["function_tag"])
    if len(turns) % 2 or any(
        said not in (asking, answering)[i % 2] for i, (said, _) in enumerate(turns)
    ):
        return None
    return system, turns, row[columns["tools"]] if columns.get("tools") else ""


def test_llamafactory_as_documented(tmp_path):
    system = chat(("system", "be"), *TWO, train=(False, False, True, False, True))
    result = export(tmp_path, "llamafactory", HI, USED, system)
    entry = json.loads((tmp_path / "llamafactory/dataset_info.json").read_text())["selected"]
    assert {"file_name", "formatting", "columns", "tags"} == set(entry)
    assert entry["formatting"] == "sharegpt"
    config = yaml.safe_load(result.files[-1].read_text())
    assert config["stage"] == "sft"
    assert "mask_history" not in config
    hi, used, with_system = (
        read_as_llamafactory(entry, row) for row in lines(tmp_path / "llamafactory/data.jsonl")
    )
    assert hi == ("", [("human", "hi"), ("gpt", "yo")], "")
    called = ("function_call", json.dumps(LOOK))
    assert used[1] == [("human", "hi"), called, ("observation", "sun"), ("gpt", "ok")]
    assert json.loads(used[2]) == TOOLS
    assert with_system[0] == "be"


@pytest.mark.parametrize(
    ("trainer", "example", "why"),
    [
        ("llamafactory", FIRST_UNTRAINED, "trained on other answers than all"),
        ("llamafactory", chat(("user", "a"), ("user", "b"), ("assistant", "c")), "by turns only"),
        ("llamafactory", chat(("developer", "a"), ("user", "b"), ("assistant", "c")), "developer"),
        ("openai", chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "answers no call"),
        ("openai", Plain("", "text"), "conversations only"),
        ("axolotl", Plain("", "text"), "plain text among conversations"),
        ("openai", "thinking", "no place for reasoning_content"),
        ("llamafactory", "thinking", "no place for reasoning_content"),
    ],
)
def test_what_a_form_cannot_say_is_left_out_with_a_note_or_refused(tmp_path, trainer, example, why):
    if example == "thinking":
        example = chat(("user", "a"), ("assistant", "b"))
        example.messages[1]["reasoning_content"] = "hm"
    two = chat(*TWO)
    result = export(tmp_path, trainer, two, two, example, example)
    assert result.n_rows == len(lines(result.files[0])) == 2
    (note,) = [note for note in result.notes if "left out of the export" in note]
    assert note.startswith("2 rows: left out of the export, ")
    assert why in note
    assert note.endswith("the first is 'r2'")
    if trainer == "openai":
        with pytest.raises(ValueError, match="can say none of the rows"):
            export(tmp_path, trainer, example)


@pytest.mark.parametrize("trainer", ["openai", "llamafactory"])
def test_what_follows_the_last_trained_answer_goes_with_a_note(tmp_path, trainer):
    more = chat(*TWO, train=(False, True, False, False))
    result = export(tmp_path, trainer, more)
    assert "1 row: turns after the last answer trained on are left out" in result.notes[0]
    turns = next(iter(lines(result.files[0])[0].values()))
    assert len(turns) == 2


def test_a_field_without_a_place_is_noted(tmp_path):
    example = chat(("user", "a"), ("assistant", "b"))
    example.messages[0]["timestamp"] = 3
    result = export(tmp_path, "openai", example)
    assert "1 row: the field 'timestamp' of a turn has no place" in result.notes[0]
    assert Line.model_validate(lines(result.files[0])[0])


@pytest.mark.parametrize(
    ("trainer", "examples", "record", "said"),
    [
        ("axolotl", [Plain("", "t")], {"text": "t"}, {"type": "completion", "field": "text"}),
        ("axolotl", [Plain("p", "t"), Plain("", "u")], {"prompt": "p", "completion": "t"}, {}),
        ("llamafactory", [Plain("", "t")], {"text": "t"}, {"stage": "pt"}),
        (
            "llamafactory",
            [Plain("p", "t"), Plain("", "u")],
            {"instruction": "p", "output": "t"},
            {"stage": "sft", "template": "empty"},
        ),
    ],
)
def test_plain_text(tmp_path, trainer, examples, record, said):
    result = export(tmp_path, trainer, *examples)
    assert lines(result.files[0])[0] == record
    config = yaml.safe_load(result.files[-1].read_text())
    found = config["datasets"][0] if trainer == "axolotl" else config
    assert said.items() <= found.items()
    (first, *_) = READERS[trainer](tmp_path, result).rows
    spoken = first.example if isinstance(first.example, Plain) else first.example.messages
    if not isinstance(spoken, Plain):
        spoken = Plain(spoken[0]["content"], spoken[1]["content"])
    assert spoken == examples[0]


def test_llamafactorys_configuration_says_what_the_capture_said(tmp_path):
    said = {"lora": {"r": 4, "lora_alpha": 6}, "max_length": 99, "sft": {"learning_rate": 3e-4}}
    result = export(tmp_path, "llamafactory", FIRST_UNTRAINED, **said)
    config = yaml.safe_load(result.files[-1].read_text())
    # gradsift itself reads such a file, and refuses keys that there are not.
    read = translate(config | {"template": "chatml", "max_grad_norm": 0}, "sft.yaml").settings
    assert (read["model"], read["data"], read["train_on"]) == ("a/model", "selected", "last")
    assert read["max_length"] == 99
    assert (read["lora"]["r"], read["lora"]["lora_alpha"]) == (4, 6)
    assert read["sft"]["learning_rate"] == pytest.approx(3e-4)


@pytest.mark.parametrize("trainer", READERS)
def test_arguments_of_a_template_are_noted_or_said(tmp_path, trainer):
    own = replace(HI, template_kwargs={"loud": True})
    result = export(tmp_path, trainer, HI, own)
    assert any(
        line.startswith("1 row: arguments of the chat template") and "'r1'" in line
        for line in result.notes
    )
    of_all = export(tmp_path, trainer, HI, chat_template_kwargs={"loud": True})
    if trainer == "axolotl":
        config = yaml.safe_load(of_all.files[-1].read_text())
        assert config["chat_template_kwargs"] == {"loud": True}
    noted = any("arguments of the chat template" in line for line in of_all.notes)
    assert noted == (trainer == "llamafactory")


def test_axolotl_finds_thinking_where_it_looks(tmp_path):
    example = chat(("user", "a"), ("assistant", "b"))
    example.messages[1]["thinking"] = "hm"
    result = export(tmp_path, "axolotl", example)
    assert lines(result.files[0])[0]["messages"][1]["reasoning_content"] == "hm"


@pytest.mark.parametrize("trainer", ["axolotl", "llamafactory"])
def test_texts_that_load_dataset_would_make_timestamps_of_are_refused(tmp_path, trainer):
    dates = [Plain(f"{i}?", f"2020-01-0{i}") for i in range(1, 4)]
    with pytest.raises(ValueError, match=f"`export` {trainer}: every text in .* is a date"):
        export(tmp_path, trainer, *dates)
    assert export(tmp_path, trainer, *dates, Plain("?", "long " * 400_000)).n_rows == 4


def test_axolotl_keeps_the_start_of_what_is_cut(tmp_path):
    assert "keep_end" in export(tmp_path, "axolotl", HI, truncation="keep_end").notes[0]


ALL_SAID = {
    "sft": {"optim": "sgd", "weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
    | {"ddp_timeout": 9},
    "lora": {"use_rslora": True, "modules_to_save": ["lm_head"], "lora_dropout": 0.2, "bias": "all"}
    | {"use_dora": False},
}


@pytest.mark.parametrize("trainer", ["axolotl", "llamafactory"])
def test_a_configuration_trains_as_the_capture_did_or_says_what_it_lacks(tmp_path, trainer):
    result = export(tmp_path, trainer, HI, **ALL_SAID)
    config = yaml.safe_load(result.files[-1].read_text())
    more = {"template": "chatml"} if trainer == "llamafactory" else {}
    read = translate(config | more, "config.yaml").settings
    expected = {"optim": "sgd", "weight_decay": 0.1, "lr_scheduler_type": "cosine"}
    assert expected.items() <= read["sft"].items()
    assert config["warmup_ratio"] == pytest.approx(0.1)
    assert read["sft"]["learning_rate"] == pytest.approx(2e-5)  # trl's default.
    adapters = {"use_rslora": True, "modules_to_save": ["lm_head"], "lora_dropout": 0.2}
    assert adapters.items() <= read["lora"].items()
    assert [note for note in result.notes if note.endswith("sft.ddp_timeout, lora.bias")]


@pytest.mark.parametrize("truncation", ["keep_end", "drop"])
def test_llamafactory_notes_another_truncation(tmp_path, truncation):
    notes = export(tmp_path, "llamafactory", HI, truncation=truncation).notes
    assert any(f"truncation: {truncation}" in note for note in notes)


def test_a_template_of_ones_own_is_said_or_refused(tmp_path):
    sft = {"chat_template_path": "t.jinja", "pad_token": "<p>"}
    config = setup(sft=sft).config
    tokenizer = SimpleNamespace(chat_template="{{ own }}", eos_token="<e>", pad_token="<p>")
    rows = [ExportRow("r0", HI)]
    result = write_export("axolotl", rows, tmp_path, Setup(config, lambda: tokenizer))
    said = yaml.safe_load(result.files[-1].read_text())
    assert (said["chat_template"], said["chat_template_jinja"]) == ("jinja", "{{ own }}")
    assert said["special_tokens"] == {"eos_token": "<e>", "pad_token": "<p>"}
    with pytest.raises(ValueError, match="another text"):
        export(tmp_path, "llamafactory", HI, sft=sft)
    noted = export(tmp_path, "llamafactory", HI, sft={"eos_token": "<e>"}).notes
    assert any("sft.eos_token" in note for note in noted)


@pytest.mark.parametrize("trainer", READERS)
def test_weights_without_a_place_are_noted(tmp_path, trainer):
    result = write_export(trainer, [ExportRow("r0", HI, "a", 0.5)], tmp_path, setup())
    assert any("no place for the weights" in note for note in result.notes)
