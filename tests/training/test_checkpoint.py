"""Checkpoints: only whole ones count, nothing is unpickled, and resumed training is the same."""

import inspect
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer
from trl import SFTTrainer

from gradsift.errors import GradsiftError
from gradsift.store.manifest import PARTS_FOLDER
from gradsift.training import saving
from gradsift.training.checkpoint import MARKER, keep_newest, resume_from, writing
from gradsift.training.digests import digests_of
from gradsift.training.finetune import fine_tune, train_without_recording
from gradsift.training.saving import OPTIMIZER, SavingTrainer
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer
from interrupting import assert_same_store, capture, make_instances
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

OWN = ("_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")
OWN += ("_save_rng_state", "_load_rng_state", "_save_scaler", "_load_scaler")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Stopped in step 7: checkpoints after 4 and 6 steps, parts after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        capture(folder, stop_after=14)
    return folder


@pytest.fixture
def stopped(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "stopped")


def newest(folder):
    return folder / "checkpoints" / "checkpoint-6"


def flip(path, share=0.99):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


def link_file(path):
    elsewhere = path.parents[1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def link_folder(path):
    elsewhere = path.parents[1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def edit_marker(path, **changes):
    marker = {**json.loads((path / MARKER).read_text()), **changes}
    marker.pop("sha256", None)
    (path / MARKER).write_text(json.dumps(marker))


DAMAGES = {
    "weights": ("model.safetensors", flip),
    "optimizer": (OPTIMIZER, flip),
    "optimizer's header": (OPTIMIZER, lambda path: flip(path, 0)),
    "scheduler": ("scheduler.safetensors", flip),
    "generators": ("rng_state_0.safetensors", flip),
    "state": ("trainer_state.json", lambda path: flip(path, 0.5)),
    "cut": ("model.safetensors", lambda path: os.truncate(path, 1000)),
    "no optimizer": (OPTIMIZER, Path.unlink),
    "no scheduler": ("scheduler.safetensors", Path.unlink),
    "added": ("optimizer.pt", lambda path: path.write_bytes(b"a pickle")),
    "in a folder": ("sub/adapter_model.bin", lambda p: (p.parent.mkdir(), p.write_bytes(b"?"))),
    "a link": ("model.safetensors", link_file),
    "a link to nothing": ("x", lambda path: path.symlink_to("/nowhere")),
    "a pipe": ("x", os.mkfifo),
    "unfinished": (MARKER, Path.unlink),
    "a pipe as marker": (MARKER, lambda path: (path.unlink(), os.mkfifo(path))),
    "no JSON": (MARKER, lambda path: path.write_text("{")),
    "a list": (MARKER, lambda path: path.write_text("[]")),
    "another step": (MARKER, lambda path: edit_marker(path.parent, step=4)),
    "no digests": (MARKER, lambda path: edit_marker(path.parent, files=["model.safetensors"])),
    "no numbers": (MARKER, lambda path: edit_marker(path.parent, seconds="1")),
    "all a link": (".", link_folder),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_left_out_and_the_one_before_resumed(
    stopped, uninterrupted, log, name
):
    file, damage = DAMAGES[name]
    damage(newest(stopped) / file)
    _, result = capture(stopped)
    assert result.resumed_at_step == 4
    (warning,) = [line for line in log if "is left out" in line]
    assert str(newest(stopped) / file) in warning
    # Said once.
    assert [line for line in log if "resum" in line] == ["resumes: 8 of 24 rows are recorded"]
    shutil.rmtree(stopped / "elsewhere", ignore_errors=True)
    assert_same_store(stopped, uninterrupted)


def test_without_a_whole_checkpoint_training_begins_anew(stopped, uninterrupted, log):
    for path in (stopped / "checkpoints").glob("checkpoint-*"):
        flip(path / "model.safetensors")
    _, result = capture(stopped)
    assert result.resumed_at_step == 0
    assert sum("is left out" in line for line in log) == 2
    assert any("training begins anew" in line for line in log)
    assert_same_store(stopped, uninterrupted)


@pytest.mark.parametrize(("part", "step"), [(0, 0), (1, 0), (2, 4)])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_training_resumes_where_records_are_whole(stopped, uninterrupted, log, part, step, damage):
    path = stopped / PARTS_FOLDER / f"part-0000{part}.parquet"
    damage(path)
    _, result = capture(stopped)
    assert result.resumed_at_step == step
    assert sum(str(path) in line for line in log) == 1
    assert_same_store(stopped, uninterrupted)


def test_there_are_never_more_than_two_checkpoints(tmp_path, monkeypatch):
    seen = []
    save = SavingTrainer._save_rng_state

    def watched(self, folder):
        seen.append(sorted(path.name for path in Path(folder).parent.glob("checkpoint-*")))
        save(self, folder)

    monkeypatch.setattr(SavingTrainer, "_save_rng_state", watched)
    capture(tmp_path)
    assert [len(names) for names in seen] == [1, 2, 2, 2, 2]


def test_a_checkpoint_holds_no_pickle(interrupted):
    names = {path.name for path in newest(interrupted).iterdir()}
    assert {path.rsplit(".", 1)[-1] for path in names} == {"json", "jinja", "safetensors"}


@pytest.mark.parametrize("name", ["checkpoints", "README.md", "checkpoint-4/x", "a/b"])
def test_checkpoints_are_not_written_through_links(stopped, name):
    folder, victim = stopped / "checkpoints", stopped / "victim"
    path = folder / name if name != "checkpoints" else folder
    if name == "checkpoints":
        flip(newest(stopped) / OPTIMIZER)  # It would be removed in a folder of ours.
        folder.rename(victim)
    else:
        victim.mkdir()
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
    path.symlink_to(victim)
    before = digests_of(victim)
    with pytest.raises(GradsiftError, match=f"{path}: is a link"):
        capture(stopped)
    assert digests_of(victim) == before


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def stopped_before(tmp_path, monkeypatch):
    """The same with files and marker of an earlier gradsift."""
    with monkeypatch.context() as patched:
        for name in OWN:
            patched.delattr(SavingTrainer, name)
        with pytest.raises(KeyboardInterrupt):
            capture(tmp_path / "before", stop_after=14)
    for path in (tmp_path / "before" / "checkpoints").glob("checkpoint-*"):
        (path / MARKER).write_text(json.dumps({"step": int(path.name[11:])}))
    return tmp_path / "before"


def test_checkpoints_of_an_earlier_gradsift_are_resumed_from(stopped_before, uninterrupted):
    assert (newest(stopped_before) / "optimizer.pt").exists()
    _, result = capture(stopped_before)
    assert result.resumed_at_step == 6
    assert_same_store(stopped_before, uninterrupted)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_an_earlier_gradsift_does_not_run(stopped_before, tmp_path, name, protocol):
    canary, evil = tmp_path / "canary", Evil(tmp_path / "canary")
    torch.save(evil, newest(stopped_before) / name, pickle_protocol=protocol)
    with pytest.raises(GradsiftError, match=r"checkpoint-6: this checkpoint cannot be resumed"):
        capture(stopped_before)
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))
    assert canary.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_missing_state_is_not_begun_anew_in_silence(stopped_before, name):
    (newest(stopped_before) / name).unlink()
    with pytest.raises(GradsiftError, match=rf"{name} is missing.*Remove it"):
        capture(stopped_before)


def test_a_pickle_beside_our_own_files_is_not_opened(stopped, uninterrupted, tmp_path, monkeypatch):
    """Also where the marker knows it: whoever made the folder made the marker."""
    evil = Evil(tmp_path / "canary")
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin")
    for name in (*names, "pytorch_model.bin"):
        torch.save(evil, newest(stopped) / name)
    (newest(stopped) / "scaler.pt").unlink()
    (newest(stopped) / MARKER).rename(stopped / MARKER)
    digests = digests_of(newest(stopped))
    (stopped / MARKER).rename(newest(stopped) / MARKER)
    edit_marker(newest(stopped), files=digests)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    _, result = capture(stopped)
    assert result.resumed_at_step == 6
    assert not (tmp_path / "canary").exists()
    assert_same_store(stopped, uninterrupted)


class Stop(BaseException):
    pass


def trained(folder, *, stop_after=None, lora=None, **sft):
    """Train a model with dropout for 6 steps, a checkpoint every second one; perhaps stopped."""
    sft = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1, **sft}
    settings = TrainerSettings(sft, lora, 0, batching="random")
    model = tiny_gpt2(dropout=0.2)
    trainer = RecordingSFTTrainer(model, tiny_tokenizer(), make_instances(), settings, folder)

    def progress(n_rows, *_):
        if n_rows == stop_after:
            raise Stop

    try:
        n_steps = -(-len(trainer.lengths) // trainer.rows_per_step)
        training = train_without_recording(
            trainer, made_with="x", passes=1, n_steps=n_steps, steps_between=2, progress=progress
        )
    except Stop:
        return None
    return {**trainer.model.state_dict()}, training.loss_curve, training.resumed_at_step


HOW = {
    "full": {},
    "lora": {"lora": {"r": 2, "lora_dropout": 0.2}},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "adafactor": {"optim": "adafactor"},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.5"},
    "plateau": {"lr_scheduler_type": "cosine_with_restarts"},
}


@pytest.mark.parametrize("name", HOW)
def test_resumed_training_is_bitwise_the_same(tmp_path, name):
    weights, curve, _ = trained(tmp_path / "whole", **HOW[name])
    trained(tmp_path / "stopped", stop_after=20, **HOW[name])
    again, curve_again, step = trained(tmp_path / "stopped", **HOW[name])
    assert step == 4
    assert curve_again == curve
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    names = {path.name for path in (tmp_path / "stopped").glob("*/*")}
    assert {OPTIMIZER, "rng_state_0.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin"))]


@pytest.mark.parametrize("forgotten", ["optimizer", "scheduler", "generators"])
def test_that_it_is_the_same_is_seen_if_it_is_not(tmp_path, monkeypatch, forgotten):
    weights, *_ = trained(tmp_path / "whole")
    trained(tmp_path / "stopped", stop_after=20)
    load = saving.load_state

    def forget(path):
        state = load(path)
        if forgotten == "optimizer" and path.name == OPTIMIZER:
            state["state"] = {}
        if forgotten == "scheduler" and path.name == "scheduler.safetensors":
            state["last_epoch"] = 0
        if forgotten == "generators" and path.name.startswith("rng"):
            state["cpu"] = torch.Generator().manual_seed(1).get_state()
        return state

    monkeypatch.setattr(saving, "load_state", forget)
    again, *_ = trained(tmp_path / "stopped")
    assert not all(torch.equal(weights[key], again[key]) for key in weights)


def test_a_state_that_is_not_plain_is_saved_as_transformers_does(tmp_path, monkeypatch):
    whole, *_ = trained(tmp_path / "whole")

    def refuse(path, state):
        if path.name == OPTIMIZER:
            raise saving.NotPlainError
        save_state(path, state)

    save_state = saving.save_state
    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_state", refuse)
        trained(tmp_path / "stopped", stop_after=20)
    checkpoint = tmp_path / "stopped" / "checkpoint-4"
    assert (checkpoint / "optimizer.pt").exists()
    assert not (checkpoint / "scheduler.safetensors").exists()
    again, _, step = trained(tmp_path / "stopped")
    assert step == 4
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def full_disk(monkeypatch, where):
    """Let one of the writers fail as it does on a full disk."""
    error = {
        "model": OSError(28, "No space left on device"),
        "optimizer": saving.SafetensorError("Error while serializing: I/O error (os error 28)"),
        "tokenizer": Exception("No space left on device (os error 28)"),
        "arguments": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
        "marker": OSError(28, "No space left on device"),
    }[where]
    place = {
        "model": "transformers.PreTrainedModel.save_pretrained",
        "optimizer": "gradsift.training.saving.save_state",
        "tokenizer": "transformers.PreTrainedTokenizerBase.save_pretrained",
        "arguments": "torch.save",
        "marker": "gradsift.training.checkpoint.write_json",
    }[where]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(place, fail)


@pytest.mark.parametrize("where", ["model", "optimizer", "tokenizer", "arguments", "marker"])
def test_a_failed_write_is_one_error_and_the_same_command_resumes(
    stopped, uninterrupted, monkeypatch, where
):
    with monkeypatch.context() as patched:
        full_disk(patched, where)
        message = r"checkpoint-8: cannot be written: .*GB free.*the same command goes on"
        with pytest.raises(GradsiftError, match=message):
            capture(stopped)
    assert not (stopped / "checkpoints" / "checkpoint-8" / MARKER).exists()
    _, result = capture(stopped)
    assert result.resumed_at_step == 6
    assert_same_store(stopped, uninterrupted)


@pytest.mark.parametrize("limit", [6_000, 50_000, 200_000])
def test_real_writers_at_a_limit_of_their_files(tmp_path, uninterrupted, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(GradsiftError, match=r"checkpoint-2: cannot be written: "):
            capture(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    capture(tmp_path)
    assert_same_store(tmp_path, uninterrupted)


def test_mistakes_of_our_own_stay_what_they_are(tmp_path):
    for error in (KeyError("a"), torch.OutOfMemoryError("CUDA"), GradsiftError("mine")):
        with pytest.raises(type(error), match=str(error)), writing(tmp_path / "a" / "b"):
            raise error


def test_older_checkpoints_are_removed_and_nothing_else(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-9", "checkpoint-x", "other"):
        (tmp_path / name).mkdir()
    keep_newest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-x", "other"}
    assert resume_from(tmp_path / "absent", made_with="x") is None


def test_what_is_overridden_in_transformers_is_still_there():
    expected = {
        "_save_checkpoint": ["self", "model", "trial"],
        "_save": ["self", "output_dir", "state_dict"],
        "save_model": ["self", "output_dir", "_internal_call"],
        "_save_optimizer_and_scheduler": ["self", "output_dir"],
        "_save_rng_state": ["self", "output_dir"],
        "_save_scaler": ["self", "output_dir"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_rng_state": ["self", "checkpoint"],
        "_load_scaler": ["self", "checkpoint"],
    }
    overridden = [name for name in vars(SavingTrainer) if hasattr(Trainer, name)]
    # It takes whatever it is given.
    overridden.remove("create_model_card")
    assert "self.create_model_card(" in inspect.getsource(SFTTrainer._save_checkpoint)
    assert {name for name in overridden if not name.startswith("__")} == set(expected)
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
        assert list(inspect.signature(getattr(SavingTrainer, name)).parameters) == parameters
    # Whatever else of it reads or writes pickles is not used here: hubs, sweeps, TPUs.
    others = {"_load_best_model", "_save_tpu", "_push_from_checkpoint", "_tune_save_checkpoint"}
    methods = {name: method for name, method in vars(Trainer).items() if inspect.isfunction(method)}
    sources = {name: inspect.getsource(method) for name, method in methods.items()}
    pickling = {name for name, code in sources.items() if "torch.load(" in code}
    assert pickling <= {"_load_from_checkpoint", "_load_best_model", *OWN}
    pickling = {name for name, code in sources.items() if "torch.save(" in code}
    assert pickling - set(expected) <= others


def test_a_training_that_ended_amid_a_pass_makes_no_further_step(tmp_path):
    # As all rows for a subset's steps: transformers, resumed at the last step, makes one more.
    sft = {"per_device_train_batch_size": 2, "learning_rate": 1e-2}
    settings = TrainerSettings(sft, None, 0, max_steps=3)
    weights = []
    for _ in range(2):
        tuned = fine_tune(
            tiny_llama(), tiny_tokenizer(), make_instances(), settings, tmp_path, label="x"
        )
        assert tuned.training.n_steps == 3
        weights.append({name: value.clone() for name, value in tuned.model.state_dict().items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert tuned.training.resumed_at_step == 3
