"""Push, against a stub of the hub's HTTP API on 127.0.0.1: what is uploaded, and what is not."""

import getpass
import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import constants

import gradsift as gs
from gradsift.commands.dataset_card import without_paths
from gradsift.commands.push import published
from gradsift.seals import read_json, write_json
from hub import TOKEN, serving
from test_cli import invoke


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as hub:
        files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_subset_is_pushed_and_loads_as_people_load_it(hub, fresh_run, capsys, tmp_path):
    keep = tmp_path / "private-names" / "ids.txt"
    keep.parent.mkdir()
    keep.write_text("r03\n")
    selection = gs.select(fresh_run, budget=0.5, keep=keep, gamma=0.5, strategy="grads", seed=3)
    summary = read_json(selection.folder / "selection.json")
    warnings = ["keep (/home/anna/ids) names <b>r1</b> | y"]
    write_json(selection.folder / "selection.json", {**summary, "warnings": warnings})
    pushed = selection.push_to_hub("subset")
    assert (pushed.repo, pushed.n_rows, pushed.private) == ("me/subset", 12, True)
    assert pushed.url == f"{hub.url}/datasets/me/subset"
    assert hub.repos["me/subset"]["private"] is True
    ((repo, header, files),) = hub.commits
    assert repo == "me/subset"
    assert header["summary"] == "12 rows chosen by gradsift"
    assert set(files) == {"README.md", "data/train.parquet", "decisions/train.parquet"}

    folder = tmp_path / "downloaded"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    assert load_dataset(str(folder), **options).to_list() == selection.records()
    decisions = load_dataset(str(folder), "decisions", **options)
    assert decisions["instance_id"] == list(selection.ids)
    assert all(decisions["selected"])
    assert {"rank", "gradient_score", "reason", "nearest_selected"} <= {*decisions.column_names}
    assert not {"prompt", "response", "file"} & {*decisions.column_names}
    # No digest of the rows that were rejected, either.
    path = folder / "decisions" / "train.parquet"
    assert {*(pq.read_metadata(path).metadata or {})} <= {b"ARROW:schema"}

    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["tags"] == ["gradsift"]
    assert metadata["size_categories"] == ["n<1K"]
    assert [one["config_name"] for one in metadata["configs"]] == ["default", "decisions"]
    assert "license" not in metadata
    assert "12 selected of 24; 12 rejected, 0 dropped" in card
    assert "\n* keep (…) names &lt;b&gt;r1&lt;/b&gt; \\| y\n" in card
    # The command of the card makes the same selection.
    (command,) = (line for line in card.splitlines() if line.startswith("gradsift select RUN"))
    assert {"--set gamma=0.5", "--keep FILE"} <= {
        *re.findall(r"--set gamma=0.5|--keep FILE", command)
    }
    words = shlex.split(command.replace("RUN", str(fresh_run)).replace("FILE", str(keep)))
    code, _, err = invoke(capsys, *words[1:], "--name", "again")
    assert code == 0, err
    again = fresh_run / "selections" / "again" / "selected.jsonl"
    assert again.read_bytes() == selection.selected_file.read_bytes()
    # Nothing of this machine.
    own = [str(tmp_path), str(fresh_run), str(Path.home()), "private-names", "data.jsonl", "/tmp"]
    for name, content in files.items():
        assert not [word for word in own if word.encode() in content], name
    assert getpass.getuser() not in card


def test_the_command_line_pushes_again_and_says_where(hub, fresh_run, capsys):
    gs.select(fresh_run, budget=0.5)
    for _ in range(2):
        code, out, err = invoke(capsys, "push", str(fresh_run), "lab/subset", "--public")
        assert code == 0, err
        assert out.splitlines()[0] == (
            f"12 rows, and what was decided on them, in {hub.url}/datasets/lab/subset (public)"
        )
    assert len(hub.commits) == 2
    assert hub.repos["lab/subset"]["private"] is False
    hub.repos["lab/subset"]["private"] = True
    code, _, err = invoke(capsys, "push", str(fresh_run), "lab/subset", "--public")
    assert code == 2
    assert "lab/subset is there already, and private" in err
    hub.repos["lab/subset"]["private"] = False
    # A public one is not taken for a private one.
    code, _, err = invoke(capsys, "push", str(fresh_run), "lab/subset")
    assert code == 2
    assert "lab/subset is there already, and public" in err
    assert len(hub.commits) == 2


def test_what_was_written_on_a_card_stays(hub, fresh_run, capsys):
    """Metadata and text beside gradsift's own, which is written anew; nothing is overwritten."""
    first = gs.select(fresh_run, budget=0.5, name="first")
    first.push_to_hub("a")
    files = hub.repos["me/a"]["files"]
    pushed = files["README.md"].decode()
    assert "gradient score, content diversity" in pushed
    assert "recorded in one epoch of training" in pushed
    licensed = pushed.replace("---\n", "---\nlicense: mit\n", 1).replace(
        "\n- gradsift", "\n- gradsift\n- x"
    )
    files["README.md"] = f"{licensed}\nMIT, by Anna. Ünï\n".replace("\n", "\r\n").encode()
    gs.select(fresh_run, budget=5, strategy="longest", name="second").push_to_hub("a")
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["tags"]) == ("mit", ["gradsift", "x"])
    assert len(metadata["configs"]) == 2
    assert card.endswith("\nMIT, by Anna. Ünï\n")
    assert card.count("## Licence") == card.count("# A subset chosen by gradsift") == 1
    assert "5 selected of 24" in card
    assert "12 selected" not in card
    # What is not so of every strategy is not said of it.
    assert "chosen by strategy `longest`: longest responses.\n" in card
    for broken in (
        card.replace("5 selected of 24", "5 of the best"),
        card.replace("<!-- end of what gradsift writes -->", ""),
        card.replace("---\n", "---\n{[", 1),
        "# mine\n",
    ):
        files["README.md"] = broken.encode()
        hub.repos["me/a"]["tags"] = ["gradsift"]
        refused(capsys, "is not as it was pushed", fresh_run, "me/a", "--name", "first")
        assert files["README.md"] == broken.encode()


def refused(capsys, message, *words):
    code, out, err = invoke(capsys, "push", *map(str, words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert message in err


def test_what_is_not_pushed(hub, fresh_run, capsys, monkeypatch, tmp_path):
    refused(capsys, "no selection; there are: none", fresh_run, "a")
    first = gs.select(fresh_run, budget=0.5, name="first")
    gs.select(fresh_run, budget=4, name="second")
    refused(capsys, "several selections; there are: ['first', 'second']", fresh_run, "a")
    refused(capsys, "no selection 'third'", fresh_run, "a", "--name", "third")
    refused(capsys, "no selection '../x'", fresh_run, "a", "--name", "../x")
    named = (fresh_run, "a", "--name", "first")
    with pytest.raises(gs.GradsiftError, match="`repo` is None, expected 'name' or"):
        first.push_to_hub(None)
    refused(capsys, "Repo id must use alphanumeric", fresh_run, "no name!", "--name", "first")
    hub.repos["me/other"] = {"private": True, "files": {"data.csv": b"", "README.md": b"# mine"}}
    refused(capsys, "holds something else", fresh_run, "me/other", "--name", "first")
    monkeypatch.setenv("HF_TOKEN", "of nobody")
    refused(capsys, "401", *named)
    monkeypatch.delenv("HF_TOKEN")
    refused(capsys, "no login to the hub: run `hf auth login`, or set HF_TOKEN", *named)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Rows that were put there since, through a link, or in place of others.
    rows = first.selected_file.read_bytes()
    first.selected_file.write_bytes(rows.replace(b"red", b"RED"))
    refused(capsys, "selected.jsonl: damaged or changed", *named)
    (tmp_path / "secret").write_bytes(rows)
    first.selected_file.unlink()
    first.selected_file.symlink_to(tmp_path / "secret")
    refused(capsys, "is a link", *named)
    first.selected_file.unlink()
    first.selected_file.write_bytes(rows)
    summary = read_json(first.folder / "selection.json")
    for change in ({"selected": "many"}, {"settings": None}, {"warnings": 3}):
        write_json(first.folder / "selection.json", {**summary, **change})
        refused(capsys, "does not hold what a selection says", *named)
    for name in ("..", ".", "/etc/passwd", "decisions.parquet"):
        write_json(first.folder / "selection.json", {**summary, "selected_file": name})
        refused(capsys, "does not name the selected rows", *named)
    write_json(first.folder / "selection.json", summary)
    # A folder of somebody else's may name any file.
    manifest = json.loads((fresh_run / "manifest.json").read_text())
    manifest.pop("sha256", None)
    manifest["about"].pop("signed")
    write_json(fresh_run / "manifest.json", manifest)
    refused(capsys, "was captured elsewhere", *named)
    assert hub.commits == []


def test_what_of_a_card_and_of_decisions_is_left_out():
    text = "keep (/home/anna/ids.txt) names r1; see ~/x/y, ../z/a and C:\\Users\\me\\f; 3/4 and/or"
    assert without_paths(text) == "keep (…) names r1; see …, … and …; 3/4 and/or"
    # A row that says nothing is called after its file, less its suffix and number of a shard.
    file = "train-00000-of-00002.jsonl"
    table = pa.table({"source": ["train", "book"], "file": [file, file], "response": ["x", "y"]})
    assert published(table, {file: "train"}).to_pydict() == {"source": [None, "book"]}
