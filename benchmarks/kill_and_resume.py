"""Kill a capture at random moments, resume it, and compare its store with an undisturbed one.

Usage: python benchmarks/kill_and_resume.py DATA --model MODEL [--kills 10]
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradsift.store.manifest import load_manifest
from gradsift.store.reader import read_store


def start(arguments, out):
    command = [sys.executable, "-m", "gradsift", "capture", arguments.data, "--out", str(out)]
    command += ["--model", arguments.model, "--max-length", str(arguments.max_length)]
    command += ["--set", f"save_steps={arguments.save_steps}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet)


def differences(folder, other):
    resumed, whole = read_store(folder), read_store(other)
    different = []
    columns = ("instance_ids", "step", "loss", "el2n", "n_response_tokens", "content_ND", "finite")
    for name in columns:
        if not np.array_equal(getattr(resumed, name), getattr(whole, name)):
            different.append(name)
    for layer, by_name in resumed.statistics.items():
        for name, values in by_name.items():
            if not np.array_equal(values, whole.statistics[layer][name]):
                different.append(f"{layer} {name}")
        if not np.array_equal(resumed.sketches[layer], whole.sketches[layer]):
            different.append(f"{layer} sketch")
    return different


def parts(out):
    manifest = load_manifest(out) if out.exists() else None
    return 0 if manifest is None else len(manifest.parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--save-steps", type=int, default=5)
    arguments = parser.parse_args()
    rng = random.Random(0)
    root = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    assert start(arguments, root / "whole").wait() == 0
    seconds = time.perf_counter() - started
    print(f"undisturbed: {seconds:.1f} s")
    wrong = 0
    for kill in range(arguments.kills):
        out = root / f"killed-{kill}"
        process = start(arguments, out)
        delay = rng.uniform(0.2, 1.0) * seconds
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = parts(out)
        assert start(arguments, out).wait() == 0
        different = differences(out, root / "whole")
        wrong += bool(different)
        print(f"killed after {delay:.1f} s, {written} parts written: {different or 'same store'}")
    print(f"{arguments.kills - wrong} of {arguments.kills} the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
