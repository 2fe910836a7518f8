"""Folders, patterns, archives, several files, UTF-16: what people have their rows in."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradsift.data.containers.lines import Place
from gradsift.data.containers.rows import read_rows, write_rows
from gradsift.data.containers.sources import (
    Source,
    absolute,
    find_source,
    find_written,
    require_same_files,
)
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError


def row(i, **more):
    return {"prompt": f"q{i}", "response": f"a{i} é", **more}


def as_lines(rows):
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows).encode()


def as_csv(rows, delimiter=","):
    lines = [rows[0].keys(), *(one.values() for one in rows)]
    return "".join(delimiter.join(line) + "\r\n" for line in lines).encode()


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def chosen(pool, keep):
    return [
        Place(one.row if one.file is None else one.index_in_file, one.start, one.end, one.file)
        for one in pool.rows
        if keep(one)
    ]


def prompts(pool):
    return [one.example.messages[0]["content"] for one in pool.rows if one.example]


def test_a_folder_of_shards_is_one_pool_of_which_rows_know_their_file(tmp_path):
    write(
        tmp_path,
        {
            "train-00001-of-00002.jsonl": as_lines([row(2), row(3, source="book")]),
            "train-00000-of-00002.jsonl": as_lines([row(0), {"prompt": "x"}]),
            "README.md": b"# rows",
            "dataset_info.json": b"{}",
            ".cache/x.jsonl": b"{",
        },
    )
    pool = load_pool(tmp_path)
    assert [one.row for one in pool.rows] == [0, 1, 2, 3]
    assert prompts(pool) == ["q0", "q2", "q3"]
    assert [one.source for one in pool.rows] == ["train", None, "train", "book"]
    assert pool.rows[1].place == "train-00000-of-00002.jsonl, line 2"
    assert any("train-00000-of-00002.jsonl, line 2: no field" in note for note in pool.notes())
    out = write_rows(pool.source, chosen(pool, lambda one: one.row in (0, 3)), tmp_path / "out")
    assert out.name == "selected.jsonl"
    assert out.read_bytes() == as_lines([row(0), row(3, source="book")])


def test_sources_are_told_apart_by_their_folders(tmp_path):
    write(tmp_path, {"a/rows.jsonl": as_lines([row(0)]), "b/rows.jsonl": as_lines([row(1)])})
    pool = load_pool(tmp_path)
    assert [one.source for one in pool.rows] == ["a/rows", "b/rows"]
    assert [one.file for one in pool.rows] == ["a/rows.jsonl", "b/rows.jsonl"]


def test_patterns_and_several_names(tmp_path, monkeypatch):
    write(tmp_path, {f"{name}.jsonl": as_lines([row(name)]) for name in "cab"})
    assert prompts(load_pool(str(tmp_path / "*.jsonl"))) == ["qa", "qb", "qc"]
    assert prompts(load_pool([tmp_path / "c.jsonl", str(tmp_path / "a.jsonl")])) == ["qc", "qa"]
    monkeypatch.chdir(tmp_path)
    assert absolute("*.jsonl") == str(tmp_path / "*.jsonl")
    # A file may be called like a pattern.
    write(tmp_path, {"[c].jsonl": as_lines([row("other")])})
    assert prompts(load_pool("[c].jsonl")) == ["qother"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", as_lines([row(i) for i in range(3)])),
        ("d.json", json.dumps([row(i) for i in range(3)]).encode()),
        ("d.json", as_lines([row(i) for i in range(3)])),
        ("d.csv", as_csv([row(i) for i in range(3)])),
        ("d.tsv", as_csv([row(i) for i in range(3)], "\t")),
    ],
)
def test_an_archive_is_read_as_what_is_in_it_and_written_unpacked(tmp_path, pack, name, content):
    suffix = ".gz" if pack is gzip.compress else ".zst"
    write(tmp_path, {name: content, f"{name}{suffix}": pack(content)})
    plain, packed = load_pool(tmp_path / name), load_pool(tmp_path / f"{name}{suffix}")
    assert [one.example for one in plain.rows] == [one.example for one in packed.rows]
    outs = [
        write_rows(pool.source, chosen(pool, lambda one: one.row != 1), tmp_path / str(i))
        for i, pool in enumerate((plain, packed))
    ]
    assert outs[0].name == outs[1].name
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("broken", ["cut", "none"])
def test_a_broken_archive_is_one_line(tmp_path, pack, broken):
    content = pack(as_lines([row(i) for i in range(5000)]))
    suffix = ".gz" if pack is gzip.compress else ".zst"
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(content[: len(content) // 2] if broken == "cut" else b"no archive")
    with pytest.raises(GradsiftError, match=r"archive is broken or cut off") as caught:
        load_pool(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", as_lines([row(i) for i in range(3)])),
        ("d.json", json.dumps([row(i) for i in range(3)], ensure_ascii=False).encode()),
        ("d.csv", as_csv([row(i) for i in range(3)])),
        ("d.csv", as_csv([row(i) for i in range(3)], "\t")),
    ],
)
def test_utf_16_is_named_read_and_written_as_utf_8(tmp_path, encoding, name, content):
    if encoding in ("utf-16-le", "utf-16-be") and name == "d.json":
        content = b"[" + content[1:]  # Nothing but what the heuristic sees tells it.
    path = tmp_path / name
    path.write_bytes(content.decode().encode(encoding))
    pool = load_pool(path)
    assert prompts(pool) == ["q0", "q1", "q2"]
    assert any(note.startswith(f"{name}: UTF-{encoding[4:6]}") for note in pool.notes())
    out = write_rows(pool.source, chosen(pool, lambda one: one.row == 1), tmp_path / "out")
    assert "q1" in out.read_bytes().decode("utf-8")
    assert out.suffix == (".tsv" if b"\t" in content else path.suffix)
    assert prompts(load_pool(out)) == ["q1"]


def test_bytes_that_are_no_utf_16_cost_their_row(tmp_path):
    lines = as_lines([row(i) for i in range(3)]).decode().encode("utf-16-le")
    bad = "q1".encode("utf-16-le")
    content = lines.replace(bad, b"\x00\xd8" + bad)
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe" + content + b"x")
    pool = load_pool(tmp_path / "d.jsonl")
    assert [one.reason for one in pool.rows] == [None, "unreadable_line", None, "unreadable_line"]


def test_several_csv_files_have_one_header_or_make_a_folder(tmp_path):
    write(
        tmp_path,
        {
            "a.csv": as_csv([row(0)]).rstrip(b"\r\n"),
            "b.csv": b"\xef\xbb\xbf" + as_csv([row(1)]),
            "c.csv": as_csv([{"question": "q2", "response": "a", "prompt": "q2"}]),
        },
    )
    pool = load_pool([tmp_path / "a.csv", tmp_path / "b.csv"])
    out = write_rows(pool.source, chosen(pool, bool), tmp_path / "out")
    assert out.read_bytes() == as_csv([row(0)]).rstrip(b"\r\n") + b"\n" + b"q1,a1 \xc3\xa9\r\n"
    pool = load_pool([tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"])
    out = write_rows(pool.source, chosen(pool, bool), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["a.csv", "b.csv", "c.csv"]
    out = write_rows(pool.source, chosen(pool, lambda one: one.row == 2), tmp_path / "out")
    assert out.name == "selected.csv"


def test_parquet_files_are_joined_where_their_columns_fit(tmp_path):
    first = {"prompt": ["q0", "q1"], "response": ["a", "b"]}
    more = {"prompt": ["q2"], "response": ["c"], "n": [7]}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, columns in zip(files, (first, more), strict=True):
        pq.write_table(pa.table(columns), path)
    pool = load_pool(files)
    out = write_rows(pool.source, chosen(pool, lambda one: one.row > 0), tmp_path / "out")
    assert pq.read_table(out).to_pylist() == [
        {"prompt": "q1", "response": "b", "n": None},
        {"prompt": "q2", "response": "c", "n": 7},
    ]
    pq.write_table(pa.table({**more, "response": [["c"]]}), files[1])
    pool = load_pool(files)
    out = write_rows(pool.source, chosen(pool, lambda one: True), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_run_folder_among_the_shards_is_none_of_them(tmp_path):
    write(tmp_path, {"a.jsonl": as_lines([row(0)]), "run/manifest.json": b"{}"})
    write(tmp_path, {"run/pool.parquet": b""})
    write(tmp_path, {"run/selections/grads-1/selected.jsonl": as_lines([row(0)])})
    assert load_pool(tmp_path).source.name == str(tmp_path / "a.jsonl")


def test_files_of_different_kinds_make_a_folder(tmp_path):
    write(
        tmp_path / "in",
        {
            "d.jsonl": as_lines([row(0)]),
            "d.csv.gz": gzip.compress(as_csv([row(1)])),
            "e.json": json.dumps([row(2), row(3)]).encode(),
        },
    )
    pool = load_pool(tmp_path / "in")
    assert prompts(pool) == ["q1", "q0", "q2", "q3"]
    out = write_rows(pool.source, chosen(pool, lambda one: one.row < 3), tmp_path)
    # d.csv and d.jsonl have the same name without suffix.
    assert sorted(path.name for path in out.iterdir()) == ["0-d.csv", "1-d.jsonl", "2-e.json"]
    assert prompts(load_pool(out)) == ["q1", "q0", "q2"]
    assert [raw.record for raw in read_rows(find_written(out))] == [row(i) for i in (1, 0, 2)]
    # In another order than that of their names, and called like splits.
    write(tmp_path, {"z/train.csv": as_csv([row(4)]), "b/test.jsonl": as_lines([row(5)])})
    other = load_pool([tmp_path / "z/train.csv", tmp_path / "b/test.jsonl"])
    folder = write_rows(other.source, chosen(other, bool), tmp_path / "x")
    assert [raw.record for raw in read_rows(find_written(folder))] == [row(4), row(5)]
    # One kind is left: one file.
    out = write_rows(pool.source, chosen(pool, lambda one: one.row >= 2), tmp_path)
    assert out.name == "selected.json"


def test_a_split_of_a_copied_hub_dataset_has_to_be_named(tmp_path):
    files = {f"data/{s}-00000-of-00001.jsonl": as_lines([row(s)]) for s in ("train", "test")}
    write(tmp_path, files)
    with pytest.raises(GradsiftError, match="has the splits test, train; name one with `split`"):
        load_pool(tmp_path)
    assert prompts(load_pool(tmp_path, split="train")) == ["qtrain"]
    with pytest.raises(GradsiftError, match="no split 'dev'"):
        load_pool(tmp_path, split="dev")
    with pytest.raises(GradsiftError, match="has no splits"):
        load_pool(write(tmp_path / "x", {"a.jsonl": as_lines([row(0)])}), split="train")


def test_a_configuration_of_a_copied_hub_dataset_has_to_be_named(tmp_path):
    files = {f"{name}/train.jsonl": as_lines([row(name)]) for name in ("main", "socratic")}
    readme = b"---\nconfigs:\n- config_name: main\n- config_name: socratic\n---\n# x"
    write(tmp_path, {**files, "README.md": readme})
    with pytest.raises(GradsiftError, match=r"\['main', 'socratic'\].*`data_config`"):
        load_pool(tmp_path)
    assert prompts(load_pool(tmp_path, data_config="socratic")) == ["qsocratic"]
    with pytest.raises(GradsiftError, match=r"no configuration 'x'.*\['main', 'socratic'\]"):
        load_pool(tmp_path, data_config="x")


def test_a_configuration_of_a_hub_dataset_is_passed_on(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        if config is None:
            # As datasets says it.
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['main', "
                "'socratic']\nExample of usage:\n\t`load_dataset('openai/gsm8k', 'main')`"
            )
        if config == "x":
            raise ValueError("BuilderConfig 'x' not found. Available: ['main', 'socratic']")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([row(0)])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(GradsiftError, match=r"several configurations; name one of \['main', 'soc"):
        load_pool("openai/gsm8k")
    with pytest.raises(GradsiftError, match=r"no configuration 'x'; name one of \['main', 'soc"):
        load_pool("openai/gsm8k", data_config="x")
    assert prompts(load_pool("openai/gsm8k", data_config="main")) == ["q0"]
    assert asked[-1] == ("openai/gsm8k", "main")
    with pytest.raises(GradsiftError, match="no hub dataset; leave out `data_config: main`"):
        load_pool(write(tmp_path, {"d.jsonl": as_lines([row(0)])}) / "d.jsonl", data_config="main")


def test_a_shard_that_comes_or_goes_is_named(tmp_path):
    write(tmp_path, {"a.jsonl": as_lines([row(0)]), "b.jsonl": as_lines([row(1)])})
    source = find_source(str(tmp_path), None)
    require_same_files(source)
    alone = find_source(str(tmp_path / "a*"), None)
    before = load_pool(tmp_path).sha256
    write(tmp_path, {"c.jsonl": as_lines([row(2)])})
    with pytest.raises(GradsiftError, match=r"came in it since the capture \(\['c.jsonl'\]\)"):
        require_same_files(source)
    write(tmp_path, {"a2.jsonl": as_lines([row(2)])})
    with pytest.raises(GradsiftError, match=r"came in it since the capture \(\['a2.jsonl'\]\)"):
        require_same_files(alone)
    (tmp_path / "a2.jsonl").unlink()
    (tmp_path / "c.jsonl").rename(tmp_path / "b.jsonl")
    assert load_pool(tmp_path).sha256 != before
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(GradsiftError, match=r"are gone from.*'b.jsonl'"):
        require_same_files(source)


def test_a_source_is_read_back_from_a_manifest(tmp_path):
    from dataclasses import asdict

    write(tmp_path, {"a.jsonl": as_lines([row(0)]), "b.jsonl": as_lines([row(1)])})
    source = find_source(str(tmp_path), None)
    saved = json.loads(json.dumps(asdict(source)))
    assert Source.of(saved) == source
    assert Source.of({"name": "x", "container": "jsonl", "split": None}) == Source("x", "jsonl")


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({}, ".", "a folder without files of rows; it is empty"),
        ({"README.md": b""}, ".", r"without files of rows; found \['README.md'\]"),
        ({}, "*.jsonl", "no file matches this pattern"),
        ({"d.parquet.gz": b""}, "d.parquet.gz", r"ending in \.parquet\.gz are not read"),
        ({"d.zip": b""}, "d.zip", r"ending in \.zip are not read"),
        ({"d.jsonl": b"{}"}, ["d.jsonl", "./d.jsonl"], "is given twice"),
        ({"d.jsonl": b"{}"}, [], "`data` is empty"),
    ],
)
def test_what_is_no_source_says_so(tmp_path, monkeypatch, files, data, message):
    monkeypatch.chdir(write(tmp_path, files))
    with pytest.raises(GradsiftError, match=message):
        load_pool(data)


PANDAS = {
    "index": {str(i): row(i) for i in range(3000)},
    "columns": {name: {str(i): row(i)[name] for i in range(3)} for name in ("prompt", "response")},
    "split": {"columns": ["prompt", "response"], "index": [0], "data": [["q", "a"]]},
}


@pytest.mark.parametrize("orient", PANDAS)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_pandas_writes_otherwise_is_named_and_turned_into_lines(tmp_path, orient, indent):
    import shutil
    import subprocess

    path = tmp_path / "my rows.json"
    path.write_text(json.dumps(PANDAS[orient], indent=indent))
    with pytest.raises(GradsiftError, match=f"orient='{orient}'.*jq") as caught:
        load_pool(path)
    assert len(str(caught.value)) < 400 + len(str(path))
    if shutil.which("jq"):
        command = str(caught.value).partition("into lines: ")[2]
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert load_pool(Path(tmp_path / "rows.jsonl")).rows[0].example is not None


SPLITS = [
    (["data.jsonl", "test.jsonl"], {"train": ["data"], "test": ["test"]}),
    (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], {"train": ["gsm8k_train"], "test": ["gsm8k_test"]}),
    (["train_sft.jsonl", "train_gen.jsonl"], {"train_sft": ["train_sft"]}),
    (["x.jsonl", "x.held-out.jsonl"], {"train": ["x"], "held-out": ["x.held-out"]}),
    (["train_1.jsonl", "train_2.jsonl", "dev.jsonl"], {"train": ["train_1", "train_2"]}),
]


@pytest.mark.parametrize(("names", "by_split"), SPLITS)
def test_held_out_rows_are_not_read_into_the_pool(tmp_path, names, by_split):
    write(tmp_path, {name: as_lines([row(name.removesuffix(".jsonl"))]) for name in names})
    with pytest.raises(GradsiftError, match="name one with `split`"):
        load_pool(tmp_path)
    for split, stems in by_split.items():
        assert prompts(load_pool(tmp_path, split=split)) == [f"q{stem}" for stem in stems]


@pytest.mark.parametrize(
    "names", [["train_1.jsonl", "train-part2.jsonl"], ["a.jsonl", "train.jsonl"], ["latest.jsonl"]]
)
def test_files_of_one_split_are_one_pool(tmp_path, names):
    write(tmp_path, {name: as_lines([row(0)]) for name in names})
    assert len(load_pool(tmp_path).rows) == len(names)


CONFIGS = """---
configs:
- config_name: en
  data_files: en.jsonl
- config_name: fr
  data_files: [fr.jsonl, more/*.jsonl]
- config_name: de
  data_files:
  - {split: train, path: de-a.jsonl}
  - {split: test, path: [de-b.jsonl]}
- config_name: part
  data_files: [{split: train, path: en.*}, {split: test, path: gone.jsonl}]
- config_name: nowhere
  data_files: [{split: train, path: x/*.parquet}]
---
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, r"has the configurations \['de', 'en', 'fr', 'nowhere', 'part'\]"),
        ({"data_config": "en"}, ["qen"]),
        ({"data_config": "fr"}, ["qfr", "qmore/0"]),
        ({"data_config": "de"}, "has the splits test, train"),
        ({"data_config": "de", "split": "train"}, ["qde-a"]),
        ({"data_config": "part", "split": "train"}, ["qen"]),
        ({"data_config": "nowhere", "split": "dev"}, "lists no files of split 'dev' that are here"),
        ({"data_config": "part"}, r"README.md lists 'gone.jsonl' for the configuration 'part'"),
        ({"data_config": "nowhere"}, r"README.md lists 'x/\*.parquet' for the configuration 'nowh"),
    ],
)
def test_files_that_a_readme_lists(tmp_path, options, expected):
    names = ("en", "fr", "more/0", "de-a", "de-b")
    files = {f"{name}.jsonl": as_lines([row(name)]) for name in names}
    write(tmp_path, {**files, "README.md": CONFIGS.encode(), "en.txt": b""})
    if isinstance(expected, list):
        assert prompts(load_pool(tmp_path, **options)) == expected
    else:
        with pytest.raises(GradsiftError, match=expected):
            load_pool(tmp_path, **options)


def test_one_file_of_a_split_is_found_again(tmp_path):
    write(tmp_path, {"train.jsonl": as_lines([row(0)]), "test.jsonl": as_lines([row(1)])})
    require_same_files(load_pool(tmp_path, split="train").source)


def test_a_working_directory_may_be_called_like_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "[v1] rows", {"a.jsonl": as_lines([row(0)])}).resolve())
    pool = load_pool("*.jsonl")
    monkeypatch.chdir(tmp_path)
    require_same_files(pool.source)
    assert load_pool(pool.read_as["data"]).rows == pool.rows


def test_links_are_followed_once(tmp_path):
    write(tmp_path, {"a.jsonl": as_lines([row(0)]), "in/c.jsonl": as_lines([row(1)])})
    (tmp_path / "in/up").symlink_to(tmp_path)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert prompts(load_pool(tmp_path)) == ["q0", "q1"]
    with pytest.raises(GradsiftError, match=r"a\.jsonl is given twice \(also as .*b\.jsonl\)"):
        load_pool(str(tmp_path / "*.jsonl"))


def test_a_file_beside_its_archive_is_said(tmp_path, caplog):
    lines = as_lines([row(0)])
    write(tmp_path, {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines)})
    assert len(load_pool(tmp_path).rows) == 2
    assert "['a.jsonl.gz']: read, and so are" in caplog.text


def test_a_pattern_leaves_out_what_a_run_wrote(tmp_path, monkeypatch):
    files = {f"data/{name}.jsonl": as_lines([row(0)]) for name in ("a", "run/selected")}
    write(tmp_path, {**files, "data/run/manifest.json": b"", "data/run/pool.parquet": b""})
    monkeypatch.chdir(tmp_path)
    assert len(load_pool("data/**/*.jsonl").rows) == 1
    assert len(load_pool("data/run/*.jsonl").rows) == 1


@pytest.mark.parametrize("name", [".", "a.jsonl"])
def test_what_may_not_be_read_says_so(tmp_path, monkeypatch, name):
    def refuse(self, *more):
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path, {"a.jsonl": as_lines([row(0)])})
    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(Path, "is_file", refuse if name != "." else lambda self: False)
    with pytest.raises(GradsiftError, match=r"cannot be read \(Permission denied\)"):
        load_pool(tmp_path / name)


def test_several_written_datasets_are_found_again(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in "ab":
        datasets.Dataset.from_list([row(name), row(name * 2)]).save_to_disk(tmp_path / name)
    pool = load_pool([tmp_path / "a", tmp_path / "b"])
    out = write_rows(pool.source, chosen(pool, lambda one: one.row in (1, 2)), tmp_path / "out")
    assert [raw.record["prompt"] for raw in read_rows(find_written(out))] == ["qaa", "qb"]


def test_parquet_files_with_other_objects_are_not_joined(tmp_path):
    for name, arguments in (("a", {"city": "Oslo"}), ("b", {"n": 1})):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        table = pa.Table.from_pylist([{"messages": turns, "call": {"arguments": arguments}}])
        pq.write_table(table, tmp_path / f"{name}.parquet")
    pool = load_pool([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    out = write_rows(pool.source, chosen(pool, bool), tmp_path / "out")
    assert [raw.record["call"] for raw in read_rows(find_written(out))] == [
        {"arguments": {"city": "Oslo"}},
        {"arguments": {"n": 1}},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}"), "a gzip archive, not lines; call it d.jsonl.gz"),
        (zstd(b"{}"), "a zstd archive, not lines; call it d.jsonl.zst"),
        (b"PAR1\x15", "is Parquet, not lines; call it d.parquet"),
        (b"ARROW1\0\0", "is Arrow, not lines; call it d.arrow"),
    ],
    ids=["gzip", "zstd", "parquet", "arrow"],
)
def test_a_file_that_is_called_something_else(tmp_path, content, message):
    with pytest.raises(GradsiftError, match=message):
        load_pool(write(tmp_path, {"d.jsonl": content}) / "d.jsonl")


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write(tmp_path, {"d.jsonl": as_lines([row(0)])})))
    pool = load_pool("~/d.jsonl")
    assert pool.read_as["data"] == pool.source.name == str(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("more", "expected"), [("", ["qa", "qb", "qc"]), (", data_dir: b", ["qb"])]
)
def test_one_configuration_is_the_whole_folder_unless_it_says_where(tmp_path, more, expected):
    files = {f"{name}.jsonl": as_lines([row(name[-1])]) for name in ("main/a", "b/b", "c")}
    readme = f"---\nconfigs: [{{config_name: main{more}}}]\n---\n"
    write(tmp_path, {**files, "README.md": readme.encode()})
    assert sorted(prompts(load_pool(tmp_path))) == expected
