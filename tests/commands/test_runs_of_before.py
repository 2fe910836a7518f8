"""Run folders that an earlier gradsift made are read: settings, store and selections of then."""

import json
import shutil

import pytest
import yaml

import gradsift as gs
from former import make_former_store, write_plain_json
from gradsift.comparison.training_runs import settings_of_arm
from gradsift.config import ArmTrainingConfig
from gradsift.data import pool
from gradsift.run_folder import Run
from test_cli import invoke
from tiny import save_tiny

OLD_NAMES = {
    "score": "side",
    "detrend": "adjust",
    "similarity_threshold": "near_threshold",
    "record_at": "when",
    "warmup_fraction": "preliminary",
}
OLD_SCORES = {"low-norm": "consistent", "prompt-gain": "grounded"}


def as_before(settings):
    return {OLD_NAMES.get(k, k): OLD_SCORES.get(str(v), v) for k, v in settings.items()}


def make_former(run):
    """Write a run folder as version 3 of the store's schema had it."""

    def before(manifest):
        check = manifest["about"]["self_check"]
        check["path"] = check.pop("method")
        return manifest | {"identity": as_before(manifest["identity"])}

    make_former_store(run, before)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(as_before(config)))
    for path in (run / "selections").glob("*/selection.json"):
        summary = json.loads(path.read_text())
        summary["settings"] = as_before(summary["settings"])
        summary["losses"] = summary.pop("criteria")
        write_plain_json(path, summary)


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    model = str(save_tiny(folder / "model"))
    rows = [{"id": f"r{i}", "prompt": f"{i}?", "response": "red green " * (1 + i % 4)}
            for i in range(20)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gs.run(folder / "rows.jsonl", model=model, budget=5, out=folder / "run")
    make_former(folder / "run")
    return folder / "run"


def test_it_is_selected_from_and_explained(former, capsys):
    for arguments in (
        # First, while the selection is as it was written then.
        ("explain", former, "r3"),
        ("select", former, "--budget", "5"),
        ("select", former, "--budget", "3"),
        ("stability", former, "--budget", "5"),
        ("strategies", former, "--budget", "5"),
        ("agreement", former, former),
        ("reference-losses", former),
    ):
        code, out, err = invoke(capsys, *arguments)
        assert code == 0, err
        assert out


def test_another_selection_of_that_name_is_refused_by_todays_names(former, tmp_path):
    run = shutil.copytree(former, tmp_path / "run")
    with pytest.raises(gs.GradsiftError, match=r"other settings \(score\)"):
        gs.select(run, budget=5, score="high-norm", name="grads-5")


@pytest.mark.parametrize("strategy", ["grads", "loss-low", "ifd-loss"])
def test_a_selection_by_another_arithmetic_is_not_taken_for_todays(former, tmp_path, strategy):
    run = shutil.copytree(former, tmp_path / "run")
    gs.reference_losses(run)
    folder = gs.select(run, budget=4, strategy=strategy).folder
    path = folder / "selection.json"
    summary = json.loads(path.read_text())
    before = {key: value for key, value in summary.items() if key not in ("scale", "attained")}
    del before["settings"]["arithmetic"]
    write_plain_json(path, before)
    explained = gs.explain(run, "r3", folder.name).decisions[folder.name]
    assert explained["reason"]
    if strategy == "loss-low":  # Which has no gradient score.
        assert len(gs.select(run, budget=4, strategy=strategy)) == 4
        return
    if strategy == "grads":
        assert "gradient score" in explained["what_if"]
    with pytest.raises(gs.GradsiftError, match=r"by an earlier gradsift, .* chose other rows"):
        gs.select(run, budget=4, strategy=strategy)
    if strategy != "grads":
        return
    with pytest.raises(gs.GradsiftError, match=r"other settings \(score\)"):
        gs.select(run, budget=4, score="high-norm", name="grads-4")
    assert len(gs.select(run, budget=4, name="anew")) == 4


def test_its_settings_run_again(former, capsys):
    code, out, err = invoke(capsys, "run", "--config", former / "config.yaml")
    assert code == 0, err
    assert "side is now score" in err
    assert "the capture is complete" in err
    assert "5 selected" in out
    assert yaml.safe_load((former / "config.yaml").read_text())["score"] == "low-norm"


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("pool.parquet", ("select", "--budget", "3", "--name", "x")),
        ("selections/grads-5/selection.json", ("explain", "r3")),
        ("selections/grads-5/selection.json", ("select", "--budget", "5")),
        ("selections/grads-5/decisions.parquet", ("explain", "r3")),
        ("manifest.json", ("select", "--budget", "3")),
    ],
)
def test_a_damaged_file_is_named(former, tmp_path, capsys, file, command):
    run = shutil.copytree(former, tmp_path / "run")
    (run / file).write_bytes(b"{broken")
    code, _, err = invoke(capsys, command[0], run, *command[1:])
    assert code == 2
    assert file in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("changed", ["gradsift", "rows"])
def test_it_is_said_whether_the_file_or_its_reader_changed(former, monkeypatch, tmp_path, changed):
    run = gs.Run(shutil.copytree(former, tmp_path / "run"))
    if changed == "gradsift":
        monkeypatch.setattr(pool, "_content_hash", lambda _: "other")
        message = "20 of its rows are read or rendered otherwise by this version"
    else:
        rows = tmp_path / "rows.jsonl"
        rows.write_text((former.parent / "rows.jsonl").read_text().replace("red", "blue"))
        run = gs.Run(run.folder, data=str(rows))
        message = "is not what was captured"
    with pytest.raises(gs.GradsiftError, match=message):
        _ = run.instances


def test_its_own_settings_resume_it_though_ids_repeat(former, tmp_path, capsys):
    rows = (former.parent / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows + rows.splitlines()[0].replace("red", "blue") + "\n")
    run = tmp_path / "run"
    gs.run(tmp_path / "rows.jsonl", model=str(former.parent / "model"), budget=5, out=run,
           duplicate_ids="drop")  # fmt: skip
    make_former(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["duplicate_ids"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = invoke(capsys, "run", "--config", run / "config.yaml", "--budget", "4")
    assert (code, "nothing to do" in err) == (0, True), err


def test_settings_that_were_taken_and_ignored_are_left_out_and_told(former, tmp_path, caplog):
    run = shutil.copytree(former, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sft"] = {"dataset_text_field": "foo", "report_to": "none", "learning_rate": 1e-3}
    config["lora"] = {"r": 2, "use_bdlora": {"a": 1}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    saved = Run(run).config
    settings = settings_of_arm(ArmTrainingConfig(), saved, 0)
    assert settings.sft == {"learning_rate": 1e-3}
    assert settings.lora == {"r": 2}
    assert "dataset_text_field: use `prompt_column`" in caplog.text
    assert "use_bdlora: only for serving" in caplog.text
