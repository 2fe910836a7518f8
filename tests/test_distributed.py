"""Two processes (gloo): the same records as one; each row once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradsift as gs
from distributed_worker import WRAPPERS, train, wrap
from gradsift.store.reader import read_store
from interrupting import assert_equal_records
from resuming_worker import SETTINGS as RESUMED
from tiny import save_tiny, tiny_llama

WORKER = Path(__file__).parent / "distributed_worker.py"
N = 21  # Not a multiple of the rows of a step: the last one is filled up.


def launch(*command, processes=2):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), *sys.path]),
    }
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*run, f"--nproc-per-node={processes}", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def assert_same_records(ours, theirs, rtol=1e-5):
    assert ours.instance_ids == theirs.instance_ids
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=rtol)
    np.testing.assert_allclose(ours.el2n, theirs.el2n, rtol=rtol)
    np.testing.assert_allclose(ours.content_ND, theirs.content_ND, rtol=1e-4, atol=1e-5)
    assert ours.layers == theirs.layers
    for layer, by_name in ours.statistics.items():
        for name, values in by_name.items():
            if name != "mean":
                expected = theirs.statistics[layer][name]
                np.testing.assert_allclose(values, expected, rtol=rtol, err_msg=f"{layer} {name}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    lines = [
        json.dumps({"prompt": f"question {i * i}", "completion": f"answer {i} " * (i % 4 + 1)})
        for i in range(N)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("record_at", ["during", "after"])
def test_capture_by_two_processes(tmp_path, inputs, record_at):
    """At learning rate 0 the rows meet the same weights in whatever order."""
    data, model = str(inputs / "data.jsonl"), str(inputs / "model")
    command = ["-m", "gradsift", "capture", data, "--model", model]
    command += [
        "--set",
        f"record_at={record_at}",
        "--sft",
        "learning_rate=0.0",
        "--sft",
        "per_device_train_batch_size=2",
    ]
    result = launch(*command, "--out", str(tmp_path / "two"))
    assert result.stdout.count("21 instances recorded") == 1
    sft = {"learning_rate": 0.0, "per_device_train_batch_size": 2}
    one = gs.capture(model, gs.load_pool(data), out=tmp_path / "one", record_at=record_at, sft=sft)
    two = read_store(tmp_path / "two")
    assert len(two.instance_ids) == N
    assert_same_records(two, one)
    n_records = sum(part.n_records for part in two.manifest.parts)
    assert n_records >= len(two.layers) * N
    assert any(part.file.endswith("-1.parquet") for part in two.manifest.parts)


def test_resumed_by_two_processes_the_store_is_bitwise_the_same(tmp_path, inputs):
    result = launch(str(WORKER.with_name("resuming_worker.py")), str(inputs), str(tmp_path))
    for name in RESUMED:
        whole, resumed = (read_store(tmp_path / how / name) for how in ("whole", "stopped"))
        assert len(resumed.manifest.parts) == len(whole.manifest.parts) >= 5
        # But for records that fill up the last batch, which are there twice.
        assert_equal_records(resumed, whole)
    assert not list(tmp_path.glob("*/*/checkpoints"))
    assert len(re.findall(r"rng_state_1.safetensors was changed.* left out", result.stderr)) == 1


def test_loops_of_ones_own_by_two_processes(tmp_path):
    launch(str(WORKER), str(tmp_path))
    for wrapper in WRAPPERS:
        model = wrap(tiny_llama(tied="untied" not in wrapper), "plain " + wrapper)
        with gs.record(model, out=tmp_path / "one" / wrapper, ids="row") as one:
            train(model, 0, 1)
        two = read_store(tmp_path / wrapper)
        assert_same_records(two, one.store)
        n_checked = two.manifest.about["self_check"]["n_rows"]
        assert n_checked == (2 if "ddp" in wrapper else 0)
