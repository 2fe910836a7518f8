"""Trainings report where they are told to, each as a run of its own; nothing else says where."""

import json
import logging
import sys

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gradsift as gs
from gradsift.run_folder import Run
from gradsift.seals import sealed_lines
from gradsift.store.manifest import load_manifest
from gradsift.training.loss_curve import first_and_last, loss_sentence
from gradsift.training.reports import report_callbacks
from gradsift.training.settings.trainer import TrainerSettings, require_settings

SFT = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}


def losses_in(folder):
    """TensorBoard's own reader, on the files of one run."""
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def same(curve, other):
    steps, losses = (list(column) for column in zip(*curve, strict=True))
    return steps == [step for step, _ in other] and losses == pytest.approx([x for _, x in other])


def test_tensorboard_gets_the_preliminary_epoch_and_every_arm(world, tmp_path, log, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    sft = {**SFT, "report_to": ["tensorboard"], "run_name": "mine"}
    run, options = tmp_path / "run", {"progress": False}
    store = gs.capture(str(world / "model"), world / "data.jsonl", out=run, sft=sft, **options)
    assert same(losses_in(run / "logs"), store.about("loss_curve"))
    assert any(line.startswith("training loss: 5.") for line in log)
    # It determines nothing, and is kept nowhere.
    assert load_manifest(run).identity["sft"] == SFT
    assert yaml.safe_load((run / "config.yaml").read_text())["sft"] == SFT
    again = {**SFT, "report_to": "none"}
    gs.capture(str(world / "model"), world / "data.jsonl", out=run, sft=again, **options)
    assert log[-1].endswith("the capture is complete; nothing to do")

    by_arm = {}
    for arm in ("random", "grads"):
        more = {"arm": arm, "budget": "50%", "epochs": 1, **options}
        trained = gs.train(run, sft={"report_to": "tensorboard"}, **more)
        curve = json.loads((trained.folder / "gradsift.json").read_text())["loss_curve"]
        by_arm[arm] = losses_in(trained.folder.parent / "logs")
        assert same(by_arm[arm], curve)
        assert trained.training_loss == {"first": curve[0][1], "last": curve[-1][1]}
        first, last = trained.training_loss.values()
        said = f"training loss: {first:.3f} in the first tenth of the steps, {last:.3f} in the last"
        assert said in trained.text().splitlines()
        # Told of the same training by nobody: it is the one that is there already.
        assert gs.train(run, **more).folder == trained.folder
        assert not log[-2].startswith("nothing is reported")
        gs.train(run, sft={"report_to": "tensorboard"}, **more)
        assert log[-2] == "nothing is reported to tensorboard: this arm is not trained again"
    assert by_arm["random"] != by_arm["grads"]
    assert not (run / "arms").is_symlink()
    # An environment's folder has a folder for each, too.
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    gs.train(run, arm="full", epochs=1, sft={"report_to": "tensorboard"}, **options)
    assert losses_in(tmp_path / "tb" / "run_full_training_0")


@pytest.mark.parametrize(
    ("every", "ends", "said"),
    [
        # 12 steps, with losses 1 to 12.
        (1, {"first": 1.5, "last": 11.5}, "1.500 in the first tenth of the steps, 11.500 in the"),
        (2, {"first": 1.5, "last": 11.5}, "1.500 in the first tenth of the steps, 11.500 in the"),
        (5, {"first": 3.0, "last": 11.5, "first_steps": 5, "last_steps": 2},
         "3.000 in the first 5 steps, 11.500 in the last 2"),
    ],
)  # fmt: skip
def test_ends_of_a_curve_go_by_steps_however_many_were_logged_together(every, ends, said):
    ranges = [range(at, min(at + every, 13)) for at in range(1, 13, every)]
    curve = [(steps[-1], sum(steps) / len(steps)) for steps in ranges]
    assert first_and_last(curve) == ends
    assert said in loss_sentence(ends)
    assert first_and_last([[1, 2.0], ["x", 9], [2, float("nan")], [3, 4]])["last"] == 4


def test_what_is_left_at_the_end_is_logged_too(fresh_run):
    sft = {"logging_steps": 2}
    done = gs.train(fresh_run, arm="random", budget="50%", epochs=1, sft=sft, progress=False)
    curve = json.loads((done.folder / "gradsift.json").read_text())["loss_curve"]
    assert [step for step, _ in curve] == [2, 3]


WANDB = """
calls, run, config = [], None, {}
class Run:
    def __init__(self, name):
        self.name, self.summary, self.id, self.url = name, {}, "0", ""
    def _label(self, **_):
        pass
def init(project, name):
    global run
    calls.append(("init", name))
    run = Run(name)
def log(values):
    calls.append((run.name, values["train/global_step"]))
def finish():
    global run
    calls.append(("finish", run.name))
    run = None
"""
TRACKIO = """
from types import SimpleNamespace
calls, config, context_vars = [], {}, SimpleNamespace(
    current_space_id=SimpleNamespace(get=lambda: None)
)
def init(project, name, **_):
    calls.append(("init", f"{project}/{name}"))
def log(values):
    calls.append((calls[0][1], values["train/global_step"]))
def finish():
    calls.append(("finish", calls[0][1]))
"""
STUBS = {"wandb": (WANDB, ""), "trackio": (TRACKIO, "lab/")}


@pytest.mark.parametrize("name", STUBS)
def test_wandb_and_trackio_get_a_run_for_each_arm(world, fresh_run, tmp_path, monkeypatch, name):
    """Under stubs of the packages: the calls are transformers' own."""
    code, project = STUBS[name]
    (tmp_path / name / "sdk/lib").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / name / "sdk/lib/config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    sft = {"report_to": name, "run_name": "mine"} | ({"project": "lab"} if project else {})
    calls = []
    try:
        for arm in ("random", "grads"):
            gs.train(fresh_run, arm=arm, budget="50%", epochs=1, sft=sft, progress=False)
            made = sys.modules[name]
            calls.append(list(made.calls))
            made.calls.clear()
    finally:
        for module in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[module]
    for arm, (begin, *logged, end) in zip(("random", "grads"), calls, strict=True):
        title = f"{project}mine: {arm} 50%, training 0"
        assert begin == ("init", title)
        assert end == ("finish", title)
        assert [step for who, step in logged] == [1, 2, 3, 3]  # The last one sums up.
        assert {who for who, _ in logged} == {title}


def test_what_a_folder_says_of_it_does_not_count(fresh_run, caplog):
    path = fresh_run / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["sft"] |= {"report_to": "wandb", "run_name": "x", "trackio_space_id": "a/b"}
    path.write_text(sealed_lines(yaml.safe_dump(settings)))
    with caplog.at_level(logging.WARNING):
        assert Run(fresh_run).config.sft == SFT
    assert "trackio_space_id" in caplog.text


def test_a_link_in_a_folder_leads_no_report_out_of_it(tmp_path):
    (tmp_path / "logs").symlink_to(tmp_path.parent)
    with pytest.raises(gs.GradsiftError, match="logs: is a link"):
        report_callbacks({"report_to": "tensorboard"}, "mine: random", tmp_path)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"report_to": "all"}, "report_to is 'all'; known are tensorboard, wandb, trackio"),
        ({"report_to": ["tensorboard", 3]}, r"report_to is .*3\], expected"),
        ({"report_to": {"a": 1}}, "report_to is {'a': 1}, expected"),
        ({"run_name": "x"}, "run_name has no effect without report_to"),
        ({"report_to": "tensorboard", "project": "x"}, "project is Trackio's alone"),
        ({"report_to": "trackio"}, "report_to: trackio needs the package trackio: pip install"),
        ({"trackio_space_id": "a/b"}, "TRACKIO_SPACE_ID"),
    ],
)
def test_what_cannot_be_reported_is_refused_at_once(sft, message):
    with pytest.raises(gs.GradsiftError, match=message):
        require_settings(TrainerSettings(sft, None, 0))
