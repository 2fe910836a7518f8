"""A pool in shards: captured and selected from by tasks, whoever does them, as in one process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift.config import RunConfig
from gradsift.errors import GradsiftError
from gradsift.selection.parts import cells
from gradsift.sharding import graph_steps
from gradsift.sharding.commands import (
    OWN_SHARE,
    capture_shards,
    explain_in_shards,
    select_from_shards,
)
from gradsift.store.reader import read_store
from test_cli import invoke
from tiny import save_tiny

N, N_SHARDS = 60, 4
SHOWN = ("decision", "rank", "gradient_score", "reason", "nearest_selected", "prompt", "response")


def sharded(world, out, data=None, **settings):
    data = str(data or world / "data.jsonl")
    config = RunConfig(data=data, model=str(world / "model"), out=str(out), **settings)
    return capture_shards(config, N_SHARDS, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    save_tiny(folder / "model")
    write_rows(folder / "data.jsonl", N)
    sharded(folder, folder / "run")
    pool = gs.load_pool(str(folder / "data.jsonl"))
    gs.capture(
        str(folder / "model"), pool, out=folder / "whole", record_at="after", warmup_fraction=0.0
    )
    return folder


@pytest.fixture
def captured(world, tmp_path):
    """A copy of the captured shards, with nothing selected."""
    shutil.copytree(world / "run" / "shards", tmp_path / "run" / "shards")
    shutil.copy(world / "run" / "shards.json", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def in_parts(monkeypatch):
    """Pools of some 20 rows are large."""
    monkeypatch.setattr(graph_steps, "PART_ROWS", 20)
    monkeypatch.setattr(graph_steps, "COMPLETE_ROWS", 10)
    monkeypatch.setattr(graph_steps, "N_NEIGHBOURS", 8)
    monkeypatch.setattr(cells, "EXACT_ROWS", 10)


def rows_of(folder):
    paths = sorted(folder.glob("rows-*/decisions.parquet"))
    assert len(paths) == N_SHARDS
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def bytes_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_records_of_shards_are_those_of_one_process(world):
    whole = read_store(world / "whole")
    at = {one: place for place, one in enumerate(whole.instance_ids)}
    seen = []
    for folder in sorted((world / "run" / "shards").glob("shard-*")):
        store = read_store(folder / "run")
        rows = [at[one] for one in store.instance_ids]
        seen += rows
        for layer, by_name in store.statistics.items():
            for name, values in by_name.items():
                expected = whole.statistics[layer][name][rows]
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(store.content_ND, whole.content_ND[rows], rtol=1e-4, atol=1e-6)
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize(
    ("budget", "settings"),
    [
        ("50%", {}),
        ("300tok", {}),
        (20, {"strategy": "facility-location"}),
        (20, {"quota": {"forum": 5}}),
        ("auto", {}),
        (10, {"strategy": "random", "seed": 1}),
    ],
)
def test_a_small_pool_is_selected_from_as_in_one_process(world, budget, settings):
    whole = gs.select(world / "whole", budget=budget, **settings)
    found = select_from_shards(world / "run", budget=budget, **settings)
    expected = {
        row["instance_id"]: row
        for row in pq.read_table(whole.folder / "decisions.parquet").to_pylist()
    }
    rows = rows_of(found.folder)
    assert [row["instance_id"] for row in rows] == [*expected]
    for row in rows:
        other = expected[row["instance_id"]]
        for name in SHOWN:
            if isinstance(row[name], float):
                assert row[name] == pytest.approx(other[name], rel=1e-3), name
            else:
                assert row[name] == other[name], name
    kept = [
        line
        for path in sorted(found.folder.glob("rows-*/selected.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert kept == whole.selected_file.read_text().splitlines()
    counts = json.loads((found.folder / "selection.json").read_text())
    assert (counts["selected"], counts["input"]) == (len(kept), N)
    assert counts["n_tokens"] == whole.selection.n_tokens


def test_lists_hold_and_are_told(captured, tmp_path):
    keep, drop = tmp_path / "keep.txt", tmp_path / "drop.txt"
    keep.write_text("r41\nr03\n")
    drop.write_text("r10\n")
    found = select_from_shards(captured, budget=6, keep=str(keep), drop=str(drop))
    rows = {row["instance_id"]: row for row in rows_of(found.folder)}
    assert (rows["r41"]["rank"], rows["r03"]["rank"]) == (1, 2)
    assert rows["r03"]["reason"] == "kept: on the list of rows to keep"
    assert rows["r10"]["reason"] == "not kept: on the list of rows to drop"
    keep.write_text("nobody\n")
    with pytest.raises(GradsiftError, match="names 'nobody'"):
        select_from_shards(captured, budget=6, keep=str(keep), name="other")


def test_budgets_and_quotas_hold_in_several_parts(captured, in_parts):
    assert graph_steps.n_parts(N) == 3
    for budget, settings in ((30, {}), ("300tok", {}), (20, {"quota": {"forum": 6}}), (N, {})):
        found = select_from_shards(captured, budget=budget, **settings)
        kept = [row for row in rows_of(found.folder) if row["selected"]]
        if budget == "300tok":
            assert found.counts["n_tokens"] <= 300
        else:
            assert len(kept) == budget
        if settings:
            assert sum(row["source"] == "forum" for row in kept) <= 6
        ranks = sorted(row["rank"] for row in kept)
        assert ranks == list(range(1, len(kept) + 1))


def test_shares_by_hand_in_any_order_write_the_same_bytes(captured, in_parts, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(captured, other)
    by_one = select_from_shards(captured, budget="40%")
    draw, waits = random.Random(0), []
    with pytest.MonkeyPatch.context() as patch:
        while not waits or waits[-1] is not None:
            for share in draw.sample(range(3), 3):
                patch.setenv(OWN_SHARE, f"{share}/3")
                found = select_from_shards(other, budget="40%")
                waits.append(found.waits_for)
            assert len(waits) < 100
    # The last to come adds the counts up.
    assert found.counts == by_one.counts
    assert "layout" in waits
    assert bytes_of(found.folder) == bytes_of(by_one.folder)
    patch.setenv(OWN_SHARE, "3/3")
    with pytest.raises(GradsiftError, match="expected as in 3/64"):
        select_from_shards(other, budget="40%")
    patch.undo()


def test_what_is_damaged_or_out_of_date_is_made_anew_and_nothing_else(captured, in_parts, caplog):
    found = select_from_shards(captured, budget="40%")
    before = bytes_of(captured)
    marker = captured / "graph" / "near-00001" / "complete.json"
    times = {path: path.stat().st_mtime_ns for path in captured.rglob("complete.json")}
    path = captured / "graph" / "near-00001" / "cosine.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shutil.rmtree(found.folder / "rows-00002")
    select_from_shards(captured, budget="40%")
    assert "near-00001: this output of a task is not what was written" in caplog.text
    assert bytes_of(captured) == before
    redone = {path for path, then in times.items() if path.stat().st_mtime_ns != then}
    # Made again with the same bytes, it has the same digest: what was made from it stands.
    assert redone == {marker, found.folder / "rows-00002" / "complete.json"}
    (captured / "shards" / "shard-00001" / "run" / "pool.parquet").unlink()
    with pytest.raises(GradsiftError, match=r"shard-00001.*Run the same capture command again"):
        select_from_shards(captured, budget="30%")


def children_of(pid):
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def is_at_work(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
def test_killed_at_work_it_goes_on_to_the_same_bytes(world, captured, tmp_path):
    by_one = select_from_shards(captured, budget="40%")
    other = tmp_path / "other"
    shutil.copytree(world / "run" / "shards", other / "shards")
    shutil.copy(world / "run" / "shards.json", other)
    command = [sys.executable, "-m", "gradsift", "select", str(other), "--budget", "40%"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE)
    # Its children are there once the second step has begun.
    while not (other / "graph" / "cells-00000").is_dir() and process.poll() is None:
        time.sleep(0.01)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    for _ in range(100):
        if not any(is_at_work(child) for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail("processes go on after the one that began them")
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert bytes_of(other / "selections") == bytes_of(by_one.folder.parent)
    assert not list(other.rglob(".gradsift-*.tmp"))


def test_several_files_are_dealt_out_and_one_file_is_cut(world, tmp_path):
    lines = (world / "data.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data").mkdir()
    for number in range(6):
        part = tmp_path / "data" / f"part-{number}.jsonl"
        part.write_text("".join(lines[number * 10 : number * 10 + 10]))
    found = sharded(world, tmp_path / "files", tmp_path / "data")
    assert found.n_done == N_SHARDS
    selected = select_from_shards(tmp_path / "files", budget=12)
    expected = select_from_shards(world / "run", budget=12)
    assert {r["instance_id"] for r in rows_of(selected.folder) if r["selected"]} == {
        r["instance_id"] for r in rows_of(expected.folder) if r["selected"]
    }
    kept = "".join(
        path.read_text() for path in sorted(selected.folder.glob("rows-*/selected.jsonl"))
    )
    assert set(kept.splitlines(keepends=True)) < set(lines)
    with pytest.raises(GradsiftError, match="holds another pool in shards"):
        sharded(world, tmp_path / "files", world / "data.jsonl")
    with pytest.raises(GradsiftError, match="a model at rest: leave out warmup_fraction"):
        sharded(world, tmp_path / "warm", warmup_fraction=0.5)


def test_a_row_without_neighbours_in_the_union_and_an_empty_part_are_no_trouble(
    captured, world, tmp_path, in_parts, monkeypatch
):
    assert select_from_shards(captured, budget=1).counts["selected"] == 1
    same = [json.dumps({"id": f"s{i}", "prompt": "a?", "response": "red"}) for i in range(40)]
    (tmp_path / "same.jsonl").write_text("\n".join(same))
    sharded(world, tmp_path / "same", tmp_path / "same.jsonl")
    for budget in (3, 40, "100tok"):
        found = select_from_shards(tmp_path / "same", budget=budget)
        assert found.counts["input"] == 40
        assert budget == "100tok" or found.counts["selected"] == budget


def test_rows_that_changed_or_were_added_are_refused(world, tmp_path):
    lines = (world / "data.jsonl").read_text().splitlines(keepends=True)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"b{number}.jsonl").write_text("".join(lines[number * 8 : number * 8 + 8]))
    (data / "empty.jsonl").touch()
    sharded(world, tmp_path / "run", data)
    (data / "a.jsonl").write_text("".join(lines[40:60]))
    with pytest.raises(GradsiftError, match=r"another pool in shards \(files differ\)"):
        sharded(world, tmp_path / "run", data)
    (data / "a.jsonl").unlink()
    changed = (data / "b1.jsonl").read_text().replace("red", "RED")
    (data / "b1.jsonl").write_text(changed)
    with pytest.raises(GradsiftError, match=r"b1\.jsonl: changed since the capture"):
        select_from_shards(tmp_path / "run", budget=5)


def test_a_pool_that_was_cut_can_be_moved(captured, tmp_path):
    before = select_from_shards(captured, budget=9)
    kept = {row["instance_id"] for row in rows_of(before.folder) if row["selected"]}
    moved = captured.rename(tmp_path / "elsewhere")
    found = select_from_shards(moved, budget=9, name="again")
    assert {row["instance_id"] for row in rows_of(found.folder) if row["selected"]} == kept
    split = next((moved / "shards" / "split-00000").glob("rows-00001*"))
    split.write_text(split.read_text().replace("red", "RED"))
    with pytest.raises(GradsiftError, match="Run the same capture command again"):
        select_from_shards(moved, budget=9, name="third")


def test_a_name_is_of_one_selection(captured):
    found = select_from_shards(captured, budget=9, name="mine")
    with pytest.raises(GradsiftError, match=r"other settings \(budget\)"):
        select_from_shards(captured, budget=10, name="mine")
    shutil.rmtree(found.folder / "rows-00001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OWN_SHARE, "0/2")
        select_from_shards(captured, budget=9, name="mine")
    # What it told was not so any more.
    assert not (found.folder / "selection.json").exists()
    assert select_from_shards(captured, budget=9, name="mine").counts["selected"] == 9


def test_the_command_line(capsys, world, captured):
    code, out, err = invoke(capsys, "select", captured, "--budget", "20%")
    assert code == 0, err
    assert out.startswith("12 selected + 48 rejected + 0 dropped = 60 rows of the input")
    code, out, err = invoke(capsys, "explain", captured, "r07")
    assert code == 0, err
    assert "grads-20pct: " in out
    assert explain_in_shards(captured, "0:r07").row["instance_id"] == "r07"
    for words, told in (
        (("explain", captured, "nobody"), "no row 'nobody' in any of its shards"),
        (("audit", captured), "a pool in shards, which select and explain know"),
        (("select", captured, "--budget", "5", "--strategy", "k-means"), "needs the whole pool"),
        (("select", captured, "--budget", "5", "--gate"), "--gate is not known to a pool in"),
        (("select", captured, "--budget", "5", "--export", "trl"), "--export is not known"),
        (("select", captured, "--budget", "5", "--strategy", "best"), "which is unknown"),
        (("select", captured, "--budget", "5", "--score", "prompt-gain"), "needs reference losses"),
        (("select", captured, "--budget", "5", "--set", "rank_within=cluster"), "needs clusters"),
        (("select", captured, "--budget", "500"), "the pool has 60 instances"),
        (("select", captured, "--budget", "5", "--data", "x"), "--data is not known to a pool"),
        (("select", captured, "--budget", "5", "--details"), "--details is not known to a pool"),
        (("select", world / "whole", "--budget", "5", "--workers", "2"), "for pools in shards"),
        (("report", captured), "a pool in shards, which select and explain know"),
        (("train", captured, "--arm", "full"), "a pool in shards"),
        (
            (
                "capture",
                world / "data.jsonl",
                "--model",
                world / "model",
                "--shards",
                "2",
                "--dry-run",
                "--out",
                captured / "x",
            ),
            "--dry-run says nothing of",
        ),
    ):
        code, out, err = invoke(capsys, *words)
        assert (code, out) == (2, ""), words
        assert told in err, words
    shutil.rmtree(captured / "shards" / "shard-00002")
    code, out, err = invoke(capsys, "select", captured, "--budget", "5")
    assert code == 2
    assert "1 of 4 shards are not captured, the first is 2" in err
    assert os.environ.get(OWN_SHARE) is None
