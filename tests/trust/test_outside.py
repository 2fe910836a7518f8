"""A received run folder with links and names that lead elsewhere: nothing is written there."""

import hashlib
import json
import os
import shutil

import pytest

from gradsift.seals import write_json
from trust.attacks import (
    EQUAL,
    NAMED,
    SILENT,
    TRIALS,
    UNNAMED,
    WRITTEN,
    ended_badly,
    worst,
)

# What is made a link → run folder of World, and the commands that write there (or near).
PLACES = {
    "gradients": ("stopped", ("capture",)),
    "gradients/part-00000.parquet": ("stopped", ("capture",)),
    "checkpoints": ("stopped", ("capture",)),
    "checkpoints/checkpoint-3": ("stopped", ("capture",)),
    "checkpoints/checkpoint-6": ("stopped", ("capture",)),
    ".lock": ("stopped", ("capture",)),
    "config.yaml": ("stopped", ("capture",)),
    "manifest.json": ("stopped", ("capture",)),
    "pool.parquet": ("stopped", ("capture",)),
    "neighbours.parquet": ("run", ("select", "explain")),
    "texts.parquet": ("run", ("select",)),
    "selections": ("run", ("select", "select_loss")),
    "selections/grads-50pct": ("run", ("select",)),
    "selections/grads-50pct/selected.jsonl": ("run", ("select",)),
    "selections/grads-50pct/decisions.parquet": ("run", ("select",)),
    "selections/grads-50pct/selection.json": ("run", ("select",)),
    "selections/ifd/export": ("run", ("select_loss",)),
    "selections/ifd/export/trl.jsonl": ("run", ("select_loss",)),
    "losses": ("captured", ("losses", "compare_losses")),
    "losses/part-00000.parquet": ("captured", ("losses",)),
    "arms": ("captured", ("train_random", "compare")),
    "arms/locks": ("captured", ("train_random",)),
    "arms/ARM": ("run", ("compare_changed",)),
    "arms/ARM/scores.json": ("run", ("compare_changed",)),
    "arms/ARM/answers.jsonl": ("run", ("compare_changed",)),
    "arms/ARM/model": ("run", ("train_again",)),
    "arms/ARM/checkpoints": ("in_training", ("train_random",)),
    "comparison.json": ("run", ("compare",)),
    "comparison.md": ("run", ("compare",)),
    "out": ("run", ("train_saved",)),
}
# These take seconds; in CI they are left out.
SLOW = ("arms", "arms/ARM", "arms/ARM/scores.json", "arms/ARM/answers.jsonl", "arms/ARM/model",
        "comparison.json", "losses", "checkpoints/checkpoint-3", "config.yaml",
        "gradients/part-00000.parquet", "pool.parquet")  # fmt: skip
# Names that are used for a moment; {pid} is the process that will come.
TEMPORARY = {
    "capture": ("stopped", [".config.yaml.{pid}.tmp", ".pool.parquet.{pid}.tmp", ".config.yaml.tmp",
        ".manifest.json.{pid}.tmp", "gradients/.part-00002.parquet.{pid}.tmp"]),
    "select": ("run", ["selections/grads-50pct/.selected.jsonl.{pid}.tmp",
        "selections/grads-50pct/.selected.jsonl.tmp",
        "selections/grads-50pct/.decisions.parquet.{pid}.tmp",
        "selections/grads-50pct/.selection.json.{pid}.tmp"]),
    "select_loss": ("run", ["selections/ifd/.export.unfinished", "selections/ifd/export.tmp"]),
    "losses": ("captured", ["losses/.part-00000.parquet.{pid}.tmp"]),
    "compare": ("run", [".comparison.json.{pid}.tmp", ".comparison.md.{pid}.tmp"]),
    "train_saved": ("run", ["../.out.unfinished"]),
}  # fmt: skip
KINDS = ("absolute", "relative", "dangling", "to a file", "to a folder")


def snapshot(folder):
    """Everything below a folder: kind, content, mode, time of the last change."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (content, status.st_mode, status.st_mtime_ns)
    return found


def changes(before, after):
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


@pytest.fixture
def received(trial):
    """Make copies of a run folder, with a victim beside it (outside of the run)."""

    def new(base):
        root = trial(base)
        victim = root / "victim"
        (victim / "folder").mkdir(parents=True)
        (victim / "file").write_text("precious\n")
        (victim / "folder" / "part-00000.parquet").write_text("precious\n")
        (victim / "folder" / "notes.txt").write_text("precious\n")
        return root, victim

    return new


def lead_away(path, victim, kind):
    """Put a link in place of a file or folder of a run; what was there goes to the victim."""
    target = victim / "moved"
    if kind == "dangling":
        target = victim / "nothing"
    elif kind in ("to a file", "to a folder"):
        target = victim / kind.split()[-1]
    elif os.path.lexists(path):
        shutil.move(path, target)
    else:
        target = victim / "folder"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent) if kind == "relative" else target)


def run_of(folders, command, root):
    """The command lines of a trial that World has under no name."""
    run = root / "run"
    if command == "compare_changed":  # As if another text were asked for: scores are made anew.
        return folders.compare(run, 6)
    if command == "train_again":
        for path in (run / "arms").glob("grads*/model/model.safetensors"):
            path.write_bytes(b"cut")
        return ("train", run, "--arm", "grads", "--budget", "50%", "--epochs", "1", "--json")
    if command == "compare_losses":
        return ("train", run, "--arm", "ifd-loss", "--budget", "50%", "--epochs", "1", "--json")
    return getattr(folders, command)(run)


def judged(outcome, before, victim):
    """Nothing outside was changed, whatever the command did; and it did not break."""
    changed = changes(before, snapshot(victim))
    if changed:
        return WRITTEN, f"{changed[:4]} (exit {outcome.code}: {outcome.last_line[-150:]})"
    return ended_badly(outcome) or (
        (EQUAL, "") if outcome.code == 0 else (NAMED, outcome.last_line)
    )


def attack(folders, received, place, kind):
    base, commands = PLACES[place]
    root, victim = received(base)
    if place == "out":
        path = root / "out"
    else:
        arm = next((root / "run/arms").glob("grads*" if base == "run" else "random*"), None)
        path = root / "run" / place.replace("ARM", arm.name if arm else "ARM")
    lead_away(path, victim, kind)
    verdicts = []
    for command in commands:
        argv = run_of(folders, command, root)
        before = snapshot(victim)
        outcome = folders.server.command(*argv)
        verdict, why = judged(outcome, before, victim)
        verdicts.append((verdict, f"{place}, {kind}: {command}: {why}"))
    return worst(verdicts)


@pytest.mark.parametrize("place", PLACES)
def test_a_link_leads_nowhere(folders, received, table, place):
    at = list(PLACES).index(place)
    kinds = KINDS if TRIALS else [KINDS[at % len(KINDS)]]
    if not TRIALS and place in SLOW:
        pytest.skip("tried with GRADSIFT_TRIALS")
    verdicts = [attack(folders, received, place, kind) for kind in kinds]
    assert not (broken := table.add(f"link: {place}", "test_outside", verdicts)), broken


@pytest.mark.parametrize("command", TEMPORARY)
def test_a_link_of_a_temporary_name_leads_nowhere(folders, received, table, command):
    base, names = TEMPORARY[command]
    verdicts = []
    if not TRIALS and command == "compare":
        pytest.skip("tried with GRADSIFT_TRIALS")
    for name in names if TRIALS else names[:2]:
        for kind in ("file", "folder", "nothing") if TRIALS else ("file",):
            root, victim = received(base)
            target = victim / ("folder" if name.endswith("unfinished") else kind)
            (root / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            before = snapshot(victim)
            outcome = folders.command(command, root, links={str(root / "run" / name): str(target)})
            verdict, why = judged(outcome, before, victim)
            verdicts.append((verdict, f"{name} → {target.name}: {command}: {why}"))
    assert not (broken := table.add(f"temporary: {command}", "test_outside", verdicts)), broken


@pytest.mark.parametrize(
    "place",
    [".lock", "config.yaml", "manifest.json", "pool.parquet", "gradients/part-00000.parquet"],
)
def test_a_hard_link_is_not_written_through(folders, received, table, place):
    root, victim = received("stopped")
    path = root / "run" / place
    if path.exists():
        shutil.copyfile(path, victim / "linked")
        path.unlink()
    else:
        (victim / "linked").write_text("precious\n")
    os.link(victim / "linked", path)
    before = snapshot(victim)
    outcome = folders.command("capture", root)
    verdict, why = judged(outcome, before, victim)
    verdicts = [(verdict, f"{place}: {why}")]
    assert not (broken := table.add(f"hard link: {place}", "test_outside", verdicts)), broken


def named_elsewhere(manifest, root):
    """A part of the store outside of the folder, whole and with the right checksum."""
    part = root / "run" / "gradients" / manifest["parts"][0]["file"]
    shutil.move(part, root / "elsewhere.parquet")
    return part


@pytest.mark.parametrize("name", ["../../elsewhere.parquet", "{root}/elsewhere.parquet"])
@pytest.mark.parametrize("command", ["select", "explain", "capture"][: 3 if TRIALS else 2])
def test_a_part_outside_is_refused(folders, received, table, name, command):
    root, victim = received("stopped" if command == "capture" else "run")
    path = root / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    named_elsewhere(manifest, root)
    manifest["parts"][0]["file"] = name.format(root=root)
    write_json(path, manifest)
    before = snapshot(victim)
    outcome = folders.command(command, root)
    verdict = judged(outcome, before, victim)
    if outcome.code == 0:
        verdict = (SILENT, f"{command}: read {name}")
    elif "manifest.json" not in outcome.last_line:
        verdict = (UNNAMED, outcome.last_line) if verdict[0] == NAMED else verdict
    assert (root / "elsewhere.parquet").exists()
    assert not (broken := table.add(f"part {name}: {command}", "test_outside", [verdict])), broken


def test_what_is_no_part_is_not_removed_outside(folders, received, table):
    """The capture tidies up parts that the manifest does not name."""
    root, victim = received("stopped")
    (root / "run" / "gradients" / "link").symlink_to(victim / "folder")
    (root / "run" / "gradients" / "other").symlink_to(victim / "file")
    before = snapshot(victim)
    verdicts = [judged(folders.command("capture", root), before, victim)]
    assert not (broken := table.add("tidying up", "test_outside", verdicts)), broken


NAMES = ("../x", "../../victim/folder", "/tmp/x", "..", "a/../../x", ".hidden", "x\0y")


@pytest.mark.parametrize("name", NAMES if TRIALS else NAMES[:4])
def test_a_name_that_is_a_path_is_refused(folders, received, table, name):
    verdicts = []
    root, _ = received("run")
    run = root / "run"
    everything = snapshot(root)
    test = ("--test", folders.test, "--arms", "base")
    for argv in (
        ("select", run, "--budget", "50%", "--name", name),
        ("compare", run, *test, "--name", name),
        ("explain", run, "r03", "--name", name),
    ):
        outcome = folders.server.command(*argv)
        verdict, why = judged(outcome, everything, root)
        verdict = UNNAMED if verdict == EQUAL else verdict
        verdicts.append((verdict, f"{argv[0]} --name {name!r}: {why}"))
    assert not (broken := table.add(f"name {name!r}", "test_outside", verdicts)), broken


@pytest.mark.parametrize("name", ["../../victim/file", "../victim/folder", "pool-data.jsonl/../x"])
@pytest.mark.parametrize("base", ["run", "kept"])
def test_rows_named_outside_are_not_written(folders, received, table, name, base):
    root, victim = received(base)
    path = root / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    manifest["about"]["data"]["name"] = str(root / "run" / name)
    write_json(path, manifest)
    before = snapshot(victim)
    verdicts = []
    for command in ("select", "select_new"):
        outcome = folders.command(command, root)
        verdicts.append(judged(outcome, before, victim))
    assert not (broken := table.add(f"about.data {name}", "test_outside", verdicts)), broken
