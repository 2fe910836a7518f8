"""Ctrl-C in a real terminal: what is said, how soon it ends, and that nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from gradsift.cli import interrupts
from gradsift.store.manifest import load_manifest
from terminal import gradsift, heed_signals, in_terminal
from tiny import save_tiny

# 0.1 s, as measured; a machine that runs other tests beside it may take longer.
SECONDS = 5
N = 200
WORDS = ["red", "green", "blue", "cat", "dog", "tree", "stone", "river"]
LISTENING = "from gradsift.cli import interrupts; interrupts.listen()\n"


def write_rows(path, n):
    rows = []
    for i in range(n):
        answer = " ".join(WORDS[(i * j) % 8] for j in range(1, 5 + i % 9))
        rows.append({"id": f"r{i}", "prompt": f"what is {i}?", "response": answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    save_tiny(folder / "model")
    write_rows(folder / "data.jsonl", N)
    write_rows(folder / "test.jsonl", 40)
    return folder


def capture(world, out, *more):
    return ["capture", world / "data.jsonl", "--model", world / "model", "--out", out,
            "--sft", "per_device_train_batch_size=2", *more]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(world):
    code, _, shown = gradsift(*capture(world, world / "whole"))
    assert code == 0, shown
    return world / "whole"


def records(run):
    manifest = load_manifest(run)
    assert manifest.complete
    tables = [pq.read_table(run / "gradients" / part.file) for part in manifest.parts]
    return manifest, sorted(
        (row for table in tables for row in table.to_pylist()),
        key=lambda row: (row["instance_id"], row["layer"]),
    )


def test_it_listens_during_imports(world, tmp_path):
    # The rows are read and told before anything heavy is imported.
    code, seconds, shown = gradsift(*capture(world, tmp_path / "run"), at="rows, format")
    assert code == 130, shown
    assert seconds < SECONDS
    assert shown.endswith(f"^C\ngradsift: {interrupts.NOTHING_LOST}\n")
    assert not (tmp_path / "run").exists()


def test_a_capture_says_how_far_it_is_and_resumes_to_the_same_bytes(world, uninterrupted, tmp_path):
    command = capture(world, tmp_path / "run")
    code, seconds, shown = gradsift(*command, at=rf"[5-9]\d/{N} rows")
    assert code == 130, shown
    assert seconds < SECONDS
    last = shown.splitlines()[-1]
    said = "gradsift: stopped after {} of {} rows; the same command resumes ({} of them are kept)"
    # The cursor is there again.
    assert last.startswith(interrupts.SHOW_CURSOR)
    n_rows = int(last.split()[3])
    kept = sum(part.n_records for part in load_manifest(tmp_path / "run").parts) // 2
    assert last == interrupts.SHOW_CURSOR + said.format(n_rows, N, kept)
    assert 50 <= n_rows < N
    assert 0 < kept <= n_rows
    code, _, shown = gradsift(*command)
    assert code == 0, shown
    assert f"resumes: {kept} of {N} rows are recorded\n" in shown
    # From the first moment; and nothing is said of weights that are tied.
    assert f"{kept}/{N} rows" in shown
    assert "missing keys" not in shown
    (manifest, resumed), (expected, whole) = records(tmp_path / "run"), records(uninterrupted)
    assert resumed == whole
    assert [part.sha256 for part in manifest.parts] == [part.sha256 for part in expected.parts]


def test_scoring_is_told_as_that_and_resumes(world, tmp_path):
    command = capture(world, tmp_path / "run", "--set", "warmup_fraction=0")
    code, seconds, shown = gradsift(*command, at=rf"[3-9]\d/{N} rows scored")
    assert code == 130, shown
    assert seconds < SECONDS
    assert f" of {N} rows scored; the same command resumes" in shown.splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "-m", "gradsift", *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # In lines, too.
    assert f" of {N} rows are recorded\n" in done.stderr
    assert f"{N}/{N} rows scored, " in done.stderr
    _, rows = records(tmp_path / "run")
    assert len({row["instance_id"] for row in rows}) == N


def test_a_comparison_resumes_in_training_and_in_answering(world, uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    command = ["compare", run, "--test", world / "test.jsonl", "--arms", "random,grads"]
    command += ["--budgets", "50%", "--seeds", "1", "--set", "max_new_tokens=8"]
    for at in (r"[3-9]\d/300 rows trained on", "0/40 rows answered"):
        code, seconds, shown = gradsift(*command, at=at)
        assert code == 130, shown
        assert seconds < SECONDS
        assert re.search(rf"stopped after \d+ of {at.split('/')[1]}; the same", shown)
        assert not (run / "comparison.json").exists()
    code, _, shown = gradsift(*command)
    assert code == 0, shown
    assert "resumes: 300 of 300 rows are trained on" in shown
    assert set(json.loads((run / "comparison.json").read_text())["arms"]) == {
        "random 50%",
        "grads 50%",
    }


def test_a_select_that_is_stopped_leaves_nothing_and_is_repeated(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    ready = "import faiss; print('now', flush=True); from gradsift.__main__ import main; main()"
    arguments = ["select", str(run), "--budget", "50%"]
    started = ["-c", f"import sys; sys.argv[1:] = {arguments}; {LISTENING.rstrip()}; {ready}"]
    code, seconds, shown = in_terminal(started, at="now")
    assert code == 130, shown
    assert seconds < SECONDS
    assert shown.endswith(f"gradsift: {interrupts.NOTHING_LOST}\n")
    code, _, shown = gradsift(*arguments)
    assert code == 0, shown


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize(
    "busy",
    [
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",  # In C, for minutes.
        "import contextlib, io, time\n"
        "with contextlib.redirect_stderr(io.StringIO()): time.sleep(60)",  # As lm-eval runs here.
        "while True:\n try:\n  import time; time.sleep(60)\n except BaseException: pass",
    ],
    ids=["in C", "stderr elsewhere", "swallowed"],
)
def test_whatever_it_is_busy_with(busy, number, code):
    ended, seconds, shown = in_terminal(
        ["-c", f"{LISTENING}print('now', flush=True)\n{busy}"], at="now", number=number
    )
    assert ended == code
    assert seconds < SECONDS
    assert shown.endswith(f"gradsift: {interrupts.NOTHING_LOST}\n")


def start(code, preexec_fn=heed_signals, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING + code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=preexec_fn, **options,
    )  # fmt: skip
    assert process.stdout.readline() == "now\n"
    return process


def test_at_the_end_it_does_not_say_that_something_is_missing():
    process = start(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "interrupts.ended()\nprint('now', flush=True)"
    )
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (130, f"gradsift: {interrupts.ENDING}\n")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks(rank):
    wait = "import time; print('now', flush=True); time.sleep(60)"
    process = start(wait, env={**os.environ, "RANK": rank})
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 143
    assert said == ("" if rank == "1" else f"gradsift: {interrupts.NOTHING_LOST}\n")


@pytest.mark.parametrize("name", interrupts.NAMES)
def test_what_is_ignored_stays_ignored(name):
    number = getattr(signal, name)
    process = start(
        "import time; print('now', flush=True); time.sleep(1); print('done')",
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (0, "done\n", "")


def test_nobody_who_reads_what_it_says_does_not_hold_it():
    process = start(
        "import os, time\nos.set_blocking(2, False)\ntry:\n"
        "  while True: os.write(2, b'x' * 4096)\nexcept BlockingIOError: os.set_blocking(2, True)\n"
        "print('now', flush=True); time.sleep(60)"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 143
    process.communicate()


def test_a_forked_worker_neither_speaks_nor_ends_the_command():
    process = start(
        "import os, time\nready, told = os.pipe()\nworker = os.fork()\n"
        "if not worker: os.write(told, b'x'); time.sleep(60)\n"
        "os.read(ready, 1); os.kill(worker, 2); print('now', flush=True)\n"
        "print(os.waitpid(worker, 0)[1]); time.sleep(0.5)"
    )
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (0, "2\n", "")


def test_python_callers_see_what_python_raises():
    check = (
        "import signal, gradsift, gradsift.cli.main\nlist(map(lambda n: getattr(gradsift, n), "
        "['load_pool', 'select']))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, preexec_fn=heed_signals
    )
    assert done.returncode == 0, done.stderr
