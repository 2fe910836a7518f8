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
            process = subprocess.Popen(
                command(killed, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # Starting takes a while; then somewhere within the next arm or two.
            n_wanted = n_done(killed) + rng.randint(0, 1)
            while process.poll() is None and (n_done(killed) < n_wanted or not at_work(killed)):
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 4))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append((n_done(killed), at_work(killed)))
        subprocess.run(command(killed, options), check=True, capture_output=True)
        resumed, expected = (what_it_says(copy) for copy in (killed, whole))
    for done, inside in moments:
        print(f"killed: {done} models done, {inside} checkpoints of one in training")
    same = {key: resumed[key] == expected[key] for key in expected}
    print(f"{len(moments)} kills, {seconds:.0f} s uninterrupted; the same: {same}")
    sys.exit(not all(same.values()))


def n_done(run):
    return len(list(run.glob("arms/*/scores.json")))


def at_work(run):
    return len(list(run.glob("arms/*/checkpoints/*/whole.json")))


def command(run, options):
    return [sys.executable, "-m", "gradsift", "compare", str(run), *options]


def what_it_says(run):
    summary = json.loads((run / "comparison.json").read_text())
    return {key: value for key, value in summary.items() if key not in ("cost", "run")}


if __name__ == "__main__":
    main()
