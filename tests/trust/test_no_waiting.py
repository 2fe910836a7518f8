"""A pipe or a device in the place of a file: it is refused at once, not waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

import gradsift as gs
from comparing import compared
from gradsift.config_files import resolve
from gradsift.data.dataset_configs import read_dataset_info
from gradsift.data.id_lists import read_ids
from gradsift.seals import DamagedError, sha256_of


@pytest.fixture(autouse=True)
def at_once():
    """Whoever waits for a pipe does so for ever."""

    def late(*_):
        raise TimeoutError("waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


ENDLESS = pytest.mark.parametrize("endless", [pipe, device])


@ENDLESS
def test_no_digest_is_made(tmp_path, endless):
    with pytest.raises(DamagedError, match="is no file"):
        sha256_of(endless(tmp_path / "x"))


@ENDLESS
@pytest.mark.parametrize("setting", ["deepspeed", "accelerator_config", "chat_template_path"])
def test_of_the_settings_of_a_training(world, fresh_run, tmp_path, endless, setting):
    named = endless(tmp_path / ("x.jinja" if "template" in setting else "x.json"))
    path = fresh_run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"sft": config["sft"] | {setting: str(named)}}))
    with pytest.raises(gs.GradsiftError, match=f"sft setting {setting}: .* is no file"):
        gs.train(fresh_run, arm="full", epochs=1)


@pytest.mark.parametrize("setting", ["deepspeed", "chat_template_path"])
def test_a_file_of_settings_is_no_huge_one(world, tmp_path, setting):
    huge = tmp_path / "huge.jinja"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    rows = gs.load_pool(str(world / "data.jsonl"))
    with pytest.raises(gs.GradsiftError, match="has 1099512 MB, expected at most 17 MB"):
        gs.capture(str(world / "model"), rows, out=tmp_path / "run", sft={setting: str(huge)})


@ENDLESS
def test_of_dataset_info(tmp_path, endless):
    endless(tmp_path / "dataset_info.json")
    with pytest.raises(gs.GradsiftError, match=r"dataset_info\.json: is no file"):
        read_dataset_info(str(tmp_path / "dataset_info.json"), "x")
    config = {"dataset_dir": str(tmp_path), "dataset": "x", "stage": "sft", "max_samples": 5,
              "model_name_or_path": "m", "template": "empty"}  # fmt: skip
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(gs.GradsiftError, match=r"dataset_info\.json: is no file"):
        resolve({"out": str(tmp_path / "run")}, trainer_config=tmp_path / "theirs.yaml")


@pytest.mark.parametrize(("entry", "key"), [
    ({"hf_hub_url": 5}, "hf_hub_url"), ({"file_name": 5}, "file_name"),
    ({"file_name": "x", "columns": [1]}, "columns"), ({"file_name": "x", "tags": 5}, "tags"),
    ({"file_name": "x", "columns": {"prompt": [1]}}, "columns"),
    ({"file_name": "x", "formatting": [1]}, "formatting"), ({"file_name": None}, "file_name"),
    ({"hf_hub_url": "a/b", "split": 5}, "split"),
])  # fmt: skip
def test_an_entry_of_dataset_info_has_a_shape(tmp_path, entry, key):
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"x": entry}))
    with pytest.raises(gs.GradsiftError, match=rf"dataset_info\.json: 'x': {key} is .* expected"):
        gs.load_pool("x", dataset_info=str(path))


@ENDLESS
@pytest.mark.parametrize("name", ["keep", "drop"])
def test_of_lists_of_ids(world, fresh_run, tmp_path, endless, name):
    path = str(endless(tmp_path / "ids.txt"))
    with pytest.raises(gs.GradsiftError, match=f"`{name}` .* is no file"):
        read_ids(path, name, "id")
    with pytest.raises(gs.GradsiftError, match=f"`{name}` .* is no file"):
        gs.select(fresh_run, budget=5, name="new", **{name: path})


@pytest.mark.parametrize("content", [None, '{"no": "id"}', "{"])
@pytest.mark.parametrize("name", ["keep", "drop"])
def test_a_list_is_read_before_hours_of_training(world, tmp_path, name, content):
    ids = tmp_path / "ids.txt"
    pipe(ids) if content is None else ids.write_text(content)
    data, model = str(world / "data.jsonl"), str(world / "model")
    with pytest.raises(gs.GradsiftError, match=f"`{name}`"):
        gs.run(data, model=model, budget=5, out=tmp_path / "run", **{name: str(ids)})
    assert not (tmp_path / "run").exists()


@ENDLESS
def test_of_texts_that_are_scored(world, fresh_run, tmp_path, endless):
    general = (str(endless(tmp_path / "text.txt")),)
    test = str(world / "test.jsonl")
    with pytest.raises(gs.GradsiftError, match=r"`general` .* is no file"):
        gs.compare(fresh_run, test=test, arms="base", general=general, budgets="50%", seeds=1)


@ENDLESS
def test_of_answers(world, finished, tmp_path, endless):
    copy = Path(shutil.copytree(world, tmp_path / "world"))
    there = sorted(copy.glob("run/arms/base*/answers.jsonl"))
    assert there
    for answers in there:
        endless(answers)
    compared(copy, arms="base", name="again")
    # That of the comparison that was made again; others may be of other questions.
    assert any(answers.is_file() and not answers.is_symlink() for answers in there)


def test_of_the_key(world, fresh_run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "gradsift").mkdir(parents=True)
    pipe(tmp_path / "state" / "gradsift" / "key")
    with pytest.raises(gs.GradsiftError, match=r"the key .* cannot be used"):
        gs.select(fresh_run, budget=5, name="new")
