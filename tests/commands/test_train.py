"""One arm is trained, and its weights are kept."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gradsift as gs
from comparing import TRAINING, Killed, compared, die
from former import unsealed
from gradsift import train
from test_cli import invoke


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)


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
        train(world / "run", out=tmp_path / "twice", progress=stop, **options)
    twice = train(world / "run", out=tmp_path / "twice", **options)
    assert twice.n_tokens == whole.n_tokens
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "twice"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_adapters_are_saved_as_adapters_and_evaluated_merged(world, tmp_path, log):
    lora = {"r": 4, "lora_alpha": 64}
    options = {"epochs": 1, "lora": lora}
    result = train(world / "run", arm="full", out=tmp_path / "adapter", **options)
    assert (result.folder / "adapter_model.safetensors").exists()
    found = compared(world, name="lora", arms=("base", "full:seeds=1"), **options)
    assert any("2/2 full" in line and "left if this process" in line for line in log)
    levels = {label: found.board.level(label, "loss").value for label in ("base", "full")}
    assert levels["full"] < levels["base"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": "full", "budget": "5%"}, "has no budget"),
        ({"arm": "grads@5%", "budget": "50%"}, "names its budget"),
        ({"arm": "grads"}, "add `budget` 50%"),
        ({"arm": "grads@50%:seeds=3"}, "trained once"),
        ({"arm": "base"}, "nothing to train"),
        ({"arm": "full", "keep_models": True}, "'keep_models': is for compare"),
        ({"arm": "full", "strategy": "random"}, "the names of the arms"),
    ],
)
def test_one_arm_is_trained_once(world, options, message):
    with pytest.raises(gs.GradsiftError, match=message):
        train(world / "run", **options)


@pytest.mark.parametrize("key", ["budgets", "nonsense", "strategy", "keep_models"])
def test_a_setting_of_all_arms_is_one_of_training_or_selection(capsys, world, key):
    code, _, err = invoke(capsys, "train", world / "run", "--set", f"{key}=5%")
    assert code == 2
    assert f"--set: unknown key '{key}'" in err


def test_a_folder_that_holds_something_else_is_left_alone(world, tmp_path):
    other = Path(shutil.copytree(world / "model", tmp_path / "model"))
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(gs.GradsiftError, match="holds something else"):
        train(world / "run", arm="full", epochs=1, out=other)
    assert (other / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda path: flip(path), "was changed or damaged"),
        ("config.json", lambda path: path.write_text("{}"), "was changed or damaged"),
        ("tokenizer.json", lambda path: path.unlink(), "is missing"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b"?"), "was not there when"),
        ("gradsift.json", lambda path: path.write_text("{"), "is damaged"),
    ],
)
def test_a_folder_of_ones_own_that_was_damaged_is_named(world, tmp_path, name, damage, message):
    options = {"arm": "full", "epochs": 1, "out": tmp_path / "out"}
    train(world / "run", **options)
    damage(tmp_path / "out" / name)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(gs.GradsiftError, match=rf"out/{name} {message}.*Give another `out`"):
        train(world / "run", **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_process_that_dies_while_it_saves_leaves_nothing_in_the_way(world, tmp_path, monkeypatch):
    options = {"arm": "full", "epochs": 1, "out": tmp_path / "out"}
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.comparison.training_runs.write_json", die)
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


def test_two_processes_do_not_train_one_arm_twice(world, tmp_path, log):
    options = {"arm": "full", "epochs": 1, "out": tmp_path / "out", "seed": 5}
    started = threading.Event()

    def first():
        train(world / "run", **options, progress=lambda *_: started.set())

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    train(world / "run", **options)
    thread.join()
    assert any(line.startswith("another process trains this arm") for line in log)
    assert "nothing to do" in log[-1]
    assert sum("to train on" in line for line in log) == 1


def test_two_arms_into_one_folder_at_once_leave_one_of_them_whole(world, tmp_path):
    options = {"epochs": 1, "out": tmp_path / "out", "seed": 6}
    started, errors = threading.Event(), []

    def first():
        train(world / "run", arm="full", **options, progress=lambda *_: started.set())

    def second():
        try:
            train(world / "run", arm="random", budget="50%", **options)
        except gs.GradsiftError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert "trained with other settings (full)" in errors[0]
    assert json.loads((tmp_path / "out" / "gradsift.json").read_text())["arm"] == "full"


def test_a_mount_point_is_not_replaced_by_a_folder(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(gs.GradsiftError, match="is a mount point"):
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
    with pytest.raises(gs.GradsiftError, match=r"data\.jsonl: changed since the capture"):
        train(run, arm="full", epochs=1)


def test_a_dtype_that_is_not_the_captures_is_refused(fresh_run):
    config = fresh_run / "config.yaml"
    config.write_text(unsealed(config).replace("dtype: float32", "dtype: bfloat16"))
    with pytest.raises(gs.GradsiftError, match="captured with dtype float32"):
        train(fresh_run, arm="full", epochs=1)


def test_a_training_that_diverged_is_named(world):
    message = r"full, training 0: .* diverged. Lower learning_rate"
    with pytest.raises(gs.GradsiftError, match=message):
        compared(world, name="wild", arms=("full:seeds=1",), sft={"learning_rate": 1e9})
    with pytest.raises(gs.GradsiftError, match=message):
        train(world / "run", arm="full", sft={"learning_rate": 1e30})
