"""A pool of several files, or from memory, all the way: capture, resume, select, explain, train."""

import json
import shutil

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradsift as gs
from gradsift.run_folder import Run
from test_cli import invoke
from tiny import save_tiny

ROWS = [{"uid": f"r{i}", "prompt": f"{i}?", "response": "red green " * (1 + i % 4)}
        for i in range(12)]  # fmt: skip
# Called like a place, which is another row's.
ROWS[5]["uid"] = "line:1"


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "rows").mkdir()
    for i in range(2):
        text = as_lines(ROWS[i::2]) + "{broken\n"
        (folder / "rows" / f"part{i}.jsonl").write_text(text)
    gs.run(folder / "rows" / "*.jsonl", model=model, budget=5, out=folder / "run", id_column="uid")
    return folder


def test_shards_are_selected_from_and_explained(sharded, capsys):
    run = sharded / "run"
    lines = [line for i in range(2) for line in as_lines(ROWS[i::2]).splitlines()]
    selected = (run / "selections/grads-5/selected.jsonl").read_text().splitlines()
    assert len(selected) == 5
    assert [line for line in lines if line in selected] == selected
    decisions = pq.read_table(run / "selections/grads-5/decisions.parquet").to_pylist()
    assert [row["file"] for row in decisions] == ["part0.jsonl"] * 7 + ["part1.jsonl"] * 7
    assert Run(run).config.data == str(sharded / "rows" / "*.jsonl")
    code, out, _ = invoke(capsys, "explain", run, "row:6")
    assert code == 0
    assert "part0.jsonl, line 7" in out
    with pytest.raises(gs.GradsiftError, match=r"2 rows stand on line:2: .*part0.*part1"):
        gs.explain(run, "line:2")
    assert gs.explain(run, "line:1").row["line"] == 3


def test_show_says_where_in_its_own_table_a_row_stands(model, tmp_path, capsys):
    tables = [tmp_path / f"{name}.parquet" for name in "ab"]
    for table, rows in zip(tables, (ROWS[:7], ROWS[7:]), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), table)
    gs.run(tables, model=model, budget=5, out=tmp_path / "run", id_column="uid")
    for arguments in (("show", tmp_path / "run", "--near", "row:9"),
                      ("explain", tmp_path / "run", "row:9")):  # fmt: skip
        _, out, _ = invoke(capsys, *arguments)
        assert "(b.parquet, row 2)" in out


@pytest.mark.parametrize("written", ["ids", "rows"])
def test_lists_of_ids_take_the_runs_own_id_field(sharded, tmp_path, written):
    named = [ROWS[5], ROWS[8]]
    path = tmp_path / "keep.txt"
    path.write_text(
        as_lines(named) if written == "rows" else "".join(f"{row['uid']}\n" for row in named)
    )
    result = gs.select(sharded / "run", budget=2, keep=path, name=f"kept-{written}")
    assert result.selected_file.read_text() == as_lines([ROWS[8], ROWS[5]])
    path.write_text('{"id": "r1"}\n')
    with pytest.raises(gs.GradsiftError, match=r"line 1: .*no field 'uid', found \['id'\]"):
        gs.select(sharded / "run", budget=2, keep=path, name="x")


def test_other_shards_than_those_of_the_capture_are_refused(sharded, model, tmp_path):
    folder = shutil.copytree(sharded / "rows", tmp_path / "rows")
    settings = {"model": model, "budget": 5, "out": tmp_path / "run", "id_column": "uid"}
    gs.run(folder, **settings)
    gs.run(folder, **settings)
    (folder / "part2.jsonl").write_text(as_lines(ROWS[:1]))
    with pytest.raises(gs.GradsiftError, match=r"'part2.jsonl'"):
        gs.select(tmp_path / "run", budget=3)
    with pytest.raises(gs.GradsiftError, match=r"'part2.jsonl'"):
        gs.run(folder, **settings)


def test_several_files_on_the_command_line(sharded, model, tmp_path, capsys):
    files = sorted((sharded / "rows").glob("*"))
    code, out, err = invoke(
        capsys, "run", *reversed(files), "--model", model, "--budget", "5", "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert "2 files: part1.jsonl (7), part0.jsonl (7)" in err
    assert "5 selected" in out
    assert Run(tmp_path / "run").config.data == tuple(str(path) for path in reversed(files))


MEMORY = {
    "dataset": datasets.Dataset.from_list,
    "frame": pd.DataFrame,
    "list": list,
    # Arrow would give each row the fields of all.
    "uneven": lambda rows: [{**row, "meta": {f"k{i}": i}} for i, row in enumerate(rows)],
}


@pytest.mark.parametrize("kind", MEMORY)
def test_rows_from_memory_are_kept_in_the_run_folder(model, tmp_path, kind):
    rows = MEMORY[kind](ROWS)
    settings = {"model": model, "budget": 5, "id_column": "uid"}
    result = gs.run(rows, out=tmp_path / "made", **settings)
    lines = kind == "uneven"
    assert result.selected_file.name == ("selected.jsonl" if lines else "selected.parquet")
    assert gs.run(rows, out=tmp_path / "made", **settings).selected_file == result.selected_file
    # From here on the folder alone is enough, wherever it is.
    run = (tmp_path / "made").rename(tmp_path / "run")
    again = gs.select(run, budget=3, name="again")
    if lines:
        found = [json.loads(line) for line in again.selected_file.read_text().splitlines()]
    else:
        found = pq.read_table(again.selected_file).to_pylist()
    given = [dict(row) for row in (rows.to_dict("records") if kind == "frame" else rows)]
    assert found == [row for row in given if row in found]
    assert len(found) == 3
    assert gs.explain(run, "r3").row["row"] == 3
    assert len(Run(run).instances) == len(ROWS)
    if kind == "frame":
        assert gs.train(run, arm="full", epochs=1).n_rows == len(ROWS)
    store = gs.capture(model, gs.load_pool(rows, id_column="uid"), out=tmp_path / "captured")
    assert gs.select(store, budget=3).selected_file.read_bytes() == again.selected_file.read_bytes()


def test_a_selection_of_mixed_files_gives_its_rows(model, tmp_path):
    (tmp_path / "z.jsonl").write_text(as_lines(ROWS[:6]))
    pd.DataFrame(ROWS[6:]).to_csv(tmp_path / "a.csv", index=False)
    files = [tmp_path / "z.jsonl", tmp_path / "a.csv"]
    result = gs.run(files, model=model, budget=8, out=tmp_path / "run", id_column="uid")
    assert result.selected_file.is_dir()
    assert [row["uid"] for row in result.records()] == list(result.ids)
    assert result.to_dataset()["uid"] == list(result.ids)
    exported = gs.select(tmp_path / "run", budget=8, name="out", export="trl")
    assert exported.ids == result.ids
