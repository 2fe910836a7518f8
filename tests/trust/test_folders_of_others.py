"""A folder that holds files of the user's own: none of them is written over or removed."""

from __future__ import annotations

import os
import shutil

import pytest

import gradsift as gs
from comparing import TRAINING
from gradsift.training.checkpoint import remove_checkpoints
from test_record import train
from tiny import tiny_llama

MINE = ("gradients/notes.md", "checkpoints/checkpoint-500/model.safetensors", "pool.parquet",
        "losses/part-00000.parquet", "selections/mine/selected.jsonl", "arms/x", "config.yaml",
        "comparison.md", "pool-data.jsonl")  # fmt: skip


def capture(world, out):
    rows = gs.load_pool(str(world / "data.jsonl"))
    gs.capture(str(world / "model"), rows, out=out, warmup_fraction=0)


def record(world, out):
    model = tiny_llama()
    with gs.record(model, out=out, ids="row"):
        train(model)


WRITERS = {"capture": capture, "record": record}


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_without_a_run_is_left_alone(world, tmp_path, writer, name):
    mine = tmp_path / "project" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(gs.GradsiftError, match=f"holds {name.split('/')[0]} but no run"):
        WRITERS[writer](world, tmp_path / "project")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "project" / "manifest.json").exists()


def test_what_a_killed_capture_leaves_before_its_manifest_is_no_hindrance(world, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "notes.md").write_text("mine")
    rows = gs.load_pool(str(world / "data.jsonl"))
    gs.capture(str(world / "model"), rows, out=tmp_path, warmup_fraction=0)
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_in_a_run_only_what_a_run_writes_is_removed(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run, ignore=shutil.ignore_patterns("arms", "first*"))
    (run / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    mine = [run / "gradients/notes.md", run / "checkpoints/notes.md"]
    for path in mine:
        path.write_text("mine")
    stray = run / "gradients/part-00099.parquet"
    stray.write_text("left over")
    rows = gs.load_pool(str(world / "data.jsonl"))
    gs.capture(str(world / "model"), rows, out=run, sft=TRAINING)
    assert all(path.read_text() == "mine" for path in mine)
    assert not (run / "checkpoints" / "checkpoint-3").exists()


def test_checkpoints_go_with_their_folder(tmp_path):
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    remove_checkpoints(tmp_path / "checkpoints")
    assert os.listdir(tmp_path) == []
    remove_checkpoints(tmp_path / "checkpoints")
