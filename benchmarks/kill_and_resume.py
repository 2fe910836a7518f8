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
    command += ["--save-steps", str(arguments.save_steps)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet)


def differences(folder, other):
    ours, theirs = read_store(folder), read_store(other)
    found = []
    for name in ("instance_ids", "step", "loss", "n_response_tokens", "content_ND", "finite"):
        if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
            found.append(name)
    for layer, by_name in ours.statistics.items():
        found += [n for n in by_name if not np.array_equal(by_name[n], theirs.statistics[layer][n])]
        if not np.array_equal(ours.sketches[layer], theirs.sketches[layer]):
            found.append(f"{layer} sketch")
    return found


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
        found = differences(out, root / "whole")
        wrong += bool(found)
        print(f"killed after {delay:.1f} s, {written} parts written: {found or 'same store'}")
    print(f"{arguments.kills - wrong} of {arguments.kills} the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
