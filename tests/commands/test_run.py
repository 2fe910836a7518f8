"""Capture and select in one go, each thing loaded once."""

import json
from collections import Counter

import pytest
from datasets import Dataset

import gradsift as gs
from gradsift import run_folder
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_tiny(folder / "model")
    rows = [{"prompt": f"{i}?", "response": "red green " * (1 + i % 4)} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def counted(monkeypatch, *names):
    calls = Counter()
    for name in names:
        real = getattr(run_folder, name)
        monkeypatch.setattr(
            run_folder, name, lambda *a, _n=name, _r=real, **k: calls.update([_n]) or _r(*a, **k)
        )
    return calls


def test_a_run_loads_rows_and_records_once(folder, tmp_path, monkeypatch):
    """With reference losses, which are computed between capturing and selecting."""
    calls = counted(monkeypatch, "read_pool", "read_store", "read_yaml", "find_neighbours")
    result = gs.run(
        folder / "rows.jsonl", model=folder / "model", budget=0.5, out=tmp_path / "run",
        score="prompt-gain",
    )  # fmt: skip
    assert result.counts["selected"] == 10
    assert calls == {"read_pool": 1, "read_store": 1, "find_neighbours": 1}


def test_what_was_opened_is_used_again(folder, tmp_path, monkeypatch):
    pool = gs.load_pool(folder / "rows.jsonl")
    store = gs.capture(folder / "model", pool, out=tmp_path / "run")
    calls = counted(monkeypatch, "read_pool", "read_store", "find_neighbours", "read_pool_table")
    run = gs.Run(tmp_path / "run", store=store, pool=pool)
    gs.select(run, budget=5)
    gs.select(run, budget=3)
    gs.stability(run, budget=5)
    gs.reference_losses(run)
    assert calls == {"find_neighbours": 1, "read_pool_table": 1}


def test_a_run_that_is_asked_for_too_little_says_so(folder, tmp_path):
    with pytest.raises(gs.GradsiftError, match="unknown key 'buget'; did you mean budget"):
        gs.run(folder / "rows.jsonl", model="m", budget=5, out=tmp_path, buget=5)
    with pytest.raises(gs.GradsiftError, match="no-rows"):
        gs.capture("model", "no-rows.jsonl", out=tmp_path)
    with pytest.raises(gs.GradsiftError, match="the run is 3, expected a run folder"):
        gs.select(3, budget=5)
    with pytest.raises(gs.GradsiftError, match="unknown key 'strategy'"):
        gs.capture("model", gs.load_pool(folder / "rows.jsonl"), out=tmp_path, strategy="random")


def test_a_selection_names_its_run_and_rows_in_memory_are_captured(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    dataset = Dataset.from_list(rows)
    gs.capture(folder / "model", dataset, out=tmp_path / "run")
    first = gs.select(tmp_path / "run", budget=5)
    assert first.run == tmp_path / "run"
    assert len(gs.select(first, budget=0.15)) == 3
