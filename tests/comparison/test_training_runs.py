"""What makes two trainings the same, and weights that are found again."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from comparing import Killed, die
from gradsift import compare, train
from gradsift.comparison.arms import parse_arms, rows_of
from gradsift.comparison.suite import make_suite
from gradsift.comparison.training_runs import settings_of_arm, training_runs_for
from gradsift.config import ArmTrainingConfig, EvaluationConfig, RunConfig, SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.evaluation.text_metrics import WITHOUT
from gradsift.run_folder import Run

ONE = {"arms": ("full:seeds=1",), "general": (), "epochs": 1, "max_new_tokens": 4}


@pytest.mark.parametrize(
    ("said", "captured", "expected"),
    [
        (None, False, None),
        (None, True, {}),
        (None, {"r": 2}, {"r": 2}),
        (True, False, {}),
        (True, {"r": 2}, {"r": 2}),
        (False, {"r": 2}, None),
        ({}, {"r": 2}, {}),
        ({"r": 4}, {"r": 2}, {"r": 4}),
    ],
)
def test_what_is_not_said_is_as_in_the_capture(said, captured, expected):
    capture = RunConfig(
        data="d", model="m", out="o", lora=captured, batching="random",
        sft={"learning_rate": 1e-3, "weight_decay": 0.1},
    )  # fmt: skip
    training = ArmTrainingConfig(lora=said, sft={"learning_rate": 1e-4}, epochs=2)
    settings = settings_of_arm(training, capture, seed=7)
    assert settings.lora == expected
    assert settings.sft == {"learning_rate": 1e-4, "weight_decay": 0.1}
    assert (settings.seed, settings.epochs, settings.batching) == (7, 2, "random")


def test_settings_that_cannot_be_are_refused():
    capture = RunConfig(data="d", model="m", out="o")
    with pytest.raises(GradsiftError, match="zz"):
        settings_of_arm(ArmTrainingConfig(lora={"zz": 1}), capture, 0)


def test_work_that_an_earlier_gradsift_finished_is_found_again(world):
    """The folders' names, as version 0.1 gave them; model and tokenizer are put in their place."""
    run = Run(world / "run")
    general = (str(world / "text.txt"), "sanity")
    config = EvaluationConfig(general=general, limit=20, max_new_tokens=4)
    suite = replace(
        make_suite(run.read_rows(str(world / "test.jsonl")), run, config), synonyms=WITHOUT
    )
    arms = parse_arms(("base", "full:seeds=1", "full-equal-steps:seeds=1", "random"), ("50%",), 2)
    settings = settings_of_arm(ArmTrainingConfig(epochs=1), run.config, 0)
    rows = rows_of(run, arms, SelectionConfig())
    found = training_runs_for(run, arms, rows, settings, suite.identity)
    other = settings_of_arm(
        ArmTrainingConfig(epochs=1, lora={"r": 2}, sft={"weight_decay": 0.1}), run.config, 3
    )
    suite = replace(suite, tasks=None, task_texts={}, windows={}, limit=None)
    found += training_runs_for(run, arms[1:2], rows, other, suite.identity)
    before = {"model": "sha256 1266eaafdf30cf93", "tokenizer": "sha256 6b9f62d8d16f0f5f"}
    found = [replace(each, identity={**each.identity, **before}) for each in found]
    assert [each.folder.name for each in found] == [
        "base-0-6ef6d95079",
        "full-0-41749b6d9d",
        "full-equal-steps_50pct-0-460d1fbd82",
        "random_50pct-0-c64410de9d",
        "random_50pct-1-9a47382f15",
        "full-0-5c1a039d88",
    ]
    assert found[1].identity == {
        **before,
        "dtype": "float32",
        "exam": {
            "version": 1,
            "content": "sha256 63a5d714c3035e07",
            "tasks": ["probe"],
            "limit": 20,
            "max_new_tokens": 4,
            "synonyms": "none",
        },
        "training": {
            "rows": "sha256 c010b5d972c59825",
            "epochs": 1.0,
            "max_steps": None,
            "sft": {"learning_rate": 0.01, "per_device_train_batch_size": 4},
            "lora": None,
            "seed": 0,
        },
    }
    assert "exam" not in found[1].weights_identity


def test_weights_that_were_not_saved_are_made_when_they_are_wanted(world, fresh_run):
    compare(fresh_run, test=str(world / "test.jsonl"), **ONE)
    assert not list((fresh_run / "arms").glob("*/model"))
    compare(fresh_run, test=str(world / "test.jsonl"), keep_models=True, **ONE)
    assert len(list((fresh_run / "arms").glob("full-0-*/model/model.safetensors"))) == 1


def test_weights_that_were_half_written_are_not_taken_for_saved(world, fresh_run, monkeypatch):
    compare(fresh_run, test=str(world / "test.jsonl"), **ONE)
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.files.sync_folder", die)
        with pytest.raises(Killed):
            compare(fresh_run, test=str(world / "test.jsonl"), keep_models=True, **ONE)
    compare(fresh_run, test=str(world / "test.jsonl"), keep_models=True, **ONE)
    assert len(list((fresh_run / "arms").glob("full-0-*/model/model.safetensors"))) == 1


def names_and_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def never_train(*args, **kwargs):
    pytest.fail("it was trained before")


@pytest.mark.parametrize(
    "how", [{}, {"lora": {"r": 2}}, {"sft": {"bf16": True}}], ids=["full", "lora", "mixed"]
)
def test_saved_weights_are_asked_other_questions_without_training_again(
    world, fresh_run, tmp_path, monkeypatch, how
):
    options = {"arms": ("full:seeds=1",), "epochs": 1, **how}
    options["test"] = str(world / "test.jsonl")
    first = compare(fresh_run, general=(), max_new_tokens=4, keep_models=True, **options)
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.comparison.training_runs.fine_tune", never_train)
        second = compare(fresh_run, general=("sanity",), max_new_tokens=5, limit=3, **options)
        trained = train(fresh_run, arm="full", epochs=1, **how)
        assert trained.folder.parent.parent == fresh_run.resolve() / "arms"
        assert list(trained.folder.glob("*.safetensors"))
        with pytest.raises(pytest.fail.Exception):
            train(fresh_run, arm="full", epochs=2, **how)
        elsewhere = train(fresh_run, arm="full", epochs=1, **how, out=tmp_path / "model")
        assert names_and_bytes(elsewhere.folder) == names_and_bytes(trained.folder)
    (one,), (two,) = first.board.models["full"], second.board.models["full"]
    assert one.scores["rows"] == two.scores["rows"]
    assert one.training == two.training
    assert len(list((fresh_run / "arms").glob("*/model"))) == 1


def flip(path, at=-5):
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def link(path):
    path.rename(path.with_name(".elsewhere"))
    path.symlink_to(".elsewhere")


DAMAGES = {
    "removed": lambda folder: (folder / "model.safetensors").unlink(),
    "cut": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "flipped": lambda folder: flip(folder / "model.safetensors"),
    "tokenizer": lambda folder: flip(folder / "tokenizer.json", 500),
    "template": lambda folder: flip(folder / "chat_template.jinja"),
    "added": lambda folder: (folder / "adapter_model.bin").write_bytes(b"pickle"),
    "linked": lambda folder: link(folder / "model.safetensors"),
    "unnamed": lambda folder: (folder / "gradsift.json").unlink(),
    "empty": lambda folder: (folder / "gradsift.json").write_text("{}"),
    "a list": lambda folder: (folder / "gradsift.json").write_text("[1]"),
    "torn": lambda folder: (folder / "gradsift.json").write_text('{"identity": '),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_saved_weights_that_were_damaged_are_trained_again(world, fresh_run, name, log):
    options = {**ONE, "test": str(world / "test.jsonl")}
    compare(fresh_run, keep_models=True, **options)
    (folder,) = (fresh_run / "arms").glob("*/model")
    whole = names_and_bytes(folder)
    DAMAGES[name](folder)
    compare(fresh_run, **{**options, "max_new_tokens": 5}, keep_models=True)
    assert not any("only evaluated" in line for line in log)
    # Whose weights they are is not known without a name, where they were asked other questions.
    unnamed = name in ("unnamed", "empty", "a list", "torn")
    assert any("these weights are left out" in line for line in log) != unnamed
    # They may be saved beside the damaged ones, whose evaluation was another.
    again, *_ = (path for path in (fresh_run / "arms").glob("*/model") if path != folder)
    assert names_and_bytes(again)["model.safetensors"] == whole["model.safetensors"]
    shutil.rmtree(again)
    other = train(fresh_run, arm="full", epochs=1).folder
    found = names_and_bytes(other)
    assert found.keys() == whole.keys()
    assert all(found[name] == whole[name] for name in whole if name != "gradsift.json")


def test_weights_without_their_name_are_named_where_they_belong(world, fresh_run, log):
    options = {**ONE, "test": str(world / "test.jsonl"), "keep_models": True}
    compare(fresh_run, **options)
    (path,) = (fresh_run / "arms").glob("*/model/gradsift.json")
    path.unlink()
    compare(fresh_run, **options)
    assert any(f"{path}: missing or damaged" in line for line in log)
    assert path.exists()


def test_weights_that_an_earlier_gradsift_saved_are_taken_by_their_sizes(world, fresh_run, log):
    options = {**ONE, "test": str(world / "test.jsonl")}
    compare(fresh_run, keep_models=True, **options)
    (path,) = (fresh_run / "arms").glob("*/model/gradsift.json")
    metadata = json.loads(path.read_text())
    kept = {key: value for key, value in metadata.items() if key not in ("sha256", "digests")}
    path.write_text(json.dumps(kept))
    compare(fresh_run, **{**options, "max_new_tokens": 5})
    assert any("only evaluated" in line for line in log)
    os.truncate(path.with_name("model.safetensors"), 1000)
    log.clear()
    compare(fresh_run, **{**options, "max_new_tokens": 3})
    assert any("model.safetensors is damaged: 1000 bytes there" in line for line in log)


def test_a_note_beside_saved_weights_is_no_damage(world, fresh_run, log):
    options = {**ONE, "test": str(world / "test.jsonl")}
    compare(fresh_run, keep_models=True, **options)
    (folder,) = (fresh_run / "arms").glob("*/model")
    (folder / "README.md").write_text("The good one.")
    compare(fresh_run, **{**options, "max_new_tokens": 5})
    assert any("only evaluated" in line for line in log)


@pytest.mark.parametrize("name", ["arms", "folder", "model", "checkpoints"])
def test_arms_are_not_written_through_links(world, fresh_run, tmp_path, name):
    options = {**ONE, "test": str(world / "test.jsonl"), "keep_models": True}
    compare(fresh_run, **options)
    (folder,) = (fresh_run / "arms").glob("full-*")
    victim = tmp_path / "victim"
    victim.mkdir()
    if name == "arms":
        shutil.rmtree(folder.parent)
    place = {"arms": folder.parent, "folder": folder}.get(name, folder / name)
    shutil.rmtree(folder, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim)
    with pytest.raises(GradsiftError, match="is a link, or lies behind one"):
        compare(fresh_run, **options)
    assert not list(victim.iterdir())


def test_adapters_on_base_weights_changed_at_random_are_not_loaded_again(world, fresh_run):
    lora = {"init_lora_weights": "pissa_niter_4", "r": 2}
    options = {**ONE, "lora": lora, "test": str(world / "test.jsonl")}
    first = compare(fresh_run, keep_models=True, **options)
    second = compare(fresh_run, **{**options, "max_new_tokens": 5})
    (one,), (two,) = first.board.models["full"], second.board.models["full"]
    assert one.scores["rows"] == two.scores["rows"]


def test_what_train_saved_is_compared_without_training_again(world, fresh_run, monkeypatch):
    train(fresh_run, arm="grads", budget="50%", epochs=1)
    options = {**ONE, "arms": ("grads@50%:seeds=1",)}
    monkeypatch.setattr("gradsift.comparison.training_runs.fine_tune", never_train)
    assert compare(fresh_run, test=str(world / "test.jsonl"), **options).board.arms
