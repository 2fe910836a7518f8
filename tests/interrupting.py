"""Captures in steps of two rows that are interrupted, for tests of resuming."""

import time

import numpy as np
import pytest

from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import PARTS_FOLDER, Manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.settings.trainer import TrainerSettings
from tiny import random_instances, tiny_llama, tiny_tokenizer

N = 24


def make_instances():
    return random_instances(N, seed=0, n_prompt=1)


def capture(folder, *, model=None, wait_seconds=0.0, stop_after=None, batching="auto"):
    """Capture in steps of two rows, a part every second step; optionally slow, or stopped."""
    sft = {"per_device_train_batch_size": 2, "learning_rate": 1e-2}
    epoch = PreliminaryEpoch(
        tiny_llama() if model is None else model,
        tiny_tokenizer(),
        make_instances(),
        TrainerSettings(sft, None, 0, batching=batching),
        SketchSpec(16, 0),
        folder / "checkpoints",
    )
    writer = StoreWriter(folder, Manifest({}, {}, N), content_width=32, sketch_size=16)

    def progress(n_rows, *_):
        time.sleep(wait_seconds)
        if stop_after is not None and n_rows >= stop_after:
            raise KeyboardInterrupt

    epoch.check()
    with writer:
        result = epoch.run(writer, save_steps=2, progress=progress)
    return epoch, result


def assert_same_store(folder, other):
    assert_equal_records(read_store(folder), read_store(other))
    parts = [sorted(p.name for p in (f / PARTS_FOLDER).iterdir()) for f in (folder, other)]
    assert parts[0] == parts[1]


def assert_equal_records(ours, theirs):
    assert ours.instance_ids == theirs.instance_ids
    for name in ("step", "loss", "n_response_tokens", "content_ND", "finite"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    for layer, by_name in ours.statistics.items():
        np.testing.assert_array_equal(ours.sketches[layer], theirs.sketches[layer])
        for name, values in by_name.items():
            np.testing.assert_array_equal(values, theirs.statistics[layer][name], name)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    capture(folder)
    return folder
