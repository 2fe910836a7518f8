"""A process that has imported everything once, and forks a child for each command of a trial.

Reads lists of jobs as JSON lines on stdin, runs the jobs of a list at the same time, answers with
a line of outcomes. A job: `argv` of gradsift, or `code` (Python); and perhaps `fault` (see
faults.c), `uid`, `file_limit` (bytes), `links` (paths, with {pid}, made symlinks to a target),
`kill_after` (seconds), `kill_when` (a folder, a pattern, how many files of it there must be),
`delay`, `timeout`, `first` (a command line that runs before everything else).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

MARK = b"\0 what counts begins here \0"
FAULTS = ("prefix", "report", "n", "errno", "after", "kills")


def import_everything():
    import gradsift

    for module in pkgutil.walk_packages(gradsift.__path__, "gradsift."):
        # Triton may be missing.
        with contextlib.suppress(ImportError):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("trl.trainer.sft_trainer", "lm_eval", "altair", "peft", "sacrebleu", "nltk"):
        importlib.import_module(name)
    importlib.import_module("transformers.models.llama.modeling_llama")
    # So that a tiny run has its graph on disk, too.
    importlib.import_module("gradsift.selection.neighbours").COMPLETE_ROWS = 4


def in_child(job, start, out, err):
    """Run one job; never returns."""
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        # Anew: those of the parent know of another file whether it can seek.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if "first" in job:
            # So that what is loaded late is loaded before a user who may not read it asks for it.
            run_command(job["first"])
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(1, MARK)
            os.write(2, MARK)
        for path, target in job.get("links", {}).items():
            Path(path.format(pid=os.getpid())).symlink_to(target)
        if "file_limit" in job:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"],) * 2)
        if "uid" in job:
            os.setgroups([])
            os.setgid(job["uid"])
            os.setuid(job["uid"])
        os.read(start, 1)
        time.sleep(job.get("delay", 0))
        if "fault" in job:
            values = (job["fault"][name] for name in FAULTS)
            values = [value.encode() if isinstance(value, str) else value for value in values]
            if ctypes.CDLL(None).faults_arm(*values):
                raise OSError("faults_arm failed")
        if "code" in job:
            exec(job["code"], {})
            code = 0
        else:
            code = run_command(job["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(argv):
    from gradsift.cli.main import main

    sys.argv = ["gradsift", *argv]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def seen(folder=None, pattern="", n=0):
    return folder is not None and sum(1 for _ in Path(folder).glob(pattern)) >= n


def run_jobs(jobs):
    """Fork a child for each job and wait for all; they begin together."""
    begin, children, outcomes = time.monotonic(), {}, [None] * len(jobs)
    ready, go = os.pipe()
    pipes, texts = {}, {}
    for at, job in enumerate(jobs):
        # Not files: a job may not be able to write any.
        (out_end, out), (err_end, err) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go)
            in_child(job, ready, out, err)
        children[pid] = at
        for end, name in ((out_end, "stdout"), (err_end, "stderr")):
            os.set_blocking(end, False)
            pipes[end] = (at, name)
            texts[at, name] = b""
        os.close(out)
        os.close(err)
    # Whoever waits reads the end of the pipe now.
    os.close(go)
    os.close(ready)
    while children or pipes:
        for end in select.select(list(pipes), [], [], 0.002)[0]:
            if got := os.read(end, 1 << 16):
                texts[pipes[end]] += got
            else:
                del pipes[end]
                os.close(end)
        pid, status = os.waitpid(-1, os.WNOHANG) if children else (0, 0)
        now = time.monotonic() - begin
        if pid:
            code = os.waitstatus_to_exitcode(status)
            outcomes[children.pop(pid)] = {"code": code, "seconds": round(now, 3)}
        for pid, at in children.items():
            limit = jobs[at].get("kill_after", jobs[at].get("timeout", 120))
            if now > limit or seen(*jobs[at].get("kill_when", ())):
                os.kill(pid, signal.SIGKILL)
    for (at, name), text in texts.items():
        outcomes[at][name] = text.rpartition(MARK)[2].decode(errors="replace")
    return outcomes


def serve():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_everything()
    print("ready", file=answers)
    for line in sys.stdin:
        print(json.dumps(run_jobs(json.loads(line))), file=answers)


if __name__ == "__main__":
    serve()
