"""Commands on one run folder at the same time, and a folder that may only be read."""

import os
import random
import shutil
from pathlib import Path

import pytest

from trust.attacks import (
    EQUAL,
    EVERYTHING,
    LEFT,
    LOST,
    NAMED,
    TRIALS,
    UNNAMED,
    ended_badly,
    observed,
    trials,
    worst,
)

NOBODY = 65534


def together(folders, root, names, delays=()):
    jobs = [{"argv": list(map(str, getattr(folders, name)(root / "run")))} for name in names]
    for job, delay in zip(jobs, delays, strict=False):
        job["delay"] = delay
    return folders.server.run(*jobs)


def compared(oracle, base, name, root, outcome):
    bad = ended_badly(outcome)
    if bad is not None:
        return bad
    if outcome.code:
        return LOST, outcome.last_line
    (expected, _) = oracle.expected(base, (name,))
    different = expected.differences(observed(root, LEFT[name], outcome), times_count=False)
    return (LOST, f"differs: {different[:4]}") if different else (EQUAL, "")


def without_leftovers(root):
    left = [str(p.relative_to(root)) for p in root.rglob(".*") if not p.name.endswith(".lock")]
    return (LOST, f"left: {left[:3]}") if left else (EQUAL, "")


def test_two_equal_selects_at_once(folders, oracle, table, trial):
    verdicts = []
    for k in range(trials(5)):
        base = ("captured", "run")[k % 2]
        root = trial(base)
        for outcome in together(folders, root, ("select", "select")):
            verdicts.append(compared(oracle, base, "select", root, outcome))
        verdicts.append(without_leftovers(root))
    promise = "two equal selects at once"
    assert not (broken := table.add(promise, "test_together", verdicts)), broken


def test_other_selects_at_once(folders, oracle, table, trial):
    verdicts = []
    for _ in range(trials(2)):
        root = trial("run")
        names = ("select", "select_new", "select_loss", "select_auto", "explain")
        for name, outcome in zip(names, together(folders, root, names), strict=True):
            if name != "explain":  # It tells of selections that are being written.
                verdicts.append(compared(oracle, "run", name, root, outcome))
            else:
                verdicts.append(ended_badly(outcome) or (EQUAL, ""))
    promise = "several selects at once"
    assert not (broken := table.add(promise, "test_together", verdicts)), broken


def test_select_during_a_capture(folders, oracle, table, trial):
    generator, verdicts = random.Random(0), []
    for _ in range(trials(1)):
        root = trial("stopped" if generator.random() < 0.5 else None)
        delays = [0, *(generator.uniform(0, 2) for _ in range(3))]
        outcomes = together(folders, root, ("capture", *["select"] * 3), delays)
        (_, expected) = oracle.expected(None, ("capture",))
        verdicts.append(ended_badly(outcomes[0]) or (EQUAL, ""))
        for outcome in outcomes[1:]:
            # It is not there, not finished, or there.
            verdicts.append(ended_badly(outcome) or (EQUAL, outcome.last_line))
        found = observed(root, LEFT["capture"])
        different = [k for k in expected.differences(found) if not k.startswith(("file", "run/s"))]
        verdicts.append((LOST, f"differs: {different[:4]}") if different else (EQUAL, ""))
    promise = "select during a capture"
    assert not (broken := table.add(promise, "test_together", verdicts)), broken


@pytest.mark.parametrize("name", ["capture", "losses", "train_random", "compare"])
def test_two_writers_at_once(folders, oracle, table, trial, name):
    if not TRIALS and name in ("compare", "train_random"):
        pytest.skip("tried with GRADSIFT_TRIALS")
    base = None if name == "capture" else "captured"
    verdicts = []
    for _ in range(trials(1)):
        root = trial(base)
        outcomes = together(folders, root, (name, name))
        if all(outcome.code for outcome in outcomes):
            verdicts.append((LOST, f"both failed: {[one.last_line for one in outcomes]}"))
        for outcome in outcomes:
            # One may be refused by a line, if it says so.
            verdict = ended_badly(outcome) or ((NAMED if outcome.code else EQUAL), "")
            verdicts.append(verdict)
        expected = oracle.everything(base, name)
        different = expected.differences(observed(root, EVERYTHING), times_count=False)
        different = [one for one in different if not one.startswith("file ")]
        verdicts.append((LOST, f"differs: {different[:4]}") if different else (EQUAL, ""))
    promise = f"two at once: {name}"
    assert not (broken := table.add(promise, "test_together", verdicts)), broken


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_only_be_read(folders, table, trial):
    verdicts = []
    names = ("explain", "strategies", "select", "select_new", "losses", "train_saved", "capture")
    names += ("compare", "train_random", "select_loss") if TRIALS else ()
    # As if that user had captured it: the key is shared for the trial.
    state = Path(os.environ["XDG_STATE_HOME"])
    for path in (state, *state.rglob("*")):
        path.chmod(0o755)
    for name in names:
        root, warm = trial("run"), trial("run")
        if name in ("losses", "select"):
            shutil.rmtree(root / "run/losses")
            shutil.rmtree(root / "run/selections")
        for path in [root, *root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        first = list(map(str, getattr(folders, name)(warm / "run")))
        outcome = folders.command(name, root, uid=NOBODY, first=first)
        bad = ended_badly(outcome)
        reads = name in ("explain", "strategies", "capture")
        if bad is not None:
            verdict = bad
        elif outcome.code == 0:
            verdict = (EQUAL, "") if reads else (UNNAMED, "wrote into what cannot be written")
        else:
            named = not reads and str(root) in outcome.last_line
            verdict = (NAMED if named else UNNAMED, outcome.last_line)
        verdicts.append((verdict[0], f"{name}: {verdict[1]}"))
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
    worst(verdicts)
    promise = "a folder that may only be read"
    assert not (broken := table.add(promise, "test_together", verdicts)), broken
