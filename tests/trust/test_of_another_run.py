"""A file that is whole, and is that of another run: none is used for this one's in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gradsift as gs
from gradsift.run_folder import Run
from gradsift.seals import write_json
from gradsift.training.checkpoint import MADE_WITH, MARKER, resume_from
from test_cli import invoke


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
    """The same rows and model, captured with another seed; and other rows of the same ids."""
    folder = tmp_path_factory.mktemp("other")
    model = str(world / "model")
    gs.run(world / "data.jsonl", model=model, budget=0.5, out=folder / "seed", seed=7)
    rows = (world / "data.jsonl").read_text().replace("1", "7")
    (folder / "rows.jsonl").write_text(rows)
    gs.run(folder / "rows.jsonl", model=model, budget=0.5, out=folder / "rows")
    return folder


@pytest.fixture
def run(world, tmp_path):
    return Path(shutil.copytree(world / "run", tmp_path / "run"))


def test_settings_of_another_run(run, other, capsys, world):
    shutil.copy(other / "seed/config.yaml", run)
    with pytest.raises(gs.GradsiftError, match=r"config\.yaml: says sft .*, but the run was capt"):
        gs.train(run, arm="full", epochs=1)
    own = world / "run" / "config.yaml"
    code, _, err = invoke(capsys, "capture", "--config", own, "--out", run)
    assert (code, "It is made again." in err) == (0, True), err
    assert Run(run).config.seed == 0


def test_a_selection_of_another_run(run, other):
    gs.select(run, budget=0.5, name="a")
    gs.select(run, budget=0.25, name="b")
    shutil.copy(run / "selections/b/decisions.parquet", run / "selections/a")
    with pytest.raises(gs.GradsiftError, match=r"decisions\.parquet: damaged.*that of selection"):
        gs.explain(run, Run(run).store.instance_ids[0], name="a")
    gs.select(other / "seed", budget=0.5, name="c")
    shutil.copytree(other / "seed/selections/c", run / "selections/c")
    with pytest.raises(gs.GradsiftError, match="it is a selection of another run"):
        gs.explain(run, Run(run).store.instance_ids[0], name="c")


def test_the_pool_of_another_run(run, other, capsys, world):
    shutil.copy(other / "rows/pool.parquet", run)
    with pytest.raises(gs.GradsiftError, match=r"pool\.parquet: is that of another run"):
        gs.select(run, budget=0.5, name="a")
    code, _, err = invoke(capsys, "capture", "--config", world / "run/config.yaml", "--out", run)
    assert (code, "It is made again." in err) == (0, True), err
    assert gs.select(run, budget=0.5, name="a").ids


def test_losses_of_other_rows(run, other):
    gs.reference_losses(other / "rows")
    shutil.copytree(other / "rows/losses", run / "losses", dirs_exist_ok=True)
    for use in (
        lambda: gs.select(run, budget=0.5, strategy="ifd-loss", name="a"),
        lambda: gs.reference_losses(run),
    ):
        with pytest.raises(gs.GradsiftError, match=r"made with instances sha256 .*, this run has"):
            use()


def test_a_checkpoint_of_another_training(tmp_path, log):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    write_json(checkpoint / MARKER, {"step": 3, "files": {}, MADE_WITH: "a"})
    assert resume_from(tmp_path, made_with="a").step == 3
    assert resume_from(tmp_path, made_with="b") is None
    assert any("is that of another training" in line for line in log)
