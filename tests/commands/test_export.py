"""A selection in memory, and exported for trainers, through Python and the command line."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

import gradsift as gs
from former import unsealed
from gradsift.commands import exporting
from test_cli import invoke
from tiny import save_tiny

ROWS = [{"id": f"r{i}", "question": f"{i}?", "answer": "a" * (i + 1)} for i in range(6)]
TAGGED = [row | ({"tag": [1, "x"]} if i else {}) for i, row in enumerate(ROWS)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        Dataset.from_list(rows).save_to_disk(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ""])
def test_a_selection_in_memory(tmp_path, model, suffix):
    # The first row lacks a field whose values are of several types.
    rows = TAGGED if suffix in (".jsonl", ".json") else ROWS
    write(tmp_path / f"rows{suffix}", rows)
    gs.capture(model, gs.load_pool(tmp_path / f"rows{suffix}"), out=tmp_path / "run")
    result = gs.select(tmp_path / "run", budget=3, strategy="random", seed=2)
    chosen = [row for row in rows if row["id"] in result.ids]
    assert list(result.ids) == [row["id"] for row in chosen]
    assert len(result) == len(chosen) == 3
    assert [
        {k: v for k, v in row.items() if v is not None} for row in result.to_dataset()
    ] == chosen
    frame = result.to_pandas()
    assert frame["id"].tolist() == list(result.ids)
    assert list(frame) == list(dict.fromkeys(name for row in chosen for name in row))
    assert frame["answer"].tolist() == [row["answer"] for row in chosen]


def test_a_date_stays_a_text_and_parquet_keeps_its_types(tmp_path, model):
    for suffix, value in ((".jsonl", "2020-01-01"), (".parquet", 7)):
        folder = tmp_path / suffix
        folder.mkdir()
        rows = [row | {"more": value} for row in ROWS]
        if suffix == ".parquet":
            table = pa.Table.from_pylist(rows).set_column(3, "more", pa.array([7] * 6, pa.int16()))
            pq.write_table(table, folder / "rows.parquet")
        else:
            write(folder / "rows.jsonl", rows)
        gs.capture(model, gs.load_pool(folder / f"rows{suffix}"), out=folder / "run")
        result = gs.select(folder / "run", budget=3, strategy="random")
        assert result.to_dataset()[0]["more"] == value
        if suffix == ".parquet":
            assert result.to_dataset().features["more"].dtype == "int16"
            assert result.to_pandas()["more"].dtype == "int16"


@pytest.mark.parametrize(
    ("package", "method"), [("datasets", "to_dataset"), ("pandas", "to_pandas")]
)
def test_a_missing_package_is_named(world, monkeypatch, package, method):
    result = gs.select(world / "run", budget="50%", name="memory")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs the package {package}"):
        getattr(result, {"datasets": "to_dataset", "pandas": "to_pandas"}[package])()


def test_the_command_line_exports_for_several_trainers(capsys, world):
    arguments = ["select", world / "run", "--budget", "50%", "--name", "all"]
    arguments += ["--export", "trl", "--export", "openai,axolotl", "--export", "llamafactory"]
    code, out, err = invoke(capsys, *arguments, "--json")
    assert (code, err.count("\n"), f"model '{world / 'model'}'" in err) == (0, 1, True)
    summary = json.loads(out)
    folder = Path(summary["selection"])
    assert {str(Path(path).relative_to(folder)) for path in summary["also_written"]} == {
        "export/trl.jsonl",
        "export/train_trl.py",
        "export/openai.jsonl",
        "export/train_openai.py",
        "export/axolotl.jsonl",
        "export/axolotl.yaml",
        "export/llamafactory/data.jsonl",
        "export/llamafactory/dataset_info.json",
        "export/llamafactory/sft.yaml",
    }
    kept = [json.loads(line) for line in (folder / "selected.jsonl").read_text().splitlines()]
    exported = [json.loads(line) for line in (folder / "export/trl.jsonl").read_text().splitlines()]
    assert [row["completion"][0]["content"] for row in exported] == [r["response"] for r in kept]
    code, out, _ = invoke(capsys, *arguments)
    assert code == 0
    assert "export/train_trl.py" in out


def test_notes_of_an_export_are_told(capsys, world):
    code, out, _ = invoke(
        capsys, "select", world / "run", "--budget", "4", "--name", "few", "--export", "openai"
    )
    assert code == 0
    assert "note: export openai: 4 rows: the API takes 10 or more" in out


def test_without_an_export_it_is_said_how_to_get_one(capsys, world):
    code, out, _ = invoke(capsys, "select", world / "run", "--budget", "4", "--name", "plain")
    assert code == 0
    assert "--export trl" in out.splitlines()[-1]


def test_an_unknown_trainer_is_refused(capsys, world):
    code, _, err = invoke(capsys, "select", world / "run", "--budget", "4", "--export", "tri")
    assert code == 2
    assert "export" in err
    assert "'trl'" in err
    assert err.count("\n") == 1


def test_weights_become_shares_of_the_sources(world):
    result = gs.select(world / "run", budget="50%", weights=True, export="axolotl", name="shares")
    config = yaml.safe_load((result.folder / "export/axolotl.yaml").read_text())
    decisions = pq.read_table(result.folder / "decisions.parquet").to_pylist()
    source_of = {
        row["id"]: row["source"]
        for row in map(json.loads, (world / "data.jsonl").read_text().splitlines())
    }
    means = {}
    for name in ("book", "forum"):
        weights = [
            row["weight"]
            for row in decisions
            if row["selected"] and source_of[row["instance_id"]] == name
        ]
        means[name] = sum(weights) / len(weights)
    found = {Path(e["path"]).stem.split("-")[-1]: e["weight"] for e in config["datasets"]}
    largest = max(means.values())
    assert found == pytest.approx({k: v / largest for k, v in means.items()}, abs=1e-4)


def test_rows_that_are_read_otherwise_now_are_not_exported(tmp_path, model):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    write(tmp_path / "rows.jsonl", [{"id": f"r{i}", "messages": turns} for i in range(4)])
    gs.capture(model, gs.load_pool(tmp_path / "rows.jsonl"), out=tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(unsealed(config).replace("train_on: all", "train_on: last"))
    with pytest.raises(ValueError, match=r"4 of the selected rows are not read any more.*'r0'"):
        gs.select(tmp_path / "run", budget="100%", strategy="random", export="openai")


def test_selecting_alone_loads_no_trainer(world, monkeypatch):
    monkeypatch.setattr(exporting, "write_export", lambda *_: pytest.fail("nothing is exported"))
    assert len(gs.select(world / "run", budget=3, name="three")) == 3


def test_a_run_of_a_loop_of_ones_own_has_nothing_to_export_with(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run/config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        gs.select(tmp_path / "run", budget=3, name="none", export="openai")
    assert not (tmp_path / "run/selections/none").exists()
    assert len(gs.select(tmp_path / "run", budget=3, name="none")) == 3


def test_a_refused_export_leaves_a_whole_selection(world, monkeypatch):
    def refuse(*_):
        raise exporting.GradsiftError("no.")

    monkeypatch.setattr(exporting, "write_export", refuse)
    with pytest.raises(ValueError, match=r"no\. The selection itself, .* is in .*selections/half"):
        gs.select(world / "run", budget=3, name="half", export="openai")
    folder = world / "run/selections/half"
    assert json.loads((folder / "selection.json").read_text())["selected"] == 3
    with pytest.raises(ValueError, match="other settings"):
        gs.select(world / "run", budget=4, name="half")


def test_plain_text_for_openai_is_refused_before_the_epoch(tmp_path, model):
    write(tmp_path / "rows.jsonl", [{"text": f"text {i}"} for i in range(6)])
    with pytest.raises(ValueError, match="every row is plain text"):
        gs.run(
            tmp_path / "rows.jsonl", model=model, budget=3, out=tmp_path / "run", export="openai"
        )
    assert not (tmp_path / "run").exists()


def test_a_selected_row_that_is_none_any_more_is_not_skipped(world):
    result = gs.select(world / "run", budget=3, name="spoilt")
    with result.selected_file.open("a") as file:
        file.write("[1\n")
    with pytest.raises(ValueError, match="row 4 is no row any more"):
        result.records()
