"""The preliminary epoch: interrupted and resumed, with rows that are not finite, estimated."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gradsift.config import CaptureConfig
from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import PARTS_FOLDER, Manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.training.checkpoint import MARKER
from gradsift.training.cost import estimate_cost
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.settings.trainer import TrainerSettings
from interrupting import N, assert_same_store, capture, make_instances
from tiny import tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("stop_after", [2, 4, 6, 14, 22])
def test_a_stopped_capture_resumes_to_the_same_store(tmp_path, uninterrupted, stop_after):
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path, stop_after=stop_after)
    _, result = capture(tmp_path)
    assert result.resumed_at_step == (stop_after - 1) // 4 * 2
    assert_same_store(tmp_path, uninterrupted)
    assert not (tmp_path / "checkpoints").exists()


def test_a_resumed_capture_trains_the_same_weights(tmp_path, uninterrupted):
    whole, _ = capture(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "stopped", stop_after=12)
    resumed, result = capture(tmp_path / "stopped")
    for name, weight in whole.trainer.model.state_dict().items():
        assert torch.equal(weight, resumed.trainer.model.state_dict()[name]), name
    assert [step for step, _ in result.loss_curve] == list(range(1, N // 2 + 1))
    about = read_store(tmp_path / "stopped").manifest.about
    assert [step for step, _ in about["loss_curve"]] == list(range(1, N // 2 + 1))


def test_a_checkpoint_that_is_not_whole_is_not_resumed_from(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path, stop_after=14)
    older, latest = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (4, 6))
    (latest / MARKER).unlink()
    (latest / "model.safetensors").write_bytes(b"half")
    _, result = capture(tmp_path)
    assert result.resumed_at_step == 4
    assert_same_store(tmp_path, uninterrupted)
    assert not older.exists()


@pytest.mark.parametrize("delay_seconds", [0.4, 1.1])
def test_kill_9_at_any_moment_loses_nothing_that_was_written(
    tmp_path, uninterrupted, delay_seconds
):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; from interrupting import capture\n"
        "print('ready', flush=True); capture(Path(sys.argv[1]), wait_seconds=0.05)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay_seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    capture(tmp_path)
    assert_same_store(tmp_path, uninterrupted)


def test_another_order_of_rows_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path, stop_after=6)
    instances = make_instances()
    epoch = PreliminaryEpoch(
        tiny_llama(),
        tiny_tokenizer(),
        instances[1:] + instances[:1],
        TrainerSettings({"per_device_train_batch_size": 2, "learning_rate": 1e-2}, None, 0),
        SketchSpec(16, 0),
        tmp_path / "checkpoints",
    )
    writer = StoreWriter(tmp_path, Manifest({}, {}, N), content_width=32, sketch_size=16)
    epoch.check()
    with writer, pytest.raises(ValueError, match="came up twice in one epoch"):
        epoch.run(writer, save_steps=2)


@pytest.mark.parametrize("batching", ["packed", "by_length", "random"])
def test_a_row_that_is_not_finite_is_marked_and_the_run_goes_on(tmp_path, batching):
    model = tiny_llama(tied=False)
    poisoned = 5
    bad_token = make_instances()[poisoned].input_ids[0]
    others = [i for i in range(N) if bad_token not in make_instances()[i].input_ids]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad_token] = float("nan")
    _, result = capture(tmp_path, model=model, batching=batching)
    store = read_store(tmp_path)
    finite = dict(zip(store.instance_ids, store.finite, strict=True))
    assert not finite[f"r{poisoned}"]
    n_spoiled = sum(not finite[f"r{i}"] for i in others)
    # What is masked counts for nothing, but nothing times not a number is not a number: a row that
    # was packed with it is lost, too.
    assert n_spoiled <= (N - len(others) if batching == "packed" else 0)
    assert result.n_non_finite == N - len(others) + n_spoiled
    assert result.n_steps_skipped >= 1


def test_skipped_steps_are_counted_over_all_sittings(tmp_path):
    def poisoned():
        model = tiny_llama(tied=False)
        with torch.no_grad():
            model.model.embed_tokens.weight[make_instances()[5].input_ids[0]] = float("nan")
        return model

    _, whole = capture(tmp_path / "whole", model=poisoned())
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "stopped", model=poisoned(), stop_after=22)
    _, rest = capture(tmp_path / "stopped", model=poisoned())
    assert rest.n_steps_skipped < whole.n_steps_skipped
    counted = read_store(tmp_path / "stopped").manifest.about["n_steps_skipped"]
    assert counted == whole.n_steps_skipped


def test_the_estimate_counts_and_leaves_the_model_alone(tmp_path):
    epoch = PreliminaryEpoch(
        tiny_llama(),
        tiny_tokenizer(),
        make_instances(),
        TrainerSettings({}, None, 0),
        SketchSpec(16, 0),
        tmp_path,
    )
    before = {name: weight.clone() for name, weight in epoch.trainer.model.state_dict().items()}
    epoch.check()
    counts = [len(instance.input_ids) for instance in make_instances()]
    estimate = estimate_cost(epoch, make_instances(), CaptureConfig())
    assert estimate.n_instances == N
    assert estimate.n_tokens == sum(counts)
    assert 0 < estimate.capture_seconds < 60
    assert "full SFT for 3 epochs about" in estimate.sentence()
    for name, weight in epoch.trainer.model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_estimate_counts_the_optimizers_state(tmp_path, monkeypatch, lora):
    monkeypatch.setattr("gradsift.training.cost._peak_bytes", lambda device: 1000)
    epoch = PreliminaryEpoch(
        tiny_llama(),
        tiny_tokenizer(),
        make_instances(),
        TrainerSettings({}, lora, 0),
        SketchSpec(16, 0),
        tmp_path,
    )
    estimate = estimate_cost(epoch, make_instances(), CaptureConfig())
    trained = [p for p in epoch.trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [optimizer.state[p][name] for p in trained for name in ("exp_avg", "exp_avg_sq")]
    assert estimate.least_bytes == 1000 + sum(moment.nbytes for moment in state)
    epoch.trainer.model.zero_grad()
    untrained = CaptureConfig(warmup_fraction=0, signal="full")
    estimate = estimate_cost(epoch, make_instances(), untrained)
    assert estimate.least_bytes == 1000


def test_nothing_is_left_in_the_work_folder(tmp_path):
    capture(tmp_path)
    assert {path.name for path in Path(tmp_path).iterdir()} == {
        "manifest.json",
        PARTS_FOLDER,
        ".lock",
    }
