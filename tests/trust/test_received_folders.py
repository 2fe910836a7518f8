"""Where the rows of a run folder come from, if somebody else made it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import get_args

import datasets
import pyarrow as pa
import pytest
import yaml

import gradsift as gs
from comparing import TRAINING
from former import unsealed
from gradsift import run_folder, signatures
from gradsift.captured_rows import what_is_signed
from gradsift.commands.show import Which
from gradsift.data.containers import lines
from gradsift.data.containers.rows import fingerprint
from gradsift.data.containers.sources import Source
from gradsift.seals import read_json, read_parquet, sha256_of, write_json, write_parquet
from gradsift.store.manifest import load_manifest
from gradsift.store.tables import digest_of_pool, read_pool_table, write_neighbours
from test_cli import invoke
from test_record import tiny_pool, train
from tiny import tiny_llama
from trust.attacks import TRIALS

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


def sign_again(run):
    """Make it as if this account had been told to sign what the folder says."""
    manifest = load_manifest(run)
    change(run, signed=signatures.sign(what_is_signed(manifest.identity, manifest.about)))


COMMANDS = {
    "select": lambda run, more: gs.select(run, budget=5, name="new", **more),
    "export": lambda run, more: gs.select(run, budget=5, name="new", export="trl", **more),
    "train": lambda run, more: gs.train(run, **QUICK, **more),
    "compare": lambda run, more: gs.compare(
        run, test=Path(run).parent / "test.jsonl", arms="base", dry_run=True, **more
    ),
    "reference_losses": lambda run, more: gs.reference_losses(run, **more),
    "audit": lambda run, more: gs.audit(run, **more),
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
    with pytest.raises(gs.GradsiftError, match=r"other\.jsonl: is not what was captured"):
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
    sign_again(received)
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


def no_rows(run, match, **more):
    with pytest.raises(gs.GradsiftError, match=match) as error:
        gs.select(run, budget=5, name="new", **more)
    assert "private" not in str(error.value) or match != "captured elsewhere"
    assert not (run / "selections" / "new").exists()


@pytest.fixture
def private(tmp_path):
    """A folder of `save_to_disk` that nobody named."""
    rows = [{"id": f"p{i}", "prompt": "secret?", "response": "secret"} for i in range(9)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "private")
    return tmp_path / "private"


def saved_folder(place, files, splits=None):
    """Write what `save_to_disk` writes, with names of somebody's choice."""
    datasets.Dataset.from_list([{"id": "a"}]).save_to_disk(place)
    for file in place.glob("*.arrow"):
        file.unlink()
    state = json.loads((place / "state.json").read_text())
    state["_data_files"] = [{"filename": str(file)} for file in files]
    (place / "state.json").write_text(json.dumps(state))
    if splits is not None:
        (place / "state.json").unlink()
        (place / "dataset_dict.json").write_text(json.dumps({"splits": splits}))


@pytest.mark.parametrize("name", ["/x/pool-data.arrow", "{run}/pool-data.arrow"])
def test_a_folder_in_the_run_is_not_its_rows(received, private, name):
    saved_folder(received / "pool-data.arrow", private.glob("*.arrow"))
    point_to(received, name.format(run=received), container="disk")
    change(received, signed=None, data_sha256=hashlib.sha256(b"").hexdigest())
    no_rows(received, "captured elsewhere")


@pytest.mark.parametrize("value", [
    {"given": ["/somewhere/**/*.jsonl"]}, {"container": "hub"}, {"container": "disk"},
    {"container": "files", "parts": [{"name": "{run}/pool-data.jsonl", "container": "jsonl"}]},
])  # fmt: skip
def test_only_one_plain_file_is_inside(world, received, value):
    shutil.copy(world / "data.jsonl", received / "pool-data.jsonl")
    text = json.dumps(value).replace("{run}", str(received))
    point_to(received, received / "pool-data.jsonl", **json.loads(text))
    change(received, signed=None)
    no_rows(received, "captured elsewhere")


@pytest.mark.parametrize("value", [
    {"container": "zip"}, {"container": "files", "parts": []}, {"name": None}, {"split": 5},
    {"container": "disk", "parts": [{"name": "{run}/pool-data.jsonl", "container": "jsonl"}]},
])  # fmt: skip
def test_a_source_that_is_none_is_refused(world, received, value):
    shutil.copy(world / "data.jsonl", received / "pool-data.jsonl")
    text = json.dumps(value).replace("{run}", str(received))
    about = change(received)
    change(received, data={**about["data"], **json.loads(text)})
    no_rows(received, r"manifest\.json: .*about\.data")


@pytest.mark.parametrize("splits", [None, ["../private"], ["train"]])
@pytest.mark.parametrize(
    "name", ["ABSOLUTE", "../private/data-00000-of-00001.arrow", "state.json", "", "link.arrow"]
)
def test_a_data_folder_names_no_files_elsewhere(private, tmp_path, name, splits):
    place = tmp_path / "received"
    saved_folder(
        place / "train" if splits == ["train"] else place,
        [name.replace("ABSOLUTE", str(next(private.glob("*.arrow"))))],
    )
    if splits is not None:
        place.mkdir(exist_ok=True)
        (place / "state.json").unlink(missing_ok=True)
        (place / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    for folder in (place, place / "train"):
        if folder.exists():
            (folder / "link.arrow").symlink_to(next(private.glob("*.arrow")))
    with pytest.raises(gs.GradsiftError, match="expected plain names of what lies beside"):
        gs.load_pool(str(place))
    with pytest.raises(gs.GradsiftError, match="expected plain names of what lies beside"):
        fingerprint(Source(str(place), "disk"))


def test_a_card_names_no_folder_elsewhere(private, tmp_path):
    (tmp_path / "received").mkdir()
    shutil.copy(next(private.glob("*.arrow")), private / "rows.arrow")
    card = "---\nconfigs:\n- config_name: default\n  data_dir: ../private\n---\n"
    (tmp_path / "received" / "README.md").write_text(card)
    with pytest.raises(gs.GradsiftError, match="outside of the folder"):
        gs.load_pool(str(tmp_path / "received"))


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_folder_is_not_taken_for_a_dataset_of_the_hub(received, tmp_path, monkeypatch, is_signed):
    monkeypatch.chdir(tmp_path)
    hub = tmp_path / "some" / "data"
    hub.mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: default\n  data_files: http://127.0.0.1:9/x.jsonl\n---\n"
    (hub / "README.md").write_text(card)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("was loaded"))
    point_to(received, "some/data", container="hub")
    if is_signed:
        sign_again(received)
    no_rows(received, "here is a file or folder of that name" if is_signed else "elsewhere")
    with pytest.raises(gs.GradsiftError, match="here is a file or folder of that name"):
        fingerprint(Source("some/data", "hub"))


@pytest.fixture
def own(world, tmp_path):
    return Path(shutil.copytree(world / "run", tmp_path / "own"))


def test_a_signature_is_of_one_run(own, tmp_path):
    manifest = read_json(own / "manifest.json")
    manifest["identity"]["seed"] = 77
    write_json(own / "manifest.json", manifest)
    (own / "config.yaml").write_text(unsealed(own / "config.yaml"))
    no_rows(own, "captured elsewhere")


@pytest.mark.parametrize("column", ["start", "end", "row", "instance_id"])
def test_a_signature_is_of_what_is_copied(world, own, column):
    table = read_pool_table(own)
    at = table.column_names.index(column)
    values = table[column].to_pylist()
    values[0] = "new" if column == "instance_id" else 0 if column == "start" else 999
    values[1] = "more" if column == "instance_id" else values[1]
    if column == "start":
        values[1] = 0
    changed = table.set_column(
        at, table.schema.field(at), pa.array(values, table.schema.field(at).type)
    )
    write_parquet(own / "pool.parquet", changed)
    no_rows(own, r"pool\.parquet: is that of another run")
    change(own, pool_sha256=digest_of_pool(changed))
    no_rows(own, "captured elsewhere")
    # The same capture writes it anew.
    gs.capture(str(world / "model"), gs.load_pool(str(world / "data.jsonl")), out=own, sft=TRAINING)
    assert read_pool_table(own).equals(table)
    assert len(gs.select(own, budget=5, name="new")) == 5


def test_what_a_loop_recorded_is_signed(world, tmp_path):
    run, model, pool = tmp_path / "run", tiny_llama(), tiny_pool(tmp_path)
    with gs.record(model, out=run, ids="row", pool=pool):
        train(model)
    assert len(gs.select(run, budget=2)) == 2
    shutil.copytree(run, tmp_path / "copy")
    change(tmp_path / "copy", signed=read_json(world / "run" / "manifest.json")["about"]["signed"])
    no_rows(tmp_path / "copy", "captured elsewhere")


def test_a_key_that_cannot_be_used_is_told(world, own, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    signatures.key_file().parent.mkdir(parents=True)
    signatures.key_file().write_bytes(b"short")
    no_rows(own, "gradsift/key: the key .* cannot be used")
    assert len(gs.select(own, budget=5, name="new", data=str(world / "data.jsonl"))) == 5


@pytest.mark.parametrize(("key", "value"), [
    ("data_sha256", 5), ("self_check", 5), ("self_check", "x"), ("self_check", [1]),
    ("data", None), ("data", []), ("columns", None), ("columns", {"prompt": 5}),
    ("columns", {"other": "x", "roles": 5}), ("row_format", 5), ("seconds", "x"), ("versions", 5),
    ("model", 5), ("estimate", 5), ("signed", 5),
])  # fmt: skip
def test_what_the_manifest_says_has_a_shape(received, key, value):
    change(received, **{key: value})
    no_rows(received, rf"manifest\.json: this is not a readable manifest \(about\.{key}")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kept", [(), ("data", "data_sha256", "row_format", "columns")])
@pytest.mark.parametrize("part", ["about", "identity"])
def test_a_manifest_that_says_nothing_is_one_line(world, received, command, kept, part):
    shutil.copy(world / "test.jsonl", received.parent)
    manifest = read_json(received / "manifest.json")
    manifest[part] = {key: manifest[part][key] for key in kept if key in manifest[part]}
    write_json(received / "manifest.json", manifest)
    # By whatever line, but no other exception.
    with suppress(gs.GradsiftError):
        COMMANDS[command](received, {"data": str(world / "data.jsonl")})


def without(table, at, _):
    return table.remove_column(at)


def twice(table, at, name):
    return table.append_column(name, table.column(at))


def of_another_type(table, at, name):
    return table.set_column(at, name, pa.array([[1]] * table.num_rows))


def without_values(table, at, name):
    return table.set_column(at, name, pa.nulls(table.num_rows, table.schema.field(at).type))


def fewer(table, at, name):
    return table.slice(2)


def other_names(table, at, name):
    texts = [f"x{i}" for i in range(table.num_rows)]
    return table.set_column(at, name, pa.array(texts)) if "id" in name else table.slice(0, 0)


def rewritten(run, path, change_table, name):
    """Change a table as its writer would, digests and all."""
    table = read_parquet(path)
    at = table.column_names.index(name)
    metadata = table.schema.metadata
    write_parquet(path, change_table(table, at, name).replace_schema_metadata(metadata))
    if path.parent.name == "gradients":
        manifest = read_json(run / "manifest.json")
        (part,) = [one for one in manifest["parts"] if one["file"] == path.name]
        part["sha256"] = sha256_of(path)
        write_json(run / "manifest.json", manifest)


WAYS = (of_another_type, without_values, without, twice, fewer, other_names)
READ = {
    "decisions.parquet": ("instance_id", "decision", "selected", "reason", "marginal_gain",
                          "gradient_score", "density_pct", "rank", "nearest_similarity",
                          "row", "loss", "response"),
    "pool.parquet": ("row", "instance_id", "start", "end", "status", "n_tokens", "file", "source"),
    "losses": ("instance_id", "alone"),
    "texts.parquet": ("instance_id", "prompt"),
    "neighbours.parquet": ("neighbours", "cosines", "floor", "cluster"),
    "gradients": ("instance_id", "layer", "step", "loss", "status", "sketch", "content_features",
                  "l2_norm"),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_tables(world, tmp_path_factory):
    """A run with every table there is, and what its commands say."""
    run = tmp_path_factory.mktemp("tables") / "run"
    shutil.copytree(world / "run", run, ignore=shutil.ignore_patterns("arms", "first*"))
    gs.reference_losses(run)
    shutil.rmtree(run / "selections", ignore_errors=True)
    gs.select(run, budget=5, name="old")
    manifest = load_manifest(run)
    vectors = gs.Run(run).store
    made_from = f"{run_folder._MADE_BY} {vectors.fingerprint()}"
    graph, clusters = gs.Run(run).content
    parts = (graph.offsets, graph.rows_E, graph.cosines_E, graph.floor_N, clusters)
    write_neighbours(run, made_from, *parts)
    assert manifest.complete
    return run


# In CI each way on one column of each table, and another one on each other column.
SHAPES = [
    (table, name, way)
    for table, names in READ.items()
    for at, name in enumerate(names)
    for way in (WAYS if at == 0 or TRIALS else WAYS[at % 4 : at % 4 + 1])
]


@pytest.mark.parametrize(("table", "name", "way"), SHAPES)
def test_a_table_of_another_shape_is_one_line(world, with_tables, tmp_path, table, name, way):
    run = Path(shutil.copytree(with_tables, tmp_path / "run"))
    paths = [path for path in run.rglob("*.parquet") if table in (path.name, path.parent.name)]
    rewritten(run, paths[0], way, name)
    data = {"data": str(world / "data.jsonl")}
    refused = 0
    for command in (
        lambda: [gs.explain(run, f"r{i:02d}").text() for i in range(24)],
        lambda: [gs.show(run, which).text() for which in get_args(Which)],
        lambda: gs.show(run, near="r03").text(),
        lambda: gs.select(run, budget=5, name="new", **data),
        lambda: gs.select(run, budget=5, name="ifd", strategy="ifd-loss", **data),
        lambda: gs.reference_losses(run, **data),
        lambda: gs.Run(run).store.sketches,
    ):
        try:
            command()
        except gs.GradsiftError as error:
            refused += str(run) in str(error)
    harmless = (without, without_values, fewer, other_names)
    may_be = table in ("losses", "neighbours.parquet", "texts.parquet") or name in (
        "file",
        "source",
        "row",
    )
    assert refused or may_be or (table != "gradients" and way in harmless)
