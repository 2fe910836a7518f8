"""Training on arms and comparing them, from one captured run of a tiny model."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

import gradsift as gs
from gradsift import compare, train
from gradsift.stages.listener import Listener
from test_cli import invoke
from test_selecting import write_rows
from tiny import save_tiny

ARMS = ("base", "full:seeds=1", "full-equal-steps:seeds=1", "random", "grads")
# Fast: answers of a few tokens, no task, one short text.
QUICK = {"budgets": ("50%",), "seeds": 2, "epochs": 1, "max_new_tokens": 4}
TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparing")
    model = str(save_tiny(folder / "model"))
    write_rows(folder / "data.jsonl", 24)
    write_rows(folder / "test.jsonl", 9, offset=60)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    gs.capture(model, gs.load_pool(str(folder / "data.jsonl")), out=folder / "run", sft=TRAINING)
    return folder


def compared(world, **changes):
    general = (str(world / "text.txt"),)
    options = {"test": str(world / "test.jsonl"), "arms": ARMS, "general": general, **QUICK}
    return compare(world / "run", **{**options, **changes})


@pytest.fixture(scope="module")
def finished(world):
    result = compared(world, name="first")
    return result, json.loads((world / "run" / "first.json").read_text())


def without_cost(summary):
    return {key: value for key, value in summary.items() if key != "cost"}


def test_every_arm_is_there_with_rows_steps_and_intervals(finished):
    _, found = finished
    arms = found["arms"]
    assert list(arms) == ["base", "full", "full-equal-steps 50%", "random 50%", "grads 50%"]
    rows = {label: (arm["n_rows"], arm["n_steps"], arm["n_seeds"]) for label, arm in arms.items()}
    assert rows["base"] == (0, None, 1)
    assert rows["full"] == (24, 6, 1)
    # As many steps as 12 rows make, over all 24.
    assert rows["full-equal-steps 50%"] == (24, 3, 1)
    assert rows["random 50%"] == rows["grads 50%"] == (12, 3, 2)
    for arm in arms.values():
        assert set(arm["levels"]) == {"loss", "bleu", "meteor", "rouge_l", "chrf", "text_loss"}
        for level in arm["levels"].values():
            assert level["low"] <= level["value"] <= level["high"]
            assert len(level["by_seed"]) == arm["n_seeds"]
        assert set(arm["by_source"]) == {"book", "forum"}
        assert sum(source["n"] for source in arm["by_source"].values()) == 9
    assert arms["full"]["levels"]["loss"]["value"] < arms["base"]["levels"]["loss"]["value"]


def test_cost_has_the_preliminary_epoch_where_it_is_needed(finished):
    _, found = finished
    cost = found["cost"]
    assert cost["random 50%"]["capture_tokens"] == cost["full"]["capture_tokens"] == 0
    assert cost["grads 50%"]["capture_tokens"] == cost["full"]["training_tokens"]
    assert cost["base"]["training_seconds"] is None
    assert 0 < cost["grads 50%"]["training_tokens"] < cost["full"]["training_tokens"]


def test_every_question_has_an_answer(finished):
    result, found = finished
    asked = [(v["question"], v["rival"]) for v in found["verdicts"]]
    rivals = ("full", "random 50%", "full-equal-steps 50%")
    assert asked == [(kind, rival) for rival in rivals for kind in ("learning", "general")]
    text, markdown = result.text(), (result.run / "first.md").read_text()
    for verdict in found["verdicts"]:
        assert verdict["arm"] == "grads 50%"
        assert f"* {verdict['sentence']}" in text
        assert verdict["sentence"].replace("<", "&lt;") in markdown
    assert markdown.startswith("| arm | seeds |")


def test_answers_are_kept(world, finished):
    files = list((world / "run" / "arms").glob("grads_50pct-0-*/answers.jsonl"))
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert [line["reference"] for line in lines] == [row["response"] for row in rows]


def test_again_nothing_is_trained(world, finished):
    _, found = finished
    lines = []
    again = compared(world, name="first", listener=Listener(note=lines.append))
    assert any("7 models, 7 of them done" in line for line in lines)
    assert not any("training 0" in line for line in lines)
    assert again.summary()["arms"] == found["arms"]


class Killed(BaseException):
    """As a kill would be: nothing catches it."""


def test_killed_anywhere_and_resumed_the_comparison_is_the_same(world, finished, tmp_path):
    _, expected = finished
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    # After so many calls of the listener: in trainings, in examinations, between arms.
    moments = iter((2, 5, 9, 14, 3))
    countdown = {"left": next(moments)}

    def tick(*_):
        countdown["left"] -= 1
        if countdown["left"] == 0:
            raise Killed

    options = {
        "test": str(world / "test.jsonl"),
        "arms": ARMS,
        "general": (str(world / "text.txt"),),
        "save_steps": 1,
        **QUICK,
    }
    n_killed = 0
    while True:
        try:
            result = compare(run, **options, listener=Listener(note=tick, progress=tick))
            break
        except Killed:
            n_killed += 1
            countdown["left"] = next(moments, -1)
    assert n_killed == 5
    found = without_cost(json.loads(json.dumps(result.summary())))
    for part in ("arms", "verdicts", "n_items"):
        assert found[part] == expected[part]


def copy_without_arms(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("arms", "first.*"))


def test_what_another_process_does_is_waited_for(world, finished, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    only = {"arms": ("base",), "general": (), "epochs": 1, "max_new_tokens": 4}
    lines = []
    compare(run, test=str(world / "test.jsonl"), **only)
    (folder,) = (run / "arms").glob("base-0-*")
    (lock,) = (run / "arms" / "locks").iterdir()
    (folder / "scores.json").rename(tmp_path / "scores.json")
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(lock), str(tmp_path), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "has it\n"
    compare(run, test=str(world / "test.jsonl"), **only, listener=Listener(note=lines.append))
    assert other.wait() == 0
    assert any("with another process" in line for line in lines)
    assert not any(line.startswith("1/1") for line in lines)


# Holds the lock of an arm, and then ends its work.
OTHER = """
import sys, time
from pathlib import Path
from filelock import FileLock

lock, done, folder = sys.argv[1:]
with FileLock(lock):
    print("has it", flush=True)
    time.sleep(8)
    (Path(done) / "scores.json").rename(Path(folder) / "scores.json")
"""


def test_equal_subsets_are_trained_once(world, finished):
    lines = []
    compared(
        world,
        name="twice",
        arms=("base", "grads@50%", "grads@12:seeds=1"),
        listener=Listener(note=lines.append),
    )
    assert any("3 models, 3 of them done" in line for line in lines)


def test_other_questions_are_another_exam(world, finished):
    result = compared(world, name="short", arms=("base",), max_new_tokens=2)
    assert result.made_with["exam"]["max_new_tokens"] == 2
    assert len(list((world / "run" / "arms").glob("base-0-*"))) == 2


def test_an_estimate_counts_what_is_asked(world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)

    def tokens(test, **options):
        options = {"arms": ("full:seeds=1",), "epochs": 1, "general": (), **options}
        found = compare(run, test=str(test), dry_run=True, **options)
        speed = found.n_tokens / found.training_seconds
        return found.examining_seconds * 3 * speed

    rows = (world / "test.jsonl").read_text().splitlines(keepends=True)
    half = tmp_path / "half.jsonl"
    half.write_text("".join(rows[: len(rows) // 2]))
    asked = tokens(world / "test.jsonl", max_new_tokens=4)
    longer = tokens(world / "test.jsonl", max_new_tokens=7)
    assert longer - asked == pytest.approx(2 * 3 * len(rows))
    assert 0.3 * asked < tokens(half, max_new_tokens=4) < 0.7 * asked
    probed = [tokens(half, max_new_tokens=4, general=("sanity",), limit=n) for n in (10, 20, 40)]
    assert probed[2] - probed[1] == pytest.approx(2 * (probed[1] - probed[0]), rel=0.3)
    # No question of the probe is shorter than that in this tokenizer.
    assert probed[1] - probed[0] > 10 * 10


def test_a_dry_run_trains_nothing(capsys, world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    code, out, err = invoke(
        capsys, "compare", run, "--test", world / "test.jsonl", "--general", world / "text.txt",
        "--seeds", 2, "--epochs", 1, "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, err
    estimate = json.loads(out)["estimate"]
    assert (estimate["n_models"], estimate["n_done"]) == (9, 0)
    assert estimate["training_seconds"] > 0
    assert estimate["examining_seconds"] > 0
    assert not (run / "arms").exists()


def test_the_command_line_compares_and_prints_json(capsys, world, finished):
    _, expected = finished
    code, out, err = invoke(
        capsys, "compare", world / "run", "--test", world / "test.jsonl",
        "--arms", "base, full:seeds=1,full-equal-steps:seeds=1,random,grads",
        "--general", world / "text.txt", "--seeds", 2, "--epochs", 1, "--max-new-tokens", 4,
        "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["verdicts"] == expected["verdicts"]


def test_train_keeps_weights_and_rows(capsys, world):
    arguments = ("--arm", "grads", "--budget", "50%", "--epochs", 2, "--json")
    code, out, err = invoke(capsys, "train", world / "run", *arguments)
    assert code == 0, err
    found = json.loads(out)
    folder = Path(found["folder"])
    assert (found["n_rows"], found["n_steps"]) == (12, 6)
    trained = load_file(folder / "model.safetensors")
    before = load_file(world / "model" / "model.safetensors")
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    rows = json.loads((folder / "gradsift.json").read_text())["rows"]
    chosen = gs.select(world / "run", budget="50%").selection.ids
    assert sorted(rows) == sorted(chosen)
    assert not list(folder.parent.glob("checkpoints"))
    code, out, err = invoke(capsys, "train", world / "run", *arguments)
    assert code == 0
    assert "nothing to do" in err


def test_an_interrupted_training_ends_with_the_same_weights(world, tmp_path):
    options = {"arm": "full", "epochs": 2, "save_steps": 3}
    whole = train(world / "run", out=tmp_path / "whole", **options)
    calls = {"n": 0}

    def stop(*_):
        calls["n"] += 1
        if calls["n"] == 8:
            raise Killed

    with pytest.raises(Killed):
        train(world / "run", out=tmp_path / "twice", listener=Listener(progress=stop), **options)
    twice = train(world / "run", out=tmp_path / "twice", **options)
    assert twice.n_tokens == whole.n_tokens
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "twice"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_adapters_are_saved_as_adapters_and_examined_merged(world, tmp_path):
    lora = {"r": 4, "lora_alpha": 64}
    options = {"epochs": 1, "lora": lora}
    result = train(world / "run", arm="full", out=tmp_path / "adapter", **options)
    assert (result.folder / "adapter_model.safetensors").exists()
    lines = []
    arms, listener = ("base", "full:seeds=1"), Listener(note=lines.append)
    found = compared(world, name="lora", arms=arms, listener=listener, **options)
    assert any("2/2 full" in line and "left if this process" in line for line in lines)
    levels = {label: found.board.level(label, "loss").value for label in ("base", "full")}
    assert levels["full"] < levels["base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("grad",)}, "arm 'grad': expected base, full"),
        ({"arms": ("full@50%",)}, "full has no budget"),
        ({"arms": ("base:alpha=0",)}, "base selects nothing"),
        ({"arms": ("grads:alpha",)}, "no key=value"),
        ({"arms": ("grads:alpha=-1",)}, "alpha"),
        ({"arms": ("grads:nonsense=1",)}, "nonsense"),
        ({"arms": ("grads:seeds=0",)}, "seeds is 0"),
        ({"arms": ("grads@auto",)}, "auto"),
        ({"arms": ("grads",), "budgets": ()}, "no budget is given"),
        ({"arms": ("ogs-static",)}, "--anchor"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"test": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"general": ("nowhere.txt",)}, "nowhere.txt"),
        ({"general": ("nowhere.yaml",)}, "nowhere.yaml"),
        ({"name": "../x"}, "--name"),
        ({"sft": {"num_train_epochs": 3}}, "num_train_epochs"),
        ({"arms": ()}, "--arms names none"),
        ({"arms": ("base:seeds=2",)}, "not trained, so it has no seeds"),
        ({"arms": ("grads:strategy=random",)}, "the name of the arm"),
        ({"arms": ("grads:alpha=[",)}, "no value in YAML"),
        ({"arms": ("grads@50%:seeds=1", "grads@50%:seeds=2")}, "twice, with other seeds"),
        ({"strategy": "random"}, "the names of the arms"),
        ({"name": "manifest"}, "manifest.json is there and is no comparison"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"epochs": float("inf")}, "--epochs is inf"),
        ({"save_steps": 0}, "--save-steps is 0"),
        ({"limit": 0}, "--limit is 0"),
        ({"max_new_tokens": -1}, "--max-new-tokens is -1"),
        ({"lora": {"zz": 2}}, "zz"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(world, changes, message):
    lines = []
    with pytest.raises(ValueError, match=message):
        compared(world, **changes, listener=Listener(note=lines.append))
    assert not any("training 0" in line for line in lines)


def test_test_rows_in_the_pool_are_told(world):
    result = compared(world, test=str(world / "data.jsonl"), arms=("base",), name="leak")
    assert "24 of 24 test rows stand word for word in the pool" in result.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": "full", "budget": "5%"}, "has no budget"),
        ({"arm": "grads@5%", "budget": "50%"}, "names its budget"),
        ({"arm": "grads"}, "add --budget 50%"),
        ({"arm": "grads@50%:seeds=3"}, "trained once"),
        ({"arm": "base"}, "nothing to train"),
    ],
)
def test_one_arm_is_trained_once(world, options, message):
    with pytest.raises(ValueError, match=message):
        train(world / "run", **options)


def test_a_setting_of_all_arms_is_one_of_the_selection(capsys, world):
    for key in ("budget", "nonsense"):
        code, _, err = invoke(capsys, "train", world / "run", "--set", f"{key}=5%")
        assert code == 2
        assert f"--set {key}: expected one of strategy, side" in err


def test_a_folder_that_holds_something_else_is_left_alone(world, tmp_path):
    other = Path(shutil.copytree(world / "model", tmp_path / "model"))
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds something else"):
        train(world / "run", arm="full", epochs=1, out=other)
    assert (other / "model.safetensors").read_bytes() == before


def test_a_process_that_dies_while_it_saves_leaves_nothing_in_the_way(world, tmp_path, monkeypatch):
    options = {"arm": "full", "epochs": 1, "out": tmp_path / "out"}
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.comparison.saved_models.write_json", die)
        with pytest.raises(Killed):
            train(world / "run", **options)
    assert not (tmp_path / "out").exists()
    assert (train(world / "run", **options).folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # A link to an empty folder elsewhere is as good.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    train(world / "run", **{**options, "out": tmp_path / "link"})
    assert (tmp_path / "elsewhere" / "model.safetensors").exists()


def die(*_):
    raise Killed


def test_two_processes_do_not_train_one_arm_twice(world, tmp_path):
    options = {"arm": "full", "epochs": 1, "out": tmp_path / "out", "seed": 5}
    started, lines = threading.Event(), []

    def first():
        train(world / "run", **options, listener=Listener(progress=lambda *_: started.set()))

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    train(world / "run", **options, listener=Listener(note=lines.append))
    thread.join()
    assert lines[0].startswith("another process trains this arm")
    assert "nothing to do" in lines[-1]


def test_two_arms_into_one_folder_at_once_leave_one_of_them_whole(world, tmp_path):
    options = {"epochs": 1, "out": tmp_path / "out", "seed": 6}
    started, errors = threading.Event(), []

    def first():
        quiet = Listener(progress=lambda *_: started.set())
        train(world / "run", arm="full", **options, listener=quiet)

    def second():
        try:
            train(world / "run", arm="random", budget="50%", **options)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert "trained otherwise (full)" in errors[0]
    assert json.loads((tmp_path / "out" / "gradsift.json").read_text())["arm"] == "full"


def test_a_mount_point_is_not_replaced_by_a_folder(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(ValueError, match="is a mount point"):
        train(world / "run", arm="full", epochs=1, out=tmp_path)


def test_rows_that_changed_since_the_capture_are_not_trained_on(world, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data.jsonl"
    shutil.copy(world / "data.jsonl", data)
    gs.capture(str(world / "model"), gs.load_pool(str(data)), out=run, sft=TRAINING)
    lines = data.read_text().splitlines()
    changed = json.loads(lines[0])
    assert "id" in changed
    changed["response"] += " and more"
    data.write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"not those that .* was captured from"):
        train(run, arm="full", epochs=1)


def test_weights_that_were_not_kept_are_made_when_they_are_wanted(world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    options = {"arms": ("full:seeds=1",), "general": (), "epochs": 1, "max_new_tokens": 4}
    compare(run, test=str(world / "test.jsonl"), **options)
    assert not list((run / "arms").glob("*/model"))
    compare(run, test=str(world / "test.jsonl"), keep_models=True, **options)
    assert len(list((run / "arms").glob("full-0-*/model/model.safetensors"))) == 1


def test_weights_that_were_half_written_are_not_taken_for_kept(world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    options = {"arms": ("full:seeds=1",), "general": (), "epochs": 1, "max_new_tokens": 4}
    compare(run, test=str(world / "test.jsonl"), **options)
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.utils.sync_folder", die)
        with pytest.raises(Killed):
            compare(run, test=str(world / "test.jsonl"), keep_models=True, **options)
    compare(run, test=str(world / "test.jsonl"), keep_models=True, **options)
    assert len(list((run / "arms").glob("full-0-*/model/model.safetensors"))) == 1


def names_and_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def never_train(*args, **kwargs):
    pytest.fail("it was trained before")


@pytest.mark.parametrize(
    "how", [{}, {"lora": {"r": 2}}, {"sft": {"bf16": True}}], ids=["full", "lora", "mixed"]
)
def test_kept_weights_are_asked_other_questions_without_training_again(
    world, tmp_path, monkeypatch, how
):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    options = {"arms": ("full:seeds=1",), "epochs": 1, **how}
    options["test"] = str(world / "test.jsonl")
    first = compare(run, general=(), max_new_tokens=4, keep_models=True, **options)
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.comparison.saved_models.fine_tune", never_train)
        second = compare(run, general=("sanity",), max_new_tokens=5, limit=3, **options)
        trained = train(run, arm="full", epochs=1, **how)
        assert trained.folder.parent.parent == run.resolve() / "arms"
        assert list(trained.folder.glob("*.safetensors"))
        with pytest.raises(pytest.fail.Exception):
            train(run, arm="full", epochs=2, **how)
        elsewhere = train(run, arm="full", epochs=1, **how, out=tmp_path / "model")
        assert names_and_bytes(elsewhere.folder) == names_and_bytes(trained.folder)
    (one,), (two,) = first.board.arms["full"], second.board.arms["full"]
    assert one.scores["rows"] == two.scores["rows"]
    assert one.training == two.training
    assert len(list((run / "arms").glob("*/model"))) == 1


DAMAGES = {
    "removed": lambda folder: (folder / "model.safetensors").unlink(),
    "cut": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "unnamed": lambda folder: (folder / "gradsift.json").unlink(),
    "empty": lambda folder: (folder / "gradsift.json").write_text("{}"),
    "torn": lambda folder: (folder / "gradsift.json").write_text('{"identity": '),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_kept_weights_that_were_damaged_are_trained_again(world, tmp_path, name):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    options = {"arms": ("full:seeds=1",), "epochs": 1, "general": (), "max_new_tokens": 4}
    options["test"] = str(world / "test.jsonl")
    compare(run, keep_models=True, **options)
    (folder,) = (run / "arms").glob("*/model")
    whole = names_and_bytes(folder)
    DAMAGES[name](folder)
    lines = []
    compare(run, **{**options, "max_new_tokens": 5}, listener=Listener(note=lines.append))
    assert not any("only examined" in line for line in lines)
    compare(run, keep_models=True, **options)
    again = names_and_bytes(folder)
    assert again["model.safetensors"] == whole["model.safetensors"]
    DAMAGES[name](folder)
    other = train(run, arm="full", epochs=1).folder
    assert names_and_bytes(other)["model.safetensors"] == whole["model.safetensors"]


def test_a_forecast_knows_which_models_are_only_examined(world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    options = {"arms": ("full:seeds=1",), "epochs": 1, "general": ()}
    options["test"] = str(world / "test.jsonl")
    compare(run, keep_models=True, max_new_tokens=4, **options)
    found = compare(run, max_new_tokens=5, dry_run=True, **options)
    assert (found.n_models, found.n_done, found.n_tokens) == (1, 0, 0)


def test_adapters_on_base_weights_changed_at_random_are_not_loaded_again(world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    lora = {"init_lora_weights": "pissa_niter_4", "r": 2}
    options = {"arms": ("full:seeds=1",), "epochs": 1, "general": (), "lora": lora}
    options["test"] = str(world / "test.jsonl")
    first = compare(run, keep_models=True, max_new_tokens=4, **options)
    second = compare(run, max_new_tokens=5, **options)
    (one,), (two,) = first.board.arms["full"], second.board.arms["full"]
    assert one.scores["rows"] == two.scores["rows"]


def test_a_dtype_that_is_not_the_captures_is_refused(world, tmp_path):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("dtype: float32", "dtype: bfloat16"))
    with pytest.raises(ValueError, match="captured in float32"):
        train(run, arm="full", epochs=1)


def test_what_train_kept_is_compared_without_training_again(world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    copy_without_arms(world / "run", run)
    train(run, arm="grads", budget="50%", epochs=1)
    options = {"arms": ("grads@50%:seeds=1",), "general": (), "epochs": 1, "max_new_tokens": 4}
    monkeypatch.setattr("gradsift.comparison.saved_models.fine_tune", never_train)
    assert compare(run, test=str(world / "test.jsonl"), **options).board.arms


def test_sizes_said_in_other_words_are_compared_and_others_are_noted(world, finished):
    as_large = compared(world, name="words", arms=("base", "random@12", "grads@50%"))
    asked = {(v.question.arm, v.question.rival) for v in as_large.verdicts}
    assert asked == {("grads 50%", "random 12")}
    other = compared(world, name="other", arms=("base", "random@50%", "grads@5:seeds=1"))
    assert not other.verdicts
    assert any("grads 5: no random arm is as large" in note for note in other.notes)


def test_arms_that_are_the_same_models_are_noted(world, finished):
    arms = ("random@50%", "random@50%:alpha=0")
    result = compared(world, name="alike", arms=arms)
    assert "random 50% and random:alpha=0 50% are the same rows, trained alike" in result.notes
    assert len(result.board.arms) == 2


def test_an_arm_may_draw_with_a_seed_of_its_own(world, finished):
    lines = []
    arms = ("random@50%:seeds=1", "random@50%:seed=7:seeds=1")
    compared(world, name="draws", arms=arms, listener=Listener(note=lines.append))
    assert any(line.startswith("2 models") for line in lines)


def test_few_items_are_noted_and_one_has_no_interval(world, tmp_path):
    test = tmp_path / "one.jsonl"
    test.write_text((world / "test.jsonl").read_text().splitlines(keepends=True)[0])
    arms = ("base", "full:seeds=1", "random@50%:seeds=1", "grads@50%:seeds=1")
    result = compared(world, name="one", test=str(test), arms=arms, general=("sanity",), limit=1)
    assert any("few items (1 of rows" in note for note in result.notes)
    learning = [v for v in result.verdicts if v.question.kind == "learning"]
    assert {v.answer for v in learning} <= {"cannot tell", "nothing to tell"}
    assert result.board.level("full", "accuracy").high == float("inf")
    found = json.loads((world / "run" / "one.json").read_text(), parse_constant=pytest.fail)
    assert found["arms"]["full"]["levels"]["loss"]["low"] is None
    assert "± ?" in result.text()


def test_plots_of_an_earlier_comparison_of_that_name_do_not_stay(world, finished):
    compared(world, name="plots", arms=("base", "random:seeds=1", "grads:seeds=1"))
    assert (world / "run" / "plots-budget.svg").exists()
    compared(world, name="plots", arms=("base", "full:seeds=1"))
    assert not (world / "run" / "plots-budget.svg").exists()


def test_a_training_that_diverged_is_named(world):
    with pytest.raises(ValueError, match=r"full, training 0: .* diverged. Lower learning_rate"):
        compared(world, name="wild", arms=("full:seeds=1",), sft={"learning_rate": 1e9})
    with pytest.raises(ValueError, match=r"full, training 0: .* diverged. Lower learning_rate"):
        train(world / "run", arm="full", sft={"learning_rate": 1e30})


def test_held_out_rows_that_are_written_otherwise_are_named(world, tmp_path):
    run = tmp_path / "run"
    pool = gs.load_pool(
        str(world / "data.jsonl"), prompt_column="prompt", response_column="response"
    )
    gs.capture(str(world / "model"), pool, out=run, sft=TRAINING)
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(ValueError, match=r"--test .*other.jsonl: .* read as the run's rows"):
        compare(run, test=other, arms="base")


def test_held_out_rows_need_no_ids_and_may_be_a_split_or_a_pool(world, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    rows = [json.loads(line) for line in (world / "data.jsonl").read_text().splitlines()]
    for row in rows:
        row["uid"] = row.pop("id")
    split = Dataset.from_list(rows)
    DatasetDict(
        {"train": split, "test": split.select(range(3)).remove_columns("uid")}
    ).save_to_disk(str(data))
    pool = gs.load_pool(data, id_column="uid", split="train")
    gs.capture(str(world / "model"), pool, out=run, sft=TRAINING)
    options = {"arms": "base", "general": (), "max_new_tokens": 4}
    found = compare(run, test=data, test_split="test", **options)
    again = compare(run, test=gs.load_pool(data, split="test"), **options)
    assert found.board.sizes == again.board.sizes == {"rows": 3, "answers": 3}
    with pytest.raises(ValueError, match="has the splits"):
        compare(run, test=data, **options)


def test_a_budget_of_tokens_is_not_called_equal_steps(world, finished):
    arms = ("full-equal-steps@300tok", "longest@300tok")
    one_by_one = {"per_device_train_batch_size": 1}
    result = compared(world, name="tokens", arms=arms, seeds=1, sft=one_by_one)
    steps = {label: models[0].training["n_steps"] for label, models in result.board.arms.items()}
    assert steps["full-equal-steps 300tok"] != steps["longest 300tok"]
    assert not result.verdicts
    assert any("no full-equal-steps arm has as many steps" in note for note in result.notes)


def test_settings_of_several_words_are_taken_for_all_arms_too(capsys, world):
    code, _, err = invoke(
        capsys, "compare", world / "run", "--test", world / "test.jsonl", "--general", "",
        "--set", "layers=embedding", "--set", "detrend=step+response_length", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, err


def test_one_thing_needs_no_list(world, finished):
    found = compare(
        world / "run", test=world / "test.jsonl", arms="base", general=world / "text.txt",
        budgets="50%", max_new_tokens=4, dry_run=True,
    )  # fmt: skip
    assert (found.n_models, found.n_done) == (1, 1)


TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def task_file(folder, docs):
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "mine.yaml").write_text(TASK.replace("FILE", str(folder / "docs.jsonl")))
    return folder / "mine.yaml"


def test_an_exam_is_known_by_what_it_asks_not_by_where_its_files_lie(world, tmp_path):
    found = []
    for at, question in (("here", "ab"), ("there", "ab"), ("other", "xy")):
        folder = tmp_path / at
        folder.mkdir()
        docs = [{"context": question, "choices": ["c", "d"], "answer": 0}]
        task = task_file(folder, docs)
        test = shutil.copy(world / "test.jsonl", folder)
        result = compared(world, test=str(test), arms=("base",), general=(str(task),), name=at)
        found.append(result.made_with["exam"]["content"])
    assert found[0] == found[1] != found[2]
