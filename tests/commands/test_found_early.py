"""What would fail during the epoch, or be ignored, is said before the model is loaded."""

import json
import shutil

import pytest

import gradsift as gs
from gradsift.store.manifest import load_manifest
from test_cli import invoke
from tiny import CHAT_TEMPLATE, save_tiny, tiny_gpt2, tiny_tokenizer

OTHER_TEMPLATE = CHAT_TEMPLATE.replace("'</s>'", "'<|system|>'")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    save_tiny(folder / "model")
    tiny_gpt2().save_pretrained(folder / "gpt2")
    tiny_tokenizer().save_pretrained(folder / "gpt2")
    shutil.copytree(folder / "model", folder / "larger")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "larger")
    rows = [{"prompt": f"{i}?", "response": "red green " * (1 + i % 4)} for i in range(8)]
    write(folder / "rows.jsonl", rows)
    write(folder / "long.jsonl", [*rows, {"prompt": "q", "response": "y" * 600}])
    write(folder / "new.jsonl", [*rows, {"prompt": "q", "response": "a <new> one"}])
    write(folder / "texts.jsonl", [{"text": f"Text {i}."} for i in range(8)])
    (folder / "other.jinja").write_text(OTHER_TEMPLATE)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


REFUSED = [
    ("long.jsonl", "gpt2", [], "has 512 positions, and --max-length is 1024: 1 row is longer"),
    (
        "new.jsonl",
        "larger",
        [],
        "token 262 ('<new>'), but the model's embedding has 262 rows: 1 of",
    ),
    ("rows.jsonl", "model", ["dataloader_drop_last=true"], "every row is recorded"),
    ("rows.jsonl", "model", ["learning_rate=.inf"], "learning_rate is inf, expected a finite"),
    ("rows.jsonl", "model", ["eos_token=<|user|>"], "which is in no response of the 8 rows"),
    ("rows.jsonl", "model", ["dataset_text_field=nonsense"], "dataset_text_field: use"),
    ("rows.jsonl", "model", ["report_to=mlflow"], "report_to is 'mlflow'; known are tensorboard"),
    ("rows.jsonl", "model", ["optim=galore_adamw"], "optim"),
]


@pytest.mark.parametrize(("data", "model", "sft", "message"), REFUSED)
def test_it_is_one_line_and_nothing_is_loaded(
    capsys, monkeypatch, place, tmp_path, data, model, sft, message
):
    def load(source):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gradsift.training.preliminary.load_model", load)
    arguments = [word for setting in sft for word in ("--sft", setting)]
    code, _, err = invoke(
        capsys, "capture", place / data, "--model", place / model, "--out", tmp_path / "run",
        *arguments,
    )  # fmt: skip
    assert code == 2, err
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_rows_that_fit_are_recorded(place, tmp_path):
    pool = gs.load_pool(place / "long.jsonl")
    store = gs.capture(place / "gpt2", pool, out=tmp_path / "run", max_length=512)
    assert len(store.instance_ids) == 9
    pool = gs.load_pool(place / "rows.jsonl")
    store = gs.capture(place / "larger", pool, out=tmp_path / "other")
    assert len(store.instance_ids) == 8


def test_a_template_of_the_settings_is_what_every_stage_renders_with(place, tmp_path):
    pool, runs = gs.load_pool(place / "rows.jsonl"), {}
    for name, sft in {
        "own": {},
        "other": {"chat_template_path": str(place / "other.jinja")},
    }.items():
        gs.capture(place / "model", pool, out=tmp_path / name, sft=sft)
        runs[name] = gs.Run(tmp_path / name)
    own, other = (load_manifest(run.folder).identity for run in runs.values())
    assert own["tokenizer"] != other["tokenizer"]
    assert own["instances"] != other["instances"]
    assert {item.input_ids[-1] for item in runs["own"].instances} == {2}
    assert {item.input_ids[-1] for item in runs["other"].instances} == {5}
    trained = gs.train(runs["other"].folder, arm="full", epochs=1)
    assert (trained.folder / "chat_template.jinja").read_text() == OTHER_TEMPLATE
    with pytest.raises(gs.GradsiftError, match=r"chat_template_path is 'x\.jinja', but"):
        gs.train(runs["own"].folder, arm="full", epochs=1, sft={"chat_template_path": "x.jinja"})


def test_a_template_that_changed_since_is_noticed(place, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text(OTHER_TEMPLATE)
    pool = gs.load_pool(place / "rows.jsonl")
    gs.capture(
        place / "model", pool, out=tmp_path / "run", sft={"chat_template_path": str(template)}
    )
    template.write_text(CHAT_TEMPLATE)
    with pytest.raises(gs.GradsiftError, match="another tokenizer or chat template"):
        gs.train(tmp_path / "run", arm="full", epochs=1)


def test_an_eos_token_ends_plain_text_and_is_the_models(place, tmp_path):
    pool = gs.load_pool(place / "texts.jsonl")
    sft = {"eos_token": "<|user|>", "pad_token": "<|system|>"}
    gs.capture(place / "model", pool, out=tmp_path / "run", sft=sft)
    run = gs.Run(tmp_path / "run")
    assert {item.labels[-1] for item in run.instances} == {3}
    folder = gs.train(run, arm="full", epochs=1).folder
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [3, 2]
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (3, 5)
