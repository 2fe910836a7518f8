"""Where the rows of a run folder come from, if somebody else made it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

import gradsift as gs
from gradsift import signatures
from gradsift.data.containers import lines
from gradsift.seals import read_json, write_json
from test_cli import invoke

QUICK = {"arm": "full", "epochs": 1}


@pytest.fixture
def received(world, tmp_path, monkeypatch):
    """A run folder from another account, whose rows lie where this one has a file of its own."""
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return run


def change(run, **values):
    # Whoever changes it can write its digest, too.
    manifest = read_json(run / "manifest.json")
    manifest["about"] |= values
    write_json(run / "manifest.json", manifest)
    return manifest["about"]


def point_to(run, path, **values):
    """Let manifest and settings name other rows."""
    about = change(run)
    change(run, data={**about["data"], "name": str(path), **values})
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": str(path)}))


COMMANDS = {
    "select": lambda run, more: gs.select(run, budget=5, name="new", **more),
    "export": lambda run, more: gs.select(run, budget=5, name="new", export="trl", **more),
    "train": lambda run, more: gs.train(run, **QUICK, **more),
    "compare": lambda run, more: gs.compare(
        run, test=Path(run).parent / "test.jsonl", arms="base", dry_run=True, **more
    ),
    "reference_losses": lambda run, more: gs.reference_losses(run, **more),
    "instances": lambda run, more: gs.Run(run, **more).instances,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_want_the_users_word(world, received, command, monkeypatch):
    shutil.copy(world / "test.jsonl", received.parent)
    data = str(world / "data.jsonl")
    read = []
    original = lines.read_rows
    monkeypatch.setattr(lines, "read_rows", lambda *a: read.append(a) or original(*a))
    with pytest.raises(gs.GradsiftError, match="was captured elsewhere") as error:
        COMMANDS[command](received, {})
    assert repr(data) in str(error.value)
    assert "give `data`" in str(error.value)
    assert not read
    # The file of that name may be another one.
    other = received.parent / "other.jsonl"
    other.write_text(Path(data).read_text().replace("red", "blue"))
    with pytest.raises(gs.GradsiftError, match=r"other\.jsonl: changed since the capture"):
        COMMANDS[command](received, {"data": str(other)})
    assert not read
    COMMANDS[command](received, {"data": data})


def test_what_needs_no_rows_does_not_ask(received):
    gs.strategies(received, budget=5, names=("grads", "random"))
    gs.stability(received, budget=5)
    gs.agreement(received, received)
    assert gs.explain(received, "r03").row["instance_id"] == "r03"


@pytest.mark.parametrize("command", ["select", "train", "reference-losses"])
def test_the_command_line_says_what_to_give(world, received, capsys, command):
    more = {"select": ("--budget", "5"), "train": ("--arm", "full", "--epochs", "1")}
    arguments = (command, received, *more.get(command, ()))
    code, _, err = invoke(capsys, *arguments)
    assert code == 2
    assert "give --data" in err
    assert err.strip().count("captured elsewhere") == 1
    code, _, err = invoke(capsys, *arguments, "--data", world / "data.jsonl")
    assert code == 0, err


def test_the_same_capture_makes_it_ones_own(world, received):
    for _ in range(2):
        rows = gs.load_pool(str(world / "data.jsonl"))
        with_settings = yaml.safe_load((received / "config.yaml").read_text())["sft"]
        gs.capture(str(world / "model"), rows, out=received, sft=with_settings)
    assert len(gs.select(received, budget=5, name="new")) == 5


def test_a_signature_is_of_these_rows(world, tmp_path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    assert len(gs.select(run, budget=5, name="a")) == 5
    secret = tmp_path / "secret.jsonl"
    shutil.copy(world / "data.jsonl", secret)
    point_to(run, secret)
    with pytest.raises(gs.GradsiftError, match="captured elsewhere"):
        gs.select(run, budget=5, name="b")
    assert len(gs.select(run, budget=5, name="b", data=str(secret))) == 5


def test_a_signature_goes_with_the_digest(world, tmp_path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    change(run, data_sha256="0" * 64)
    with pytest.raises(gs.GradsiftError, match="captured elsewhere"):
        gs.select(run, budget=5, name="a")


def test_settings_and_manifest_agree(world, tmp_path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": "/etc/hostname"}))
    with pytest.raises(gs.GradsiftError, match=r"config\.yaml names the rows '/etc/hostname'"):
        gs.train(run, **QUICK)


def test_an_earlier_capture_is_as_one_from_elsewhere(world, tmp_path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    change(run, signed=None)
    with pytest.raises(gs.GradsiftError, match="or by an earlier gradsift"):
        gs.select(run, budget=5, name="a")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(received, kind):
    path = received.parent / "rows.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    point_to(received, path)
    about = change(received)
    # As if this account had been told to sign it.
    change(received, signed=signatures.sign({k: about[k] for k in ("data", "data_sha256")}))
    with pytest.raises(gs.GradsiftError, match="is no file, but a pipe, a device or a folder"):
        gs.select(received, budget=5, name="new")
    with pytest.raises(gs.GradsiftError):
        gs.select(received, budget=5, name="new", data=str(path))


def test_rows_that_the_folder_keeps_need_no_word(world, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in (world / "data.jsonl").open(encoding="utf-8")]
    gs.capture(str(world / "model"), rows, out=tmp_path / "made", warmup_fraction=0)
    run = (tmp_path / "made").rename(tmp_path / "run")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert len(gs.select(run, budget=5)) == 5
    (kept,) = run.glob("pool-data.*")
    # A link there is somebody's way out of the folder.
    shutil.copy(kept, tmp_path / "secret")
    kept.unlink()
    kept.symlink_to(tmp_path / "secret")
    with pytest.raises(gs.GradsiftError, match="captured elsewhere"):
        gs.select(run, budget=5, name="new")


@pytest.mark.parametrize("name", ["../secret.jsonl", "sub/../../secret.jsonl"])
def test_a_name_that_leads_out_is_not_inside(world, received, name):
    shutil.copy(world / "data.jsonl", received.parent / "secret.jsonl")
    point_to(received, f"{received}/{name}")
    with pytest.raises(gs.GradsiftError, match="captured elsewhere"):
        gs.select(received, budget=5, name="new")


def test_without_a_key_captures_go_on(world, tmp_path, monkeypatch, log):
    (tmp_path / "state").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = gs.load_pool(str(world / "data.jsonl"))
    gs.capture(str(world / "model"), rows, out=tmp_path / "run", warmup_fraction=0)
    assert any("later commands will ask for `data`" in line for line in log)
    with pytest.raises(gs.GradsiftError, match="captured elsewhere"):
        gs.select(tmp_path / "run", budget=5)
    assert len(gs.select(tmp_path / "run", budget=5, data=str(world / "data.jsonl"))) == 5


def test_names_from_others_are_shown_without_their_control_characters(received):
    point_to(received, "/x/\x1b[31mred\x07.jsonl")
    with pytest.raises(gs.GradsiftError) as error:
        gs.select(received, budget=5, name="new")
    assert "\x1b" not in str(error.value)
