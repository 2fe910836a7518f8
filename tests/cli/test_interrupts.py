"""Ctrl-C in a real terminal: what is said, how soon it ends, and that nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from gradsift.cli import interrupts
from gradsift.store.manifest import load_manifest
from terminal import gradsift, heed_signals, in_terminal
from tiny import save_tiny

# 0.1 s, as measured; a machine that runs other tests beside it may take longer.
SECONDS = 5
N = 120
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


def kept_rows(run):
    return sum(part.n_records for part in load_manifest(run).parts) // 2


@pytest.fixture(scope="module")
def stopped(world):
    """Return how an interrupted capture ended, its rows kept, and how its repetition ended."""
    command = capture(world, world / "run")
    ended = gradsift(*command, at=rf"[3-5]\d/{N} rows")
    return ended, kept_rows(world / "run"), gradsift(*command)


@pytest.fixture(scope="module")
def captured(world, stopped):
    code, _, shown = stopped[2]
    assert code == 0, shown
    return world / "run"


def test_it_listens_during_imports(world, tmp_path):
    # The rows are read and told before anything heavy is imported.
    code, seconds, shown = gradsift(*capture(world, tmp_path / "run"), at="rows, format")
    assert code == 130, shown
    assert seconds < SECONDS
    assert shown.endswith(f"^C\ngradsift: {interrupts.STOPPED}\n")
    assert not (tmp_path / "run").exists()


def test_a_capture_says_how_far_it_is_and_resumes(stopped, captured):
    (code, seconds, shown), kept, (_, _, again) = stopped
    assert code == 130, shown
    assert seconds < SECONDS
    last = shown.splitlines()[-1]
    said = "gradsift: stopped after {} of {} rows; the same command resumes ({} of them are kept)"
    # The cursor is there again.
    assert last.startswith(interrupts.SHOW_CURSOR)
    n_rows = int(last.split()[3])
    assert last == interrupts.SHOW_CURSOR + said.format(n_rows, N, kept)
    assert 30 <= n_rows < N
    assert 0 < kept <= n_rows
    # Once.
    assert [line for line in again.splitlines() if "resum" in line] == [
        f"resumes: {kept} of {N} rows are recorded"
    ]
    # From the first moment; and nothing is said of weights that are tied.
    assert f"{kept}/{N} rows" in again
    assert "missing keys" not in again
    assert load_manifest(captured).complete
    assert kept_rows(captured) == N


def test_scoring_is_told_as_that(world, tmp_path):
    command = capture(world, tmp_path / "run", "--set", "warmup_fraction=0")
    code, seconds, shown = gradsift(*command, at=rf"[3-9]\d/{N} rows scored")
    assert code == 130, shown
    assert seconds < SECONDS
    assert f" of {N} rows scored" in shown.splitlines()[-1]
    assert kept_rows(tmp_path / "run") > 0


def test_a_comparison_in_training_and_in_answering(world, captured, tmp_path):
    run = shutil.copytree(captured, tmp_path / "run")
    command = ["compare", run, "--test", world / "test.jsonl", "--arms", "random"]
    command += ["--budgets", "50%", "--seeds", "1", "--set", "max_new_tokens=8"]
    all_rows = N // 2 * 3
    for at in (rf"1[0-6]\d/{all_rows} rows trained on", "0/40 rows answered"):
        code, seconds, shown = gradsift(*command, at=at)
        assert code == 130, shown
        assert seconds < SECONDS
        assert re.search(rf"stopped after \d+ of {at.split('/')[1]}; the same", shown)
        assert not (run / "comparison.json").exists()
    assert re.search(rf"resumes: \d+ of {all_rows} rows are trained on", shown)


def test_a_select_leaves_nothing(captured, tmp_path):
    run = shutil.copytree(captured, tmp_path / "run")
    ready = "import faiss; print('now', flush=True); from gradsift.__main__ import main; main()"
    arguments = ["select", str(run), "--budget", "50%"]
    started = ["-c", f"import sys; sys.argv[1:] = {arguments}; {LISTENING.rstrip()}; {ready}"]
    code, seconds, shown = in_terminal(started, at="now")
    assert code == 130, shown
    assert seconds < SECONDS
    assert shown.endswith(f"gradsift: {interrupts.STOPPED}\n")
    assert not list(run.glob("selections/*"))


def test_a_script_around_it_is_stopped(tmp_path):
    (tmp_path / "waits.py").write_text(f"{LISTENING}import time\nprint('now'); time.sleep(60)")
    loop = f"for b in 1 2; do '{sys.executable}' -u {tmp_path / 'waits.py'}; echo went on; done"
    code, seconds, shown = in_terminal(["-c", loop], program="bash", at=r"now\r\n")
    assert code == -signal.SIGINT
    assert seconds < SECONDS
    assert shown == f"now\n^C\ngradsift: {interrupts.STOPPED}\n"


def test_from_the_first_moment():
    # As soon as it starts a thread.
    code = (
        "import os, threading\nstart = threading.Thread.start\n"
        "def interrupted(self):\n"
        "  threading.Thread.start = start; os.kill(os.getpid(), 2); start(self)\n"
        f"threading.Thread.start = interrupted\n{LISTENING}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=heed_signals
    )
    assert (done.returncode, done.stderr) == (-2, f"gradsift: {interrupts.STOPPED}\n")


def test_a_command_that_was_halted_goes_on():
    process = start("import time; print('now', flush=True); time.sleep(1); print('done')")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("number", "busy"),
    [
        # In C, for minutes.
        (signal.SIGINT, "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"),
        # With stderr elsewhere, as lm-eval runs here.
        (signal.SIGTERM, "import contextlib, io, time\n"
         "with contextlib.redirect_stderr(io.StringIO()): time.sleep(60)"),
        # In what swallows it.
        (signal.SIGHUP,
         "while True:\n try:\n  import time; time.sleep(60)\n except BaseException: pass"),
    ],
)  # fmt: skip
def test_whatever_it_is_busy_with(number, busy):
    ended, seconds, shown = in_terminal(
        ["-c", f"{LISTENING}print('now', flush=True)\n{busy}"], at="now", number=number
    )
    assert ended == 128 + number
    assert seconds < SECONDS
    assert shown.endswith(f"gradsift: {interrupts.STOPPED}\n")


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
    assert (process.returncode, said) == (-2, f"gradsift: {interrupts.ENDING}\n")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks(rank):
    wait = "import time; print('now', flush=True); time.sleep(60)"
    process = start(wait, env={**os.environ, "RANK": rank})
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == -15
    assert said == ("" if rank == "1" else f"gradsift: {interrupts.STOPPED}\n")


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
    assert process.wait(SECONDS) == -15
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


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    # What is said would be written into it.
    check = f"{LISTENING}import sys; sys.exit(40 + open({str(tmp_path / 'x')!r}, 'w').fileno())"
    done = subprocess.run([sys.executable, "-c", check], preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode > 42
