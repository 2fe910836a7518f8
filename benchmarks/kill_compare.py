"""Kill a comparison at random moments, resume it, compare what it says with an uninterrupted one.

Usage:
    python benchmarks/kill_compare.py RUN --test FILE [--kills 5] [any option of gradsift compare]
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        for copy in (whole, killed):
            shutil.copytree(arguments.run, copy, ignore=shutil.ignore_patterns("arms"))
        started = time.perf_counter()
        subprocess.run(command(whole, options), check=True, capture_output=True)
        seconds = time.perf_counter() - started
        moments = []
        while len(moments) < arguments.kills:
            # Starting takes a while; what is killed before it does nothing.
            process = subprocess.Popen(
                command(killed, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait = rng.uniform(0.3, 0.8) * seconds / (1 + len(moments) / 2)
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done = len(list(killed.glob("arms/*/scores.json")))
                inside = len(list(killed.glob("arms/*/checkpoints/*/whole.json")))
                moments.append((round(wait, 1), done, inside))
                continue
            break
        subprocess.run(command(killed, options), check=True, capture_output=True)
        found, expected = (what_it_says(copy) for copy in (killed, whole))
    for wait, done, inside in moments:
        print(f"killed after {wait} s: {done} arms done, {inside} checkpoints of one in training")
    same = {key: found[key] == expected[key] for key in expected}
    print(f"{len(moments)} kills, {seconds:.0f} s uninterrupted; the same: {same}")
    sys.exit(not all(same.values()))


def command(run, options):
    return [sys.executable, "-m", "gradsift", "compare", str(run), *options]


def what_it_says(run):
    summary = json.loads((run / "comparison.json").read_text())
    return {key: value for key, value in summary.items() if key not in ("cost", "run")}


if __name__ == "__main__":
    main()
