"""The scoring pass says of every instance what autograd says with the weights as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import Manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.scoring import record_with_frozen_weights
from gradsift.training.self_check import METHODS
from gradsift.training.settings.trainer import TrainerSettings
from oracle import assert_store_is_autograd
from tiny import random_instances, tiny_gpt2, tiny_llama, tiny_tokenizer

N = 20


def make_instances():
    return random_instances(N, seed=1, n_prompt=2)


def scored(
    folder,
    *,
    model=None,
    method="auto",
    backward=False,
    stop_after=None,
    trained=(),
    batching="auto",
    rows_a_batch=4,
):
    sft = {"per_device_train_batch_size": rows_a_batch, "learning_rate": 1e-2}
    epoch = PreliminaryEpoch(
        tiny_llama() if model is None else model,
        tiny_tokenizer(),
        list(trained) or make_instances(),
        TrainerSettings(sft, None, 0, batching=batching),
        SketchSpec(16, 0),
        folder / "checkpoints",
    )
    epoch.check(method=method, backward=backward)

    def progress(n_rows, *_):
        if stop_after is not None and n_rows >= stop_after:
            raise KeyboardInterrupt

    layers = LAYERS if backward else ("lm_head",)
    manifest = Manifest({}, {}, N, layers)
    with StoreWriter(folder, manifest, content_width=32, sketch_size=16) as writer:
        if trained:
            epoch.train(made_with="x", save_steps=None)
        record_with_frozen_weights(
            epoch.trainer,
            epoch.recorder,
            make_instances(),
            writer,
            backward=backward,
            progress=progress,
        )
    return epoch, read_store(folder)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_batch_of_one_autograd(tmp_path, method, backward):
    _, store = scored(tmp_path, method=method, backward=backward)
    assert store.layers == (LAYERS if backward else ("lm_head",))
    rows = {row.instance_id: row for row in make_instances()}
    assert_store_is_autograd(store, rows, tiny_llama(dtype=torch.float64))


def test_dropout_is_off_and_the_weights_stay(tmp_path):
    model = tiny_gpt2(dropout=0.5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    _, first = scored(tmp_path / "a", model=model)
    _, second = scored(tmp_path / "b", model=model)
    np.testing.assert_array_equal(first.loss, second.loss)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path):
    _, whole = scored(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "stopped", stop_after=12)
    _, resumed = scored(tmp_path / "stopped")
    assert parts_of(resumed) == parts_of(whole)


def parts_of(store):
    assert sum(part.n_records for part in store.manifest.parts) == N * len(store.layers)
    return [(part.file, part.sha256) for part in store.manifest.parts]


def stop_after_part(monkeypatch, n):
    """Die before part `n` is written."""
    append, n_written = StoreWriter.append, []

    def stopping(*arguments, **named):
        if len(n_written) == n:
            raise KeyboardInterrupt
        n_written.append(1)
        append(*arguments, **named)

    monkeypatch.setattr(StoreWriter, "append", stopping)


@pytest.fixture(scope="module", params=["packed", "by_length", "random"])
def batching(request):
    return request.param


@pytest.fixture(scope="module")
def whole_pass(tmp_path_factory, batching):
    folder = tmp_path_factory.mktemp("whole")
    return scored(folder, backward=True, batching=batching, rows_a_batch=2)[1]


@pytest.mark.parametrize("n", range(8))
def test_killed_after_any_part_and_resumed_the_store_is_bitwise_the_same(
    tmp_path, monkeypatch, whole_pass, batching, n
):
    options = {"backward": True, "batching": batching, "rows_a_batch": 2}
    with monkeypatch.context() as patched:
        stop_after_part(patched, n)
        with pytest.raises(KeyboardInterrupt):
            scored(tmp_path, **options)
    _, resumed = scored(tmp_path, **options)
    assert len(resumed.manifest.parts) == 7
    assert parts_of(resumed) == parts_of(whole_pass)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: flip(path), lambda path: cut(path)])
def test_a_part_that_was_damaged_is_recorded_again(tmp_path, monkeypatch, damage, log):
    _, whole = scored(tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after_part(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            scored(tmp_path / "stopped")
    path = tmp_path / "stopped" / "gradients" / "part-00001.parquet"
    damage(path)
    _, resumed = scored(tmp_path / "stopped")
    assert parts_of(resumed) == parts_of(whole)
    assert sum(str(path) in line for line in log) == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def test_what_was_recorded_in_other_parts_is_not_recorded_again(tmp_path, monkeypatch):
    """As an earlier gradsift, or more processes, recorded it."""
    _, whole = scored(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("gradsift.training.scoring.N_SCORING_PARTS", 3)
        stop_after_part(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            scored(tmp_path / "other", rows_a_batch=7)
    _, resumed = scored(tmp_path / "other")
    assert parts_of(resumed) != parts_of(whole)
    assert resumed.instance_ids == whole.instance_ids
    np.testing.assert_allclose(resumed.loss, whole.loss, rtol=1e-5)


def test_training_first_changes_the_scores_and_is_not_repeated(tmp_path):
    _, untrained = scored(tmp_path / "untrained")
    few = make_instances()[:8]
    epoch, store = scored(tmp_path / "trained", trained=few)
    assert epoch.trainer.state.global_step == 2
    assert set(store.step) == {2}
    assert np.abs(store.loss - untrained.loss).max() > 0.01
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "stopped", trained=few, stop_after=12)
    again, resumed = scored(tmp_path / "stopped", trained=few)
    assert again.trainer.state.global_step == 2
    assert parts_of(resumed) == parts_of(store)
