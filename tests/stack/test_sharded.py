"""Two processes (gloo), sharded weights or optimizers: the records of one, each row once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradsift as gs
from gradsift.store.reader import read_store
from sharded_worker import (
    DEEPSPEED,
    FSDP2,
    MODELS,
    TRAINERS,
    capture,
    model_of,
    train,
    trainer_of,
)
from tiny import save_tiny

WORKER = Path(__file__).parents[1] / "sharded_worker.py"


def launch(*command, timeout=240, expected=0):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), *sys.path]),
    }
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*run, *(str(part) for part in command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert (result.returncode == 0) == (expected == 0), result.stderr[-5000:]
    return result


def assert_same_records(two, one, rtol=1e-5):
    assert two.instance_ids == one.instance_ids
    np.testing.assert_array_equal(two.step, one.step)
    np.testing.assert_array_equal(two.n_response_tokens, one.n_response_tokens)
    np.testing.assert_allclose(two.loss, one.loss, rtol=rtol)
    np.testing.assert_allclose(two.el2n, one.el2n, rtol=rtol)
    np.testing.assert_allclose(two.content_ND, one.content_ND, rtol=1e-4, atol=1e-5)
    assert two.layers == one.layers
    for layer, by_name in two.statistics.items():
        for name, values in by_name.items():
            expected = one.statistics[layer][name]
            # The mean is a sum in which nearly everything cancels out.
            atol = rtol * one.statistics[layer]["mean_abs"] if name == "mean" else 0
            error = np.abs(values - expected) - rtol * np.abs(expected) - atol
            assert (error <= 0).all(), f"{layer} {name}: {error.max()}"
        norms = np.linalg.norm(one.sketches[layer], axis=1)
        apart = np.linalg.norm(two.sketches[layer] - one.sketches[layer], axis=1)
        assert (apart <= rtol * norms).all(), layer


def assert_loops_agree(folder, tmp_path, cases):
    for case in cases:
        with gs.record(model_of(case), out=tmp_path / "one" / case, ids="row") as one:
            train(one._outer, 0, 1)
        two = read_store(folder / case)
        assert sorted(set(two.step)) == [0, 1, 2, 3, 4]
        assert_same_records(two, one.store)
        assert two.manifest.parts[-1].file.endswith("-1.parquet")


def test_fsdp2_in_a_loop_of_ones_own(tmp_path):
    launch(WORKER, tmp_path, "fsdp2")
    assert_loops_agree(tmp_path, tmp_path, FSDP2)
    paths = {
        case: read_store(tmp_path / case).manifest.about["self_check"]["method"] for case in FSDP2
    }
    assert paths.pop("fsdp2 scaled") == paths.pop("fsdp2 untied head hidden-intercepted")
    assert set(paths.values()) == {"hidden"}


def test_deepspeed_in_a_loop_of_ones_own(tmp_path):
    pytest.importorskip("deepspeed")
    result = launch(WORKER, tmp_path, "deepspeed")
    assert "the weights changed before" not in result.stderr
    assert_loops_agree(tmp_path, tmp_path, DEEPSPEED)
    for case in DEEPSPEED:
        n_checked = read_store(tmp_path / case).manifest.about["self_check"]["n_rows"]
        assert n_checked == (0 if "zero3" in case else 2)


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp2"])
def test_trainers(tmp_path, kind):
    if kind != "fsdp2":
        pytest.importorskip("deepspeed")
    launch(WORKER, tmp_path, "trainers", kind)
    for name in TRAINERS:
        trainer = trainer_of(name, tmp_path / "work", per_device_train_batch_size=4)
        with gs.record(trainer, out=tmp_path / "one" / name) as one:
            trainer.train()
        assert sorted(set(one.store.step)) == [0, 1, 2, 3, 4]
        for given in ("trainer", "model", "callback"):
            two = read_store(tmp_path / f"{name} {given}")
            assert_same_records(two, one.store)
            assert two.manifest.about["self_check"]["n_rows"] == (2 if kind == "zero2" else 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for model in MODELS:
        save_tiny(folder / model, tied=model == "tied")
    lines = [
        json.dumps({"prompt": f"question {i * i}", "completion": f"answer {i} " * (i % 4 + 1)})
        for i in range(21)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["zero2", "zero3", "fsdp2"])
def test_capture(tmp_path, inputs, kind):
    """Weights change on the way: equal records also mean that training is the same."""
    if kind != "fsdp2":
        pytest.importorskip("deepspeed")
    launch(WORKER, tmp_path, "captures", kind, inputs)
    for model in MODELS:
        for when in ("during", "after"):
            options = {"record_at": when, "model": model, "rows_a_process": 4}
            one = capture(tmp_path / "one", inputs, **options)
            two = read_store(tmp_path / f"{model} {when}")
            assert sorted(set(two.step)) == ([0, 1, 2, 3, 4, 5] if when == "during" else [5])
            assert_same_records(two, one)
            assert len(two.layers) == (1 if (model, when) == ("untied", "after") else 2)
            assert two.manifest.about["self_check"]["n_rows"] == (2 if kind == "zero2" else 0)
            if (model, when) == ("untied", "during"):
                assert_same_records(read_store(tmp_path / "resumed" / "untied during"), one)
