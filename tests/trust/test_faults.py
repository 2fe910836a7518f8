"""A full disk, a failing call, a kill at any moment: one line, nothing lost, and it goes on."""

import errno
import random
import shutil
import subprocess

import pytest

from trust.attacks import (
    EQUAL,
    EVERYTHING,
    LEFTOVER,
    LOST,
    NAMED,
    TRIALS,
    UNNAMED,
    ended_badly,
    files_in,
    must,
    observed,
    trials,
    worst,
)

# Command → the run folder that it starts from.
FROM = {
    "capture": None,
    "select": "captured",
    "losses": "captured",
    "compare": "captured",
    "train_random": "captured",
}


def went_on(folders, oracle, name, root):
    """Run a command again with nothing in its way: everything is as if nothing had happened."""
    again = folders.command(name, root)
    bad = ended_badly(again)
    if bad is not None:
        return bad
    if again.code:
        return LOST, f"again: {again.last_line}"
    found = observed(root, EVERYTHING) | files_in(root)
    expected = oracle.everything(FROM.get(name), name)
    different = expected.differences(found, times_count=False)
    if not different:
        return EQUAL, ""
    leftover = all(one.startswith("file ") and one in found for one in different)
    return (LEFTOVER if leftover else LOST), f"again: differs: {different[:4]}"


def told_of(outcome, root, *, full):
    """Judge how a failed write was told: one line with a file of the run, and the free space."""
    bad = ended_badly(outcome)
    if bad is not None:
        return bad
    if outcome.code == 0:
        return EQUAL, "finished all the same"
    line = outcome.last_line
    names = f"{root}/run" in line
    if names and (not full or "free" in line):
        return NAMED, line
    return UNNAMED, line


@pytest.fixture
def faulty(folders, trial, shim):
    """Run a command, the n-th of whose calls fails; n = 0 only counts the calls."""
    if shim is None:
        pytest.skip("no C compiler (cc) here that could make faults.c")

    def run(name, n, *, error=errno.ENOSPC, after=0, kills=-1):
        root = trial(FROM.get(name))
        report = root.parent / f"{root.name}.report"
        fault = {"prefix": f"{root}/run", "report": str(report), "n": n, "errno": error}
        outcome = folders.command(name, root, fault=fault | {"after": after, "kills": kills})
        content = report.read_bytes()
        report.unlink()
        what = content[8:].partition(b"\0")[0].decode().replace(str(root), "")
        return root, outcome, int.from_bytes(content[:8], "little"), what

    return run


def some_of(n_calls, n, seed):
    """Spread n places over the calls; all, if there are no more."""
    if n >= n_calls:
        return range(1, n_calls + 1)
    generator = random.Random(seed)
    return sorted({1 + int((k + generator.random()) * n_calls / n) for k in range(n)})


# In CI, the slow ones are tried less.
IN_CI = {"capture": 1, "select": 3, "compare": 1, "losses": 2, "train_random": 1}


@pytest.mark.parametrize("name", ["capture", "select", "compare", "losses", "train_random"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "ENOSPC from then on"])
def test_a_failing_call_is_told_and_nothing_is_lost(folders, oracle, table, faulty, name, error):
    in_ci = {("capture", "ENOSPC"), ("select", "ENOSPC from then on"), ("losses", "EIO")}
    if not TRIALS and (name, error) not in in_ci:
        pytest.skip("tried with GRADSIFT_TRIALS")
    _, outcome, n_calls, _ = faulty(name, 0)
    must(outcome)
    assert n_calls > 10
    verdicts = []
    for n in some_of(n_calls, trials(IN_CI[name]), name + error):
        code = errno.EIO if error == "EIO" else errno.ENOSPC
        root, outcome, _, what = faulty(name, n, error=code, after=int("from" in error))
        told = told_of(outcome, root, full="ENOSPC" in error)
        verdict = worst([told, went_on(folders, oracle, name, root)])
        verdicts.append((verdict[0], f"{name}, call {n} of {n_calls} ({what}): {verdict[1]}"))
        shutil.rmtree(root)
        root.mkdir()
    promise = f"{error} at the n-th call: {name}"
    assert not (broken := table.add(promise, "test_faults", verdicts)), broken


@pytest.mark.parametrize("name", [*FROM, "capture_scoring"])
def test_a_kill_at_any_call_changes_nothing(folders, oracle, table, faulty, name):
    if not TRIALS and name not in ("select", "losses", "capture_scoring"):
        pytest.skip("tried with GRADSIFT_TRIALS")
    _, outcome, n_calls, _ = faulty(name, 0)
    must(outcome)
    verdicts = []
    for n in some_of(n_calls, trials(1), name):
        # Of a write that is killed, half is made.
        root, outcome, _, what = faulty(name, n, kills=50)
        assert outcome.code in (-9, 0), outcome
        verdict = went_on(folders, oracle, name, root)
        verdicts.append((verdict[0], f"{name}, call {n} of {n_calls} ({what}): {verdict[1]}"))
        shutil.rmtree(root)
        root.mkdir()
    assert not (broken := table.add(f"kill -9 at a call: {name}", "test_faults", verdicts)), broken


@pytest.mark.parametrize("name", [*FROM, "capture_scoring"])
def test_a_kill_at_any_moment_changes_nothing(folders, oracle, table, trial, name):
    if not TRIALS and name != "select":
        pytest.skip("tried with GRADSIFT_TRIALS")
    outcome = folders.command(name, trial(FROM.get(name)))
    must(outcome)
    generator, verdicts = random.Random(name), []
    for _ in range(trials(1)):
        root, after = trial(FROM.get(name)), generator.uniform(0.05, 0.95) * outcome.seconds
        folders.command(name, root, kill_after=after)
        verdict = went_on(folders, oracle, name, root)
        verdicts.append((verdict[0], f"{name}, killed after {after:.2f} s: {verdict[1]}"))
    promise = f"kill -9 at a moment: {name}"
    assert not (broken := table.add(promise, "test_faults", verdicts)), broken


def mounted(folder, size):
    options = f"size={size},mode=755"
    command = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def resized(folder, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


@pytest.fixture
def disk(ground):
    """A file system whose size can be changed."""
    folder = ground / "disk"
    folder.mkdir()
    if not mounted(folder, "64m"):
        folder.rmdir()
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.mark.parametrize("name", FROM)
def test_a_full_disk_is_told_and_nothing_is_lost(folders, oracle, table, disk, name):
    if not TRIALS and name not in ("select", "losses"):
        pytest.skip("tried with GRADSIFT_TRIALS")
    folders.copy(FROM[name], disk)
    before = shutil.disk_usage(disk).used
    must(folders.command(name, disk))
    # Temporary files and checkpoints need more than what is left in the end.
    growth = 1.1 * (shutil.disk_usage(disk).used - before) + (5e5 if name == "capture" else 0)
    verdicts = []
    n = trials(IN_CI[name])
    for k in range(n):
        shutil.rmtree(disk / "run")
        for left in disk.iterdir():
            left.unlink()
        folders.copy(FROM[name], disk)
        # 0 would be without end.
        size = max(shutil.disk_usage(disk).used + int(growth * k / n) // 4096 * 4096, 4096)
        resized(disk, size)
        outcome = folders.command(name, disk)
        told = told_of(outcome, disk, full=True)
        resized(disk, "64m")
        verdict = worst([told, went_on(folders, oracle, name, disk)])
        verdicts.append((verdict[0], f"{name}, {size} bytes: {verdict[1]}"))
    assert not (broken := table.add(f"disk full: {name}", "test_faults", verdicts)), broken


@pytest.mark.parametrize("name", FROM)
def test_a_limit_on_the_size_of_files_is_told(folders, oracle, table, trial, name):
    if not TRIALS and name not in ("select", "losses"):
        pytest.skip("tried with GRADSIFT_TRIALS")
    root = trial(FROM.get(name))
    must(folders.command(name, root))
    base = folders.folder / FROM[name] if FROM[name] else root / "nothing"
    made = [
        path
        for path in (root / "run").rglob("*")
        if path.is_file() and not (base / path.relative_to(root / "run")).exists()
    ]
    largest = max(path.stat().st_size for path in made)
    n, verdicts = trials(2), []
    for k in range(n):
        root = trial(FROM.get(name))
        limit = int(largest * (k + 0.5) / n)
        outcome = folders.command(name, root, file_limit=limit)
        # There is space, but not for this file.
        verdict = worst([told_of(outcome, root, full=False), went_on(folders, oracle, name, root)])
        verdicts.append((verdict[0], f"{name}, limit {limit}: {verdict[1]}"))
    promise = f"files of limited size: {name}"
    assert not (broken := table.add(promise, "test_faults", verdicts)), broken
