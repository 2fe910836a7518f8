"""What trl's SFTTrainer makes of an export is what was recorded, row by row."""

import json
import runpy
from types import SimpleNamespace

import pytest
from datasets import load_dataset

import gradsift as gs
from gradsift.config import RunConfig
from gradsift.data.example import Plain
from gradsift.data.exports import trl as trl_export
from gradsift.data.exports.rows import ExportRow, Setup
from gradsift.data.exports.write import write_export
from gradsift.data.tokenization import build_instances
from gradsift.run_folder import Run
from tiny import CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED, save_tiny

TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|system|>' + tools | tojson + '</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + ('user' if m['role'] == 'tool' else m['role']) + '|>' }}"
    "{% if m['reasoning_content'] is defined %}{{ 'T:' + m['reasoning_content'] | string }}"
    "{% endif %}{{ m['content'] }}"
    "{% if m['tool_calls'] is defined %}{{ m['tool_calls'] | tojson }}{% endif %}{{ '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Writes arguments as text, and none of what it is not told.
TEXT_TEMPLATE = TOOL_TEMPLATE.replace(
    "{{ m['tool_calls'] | tojson }}",
    "{% for c in m['tool_calls'] %}{{ c['function']['name'] + c['function']['arguments'] }}"
    "{% endfor %}",
)
SWITCHED = "{% if loud %}{{ 'LOUD' }}{% endif %}" + CHAT_TEMPLATE
DATED = "{{ strftime_now('%Y-%m-%d') }}" + CHAT_TEMPLATE
TEMPLATES = {
    "arguments as text": TEXT_TEMPLATE,
    "switched": SWITCHED,
    "dated": DATED,
    "plain": CHAT_TEMPLATE,
    "marked": CHAT_TEMPLATE_MARKED,
    "tools": TOOL_TEMPLATE,
    "none": None,
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(**arguments):
    return [{"type": "function", "function": {"name": "look", "arguments": arguments}}]


def schema(**properties):
    function = {"name": "look", "parameters": {"type": "object", "properties": properties}}
    return [{"type": "function", "function": function}]


TOOLS = [
    {
        "messages": [user("where?"), assistant("", tool_calls=call(city="Rome", at=None))],
        "tools": schema(city={"type": "string"}),
    },
    {"messages": [user("when?"), assistant("", tool_calls=call(day=[1, 2]))], "tools": None},
    {"messages": [user("who?"), assistant("me", reasoning_content="hm")], "tools": schema(day={})},
]
SEVERAL = [
    {"messages": [user(f"{i}?"), assistant("a"), user("so?"), assistant(f"b{i}")]} for i in range(4)
]
FLAGGED = [
    {"messages": [user(f"{i}?"), assistant("a", weight=i % 2), user("so?"), assistant(f"b{i}")]}
    for i in range(4)
]
# load_dataset takes them for timestamps if nobody says what they are.
DATES = [{"instruction": f"day {i}?", "output": f"2020-01-0{i + 1}"} for i in range(4)]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": f"no {i}"}]}
    for i in range(4)
]
MIXED = [
    {"prompt": "a", "completion": "b"},
    {"prompt": [user("a")], "completion": [assistant("b")]},
]
QA = [{"question": f"{i}?", "answer": "yes"} for i in range(4)]
LOUD = [
    {"messages": [user(f"{i}"), assistant("b")]}
    | ({"chat_template_kwargs": {"loud": True}} if i % 2 else {})
    for i in range(4)
]
# Input rows, template, form that the rows are exported in.
CASES = {
    "messages with tools": (TOOLS, "tools", {"prompt", "completion", "tools"}),
    "arguments as text": (TOOLS, "arguments as text", {"prompt", "completion", "tools"}),
    "template arguments": (LOUD, "switched", {"prompt", "completion", "chat_template_kwargs"}),
    "the day in the template": (SHAREGPT, "dated", {"input_ids", "labels"}),
    "alpaca": (DATES, "plain", {"prompt", "completion"}),
    "alpaca, marked": (DATES, "marked", {"prompt", "completion"}),
    "qa": (QA, "plain", {"prompt", "completion"}),
    "sharegpt": (SHAREGPT, "plain", {"prompt", "completion"}),
    "text": ([{"text": f"2021-02-0{i + 1}"} for i in range(4)], "plain", {"text"}),
    "prompt_completion": (
        [{"prompt": f"{i} ", "completion": "b</s>" if i else "c"} for i in range(4)],
        "plain",
        {"prompt", "completion"},
    ),
    "prompt_completion of turns": (
        [{"prompt": [user(f"{i}")], "completion": [assistant("b")]} for i in range(4)],
        "plain",
        {"prompt", "completion"},
    ),
    "several answers": (SEVERAL, "plain", {"input_ids", "labels"}),
    "several answers, marked": (SEVERAL, "marked", {"messages"}),
    "flags": (FLAGGED, "plain", {"input_ids", "labels"}),
    "flags, marked": (FLAGGED, "marked", {"input_ids", "labels"}),
    "no template": (SHAREGPT, "none", {"input_ids", "labels"}),
    "text and turns": (MIXED, "plain", {"input_ids", "labels"}),
}  # fmt: skip
ON_CPU = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_tiny(folder / name, chat_template=template)
        for name, template in TEMPLATES.items()
    }


def exported(folder, model, rows, budget="100%", **settings):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = gs.load_pool(folder / "rows.jsonl")
    capture = {"max_length": 200, "sft": {"bf16": False, "learning_rate": 1e-3}, **settings}
    gs.capture(model, pool, out=folder / "run", **capture)
    return gs.select(folder / "run", budget=budget, export=("trl",), strategy="random")


def run_snippet(result, monkeypatch, folder):
    """Run the very script as a user does, with what a CPU needs in place of a GPU's defaults."""
    import trl

    config = trl.SFTConfig
    monkeypatch.setattr(
        trl, "SFTConfig", lambda **said: config(**(ON_CPU | said | {"max_steps": 1}))
    )
    monkeypatch.chdir(folder)
    return runpy.run_path(str(result.folder / "export/train_trl.py"))["trainer"]


@pytest.mark.parametrize("name", CASES)
def test_trl_makes_of_the_export_what_was_recorded_and_trains(tmp_path, models, monkeypatch, name):
    rows, template, form = CASES[name]
    result = exported(tmp_path, models[template], rows)
    assert len(result) == len(rows)
    lines = (result.folder / "export/trl.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert all(set(record) == form for record in records)
    if rows is not DATES and name != "text":  # Of dates it makes timestamps.
        file = str(result.folder / "export/trl.jsonl")
        loaded = load_dataset("json", data_files=file, split="train", cache_dir=tmp_path / "cache")
        assert list(loaded) == records
    trainer = run_snippet(result, monkeypatch, tmp_path)
    run = Run(tmp_path / "run")
    recorded = [(item.input_ids, item.labels) for item in run.instances]
    made = trainer.train_dataset
    assert list(zip(made["input_ids"], made["labels"], strict=True)) == recorded
    assert any("tokens of this model's" in line for line in result.notes) == ("labels" in form)
    assert 0 < trainer.train().metrics["train_loss"] < 20


def test_lengths_and_adapters_are_those_of_the_capture(tmp_path, models, monkeypatch):
    rows = [{"text": "a long text " * 9} for _ in range(4)]
    settings = {"max_length": 20, "truncation": "keep_end", "lora": {"r": 2}}
    result = exported(tmp_path, models["plain"], rows, **settings)
    trainer = run_snippet(result, monkeypatch, tmp_path)
    recorded = build_instances(
        [(row.instance_id, row.example) for row in Run(tmp_path / "run").pool.rows],
        trainer.processing_class,
        max_length=20,
        truncation="keep_end",
    )
    assert trainer.train_dataset["input_ids"] == [item.input_ids for item in recorded.items]
    assert trainer.model.peft_config["default"].r == 2
    assert trainer.args.learning_rate == pytest.approx(1e-3)


def test_arguments_of_the_template_for_all_rows_go_with_each(tmp_path, models, monkeypatch):
    settings = {"chat_template_kwargs": {"loud": True}}
    result = exported(tmp_path, models["switched"], SHAREGPT, **settings)
    trainer = run_snippet(result, monkeypatch, tmp_path)
    recorded = [(item.input_ids, item.labels) for item in Run(tmp_path / "run").instances]
    made = trainer.train_dataset
    assert list(zip(made["input_ids"], made["labels"], strict=True)) == recorded
    assert "LOUD" in trainer.processing_class.decode(made[0]["input_ids"])


def test_a_form_that_says_something_else_is_not_taken(tmp_path, models):
    """Two answers in a row: the completion would begin with the header of the second."""
    turns = [user("a"), assistant("b"), assistant("c")]
    result = exported(tmp_path, models["plain"], [{"messages": turns}] * 3)
    line = (result.folder / "export/trl.jsonl").read_text().splitlines()[0]
    assert set(json.loads(line)) == {"input_ids", "labels"}


def test_an_export_of_before_goes_when_none_is_asked_for(tmp_path, models):
    result = exported(tmp_path, models["plain"], SHAREGPT)
    assert {path.name for path in result.written} == {"trl.jsonl", "train_trl.py"}
    assert "--export" not in result.text()
    again = gs.select(tmp_path / "run", budget="100%", strategy="random")
    assert not (again.folder / "export").exists()
    assert "--export trl" in again.text()


def test_the_script_loads_a_quantised_model_as_the_capture_does(tmp_path):
    config = RunConfig(
        data="x",
        model="a/b",
        revision="v1",
        out="y",
        load_in="4bit",
        lora={"r": 4},
        sft={"bf16": True},
    )
    row = ExportRow("r0", Plain("p", "r"))
    result = write_export("trl", [row], tmp_path, Setup(config, lambda: pytest.fail("not needed")))
    script = result.files[1].read_text()
    compile(script, "train_trl.py", "exec")
    assert '"quantization_config": quantization' in script
    assert "\"revision\": 'v1'" in script
    assert "'r': 4" in script
    assert "bf16=True" in script


def test_a_row_that_is_none_any_more_is_said(tmp_path, models, monkeypatch):
    dropped = SimpleNamespace(dropped={"0": ("no_assistant_turn", "why")})
    monkeypatch.setattr(trl_export, "build_instances", lambda *given, **settings: dropped)
    rows = [{"prompt": "q", "response": "red"}]
    with pytest.raises(
        gs.GradsiftError, match=r"dropped by this version .*\(no_assistant_turn: why"
    ):
        exported(tmp_path, next(iter(models.values())), rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_init_kwargs", {}), ("assistant_only_loss", True), ("trust_remote_code", False)],
)
def test_the_users_own_settings_do_not_change_the_form(tmp_path, name, value):
    config = RunConfig(data="x", model="a/b", out="y", sft={name: value, "learning_rate": 1e-3})
    row = ExportRow("r0", Plain("p", "r"))
    result = write_export("trl", [row], tmp_path, Setup(config, lambda: pytest.fail("not needed")))
    script = result.files[1].read_text()
    compile(script, "train_trl.py", "exec")
    assert "completion_only_loss=True" in script
    assert "assistant_only_loss" not in script
    assert "learning_rate=0.001" in script
