"""What the trials share: a run folder with everything in it, commands, and what came of them.

A few trials of each kind are made in CI. More, with a table of what came of them (lines are added
to the file): `GRADSIFT_TRIALS=50 GRADSIFT_TRIALS_TABLE=table.md pytest tests/trust`. With
1000, each call of a command fails once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).parent
TRIALS = int(os.environ.get("GRADSIFT_TRIALS", "0"))
N_ROWS = 24
WORDS = ["red", "green", "blue", "cat", "dog", "tree", "stone", "river"]


def trials(in_ci, wanted=1.0):
    """How many trials of a kind: a few in CI, else a share of GRADSIFT_TRIALS."""
    return max(in_ci, round(TRIALS * wanted))


@dataclass(frozen=True)
class Outcome:
    code: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    seconds: float

    @property
    def last_line(self):
        lines = [line for line in self.stderr.splitlines() if line.startswith("gradsift: ")]
        return lines[-1] if lines else ""

    @property
    def broke(self):
        """Whether it ended otherwise than by finishing or by one line."""
        return (
            self.code not in (0, 2)
            or "Traceback (most" in self.stderr
            or (self.code == 2 and not self.last_line)
        )


class Server:
    """The process of server.py."""

    def __init__(self, shim):
        paths = [str(HERE.parent.parent / "src"), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if shim is not None:
            env["LD_PRELOAD"] = str(shim)
        self._process = subprocess.Popen(
            [sys.executable, "-P", HERE / "server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        assert self._process.stdout.readline() == "ready\n"

    def run(self, *jobs):
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        return [Outcome(**one) for one in json.loads(self._process.stdout.readline())]

    def command(self, *argv, **job):
        (outcome,) = self.run({"argv": list(map(str, argv)), **job})
        return outcome

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def compiled_shim(folder):
    """Compile faults.c; None where there is no compiler or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    shim = folder / "faults.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", shim, HERE / "faults.c", "-ldl"]
    done = subprocess.run(command, capture_output=True)
    return shim if done.returncode == 0 else None


def write_data(path, n, offset=0):
    rows = []
    for i in range(offset, offset + n):
        answer = " ".join(WORDS[(i * j) % 8] for j in range(1, 5 + i % 6))
        source = "book" if i % 4 == 0 else "forum"
        rows.append({"id": f"r{i:02d}", "prompt": f"{i}?", "response": answer, "source": source})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class World:
    """Model, rows, and run folders that trials copy.

    Attributes:
        run: Complete: two selections, reference losses, a comparison with models kept.
        captured: A capture and nothing else.
        stopped: A capture that was killed after its second part.
        in_training: As `captured`, and a training of an arm that was killed after a checkpoint.
        kept: A run whose rows came from memory.
    """

    def __init__(self, server, folder, tiny):
        self.server, self.folder, self._n = server, folder, 0
        self.model = tiny(folder / "model")
        self.data, self.test = folder / "data.jsonl", folder / "test.jsonl"
        self.text = folder / "text.txt"
        write_data(self.data, N_ROWS)
        write_data(self.test, 6, offset=60)
        self.text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
        for path in folder.rglob("*"):  # Another user trains it, too.
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.captured, self.stopped = folder / "captured", folder / "stopped"
        must(server.command(*self.capture(self.captured)))
        when = [str(self.stopped), "gradients/part-*.parquet", 2]
        self._stop(self.capture(self.stopped), when)
        self.in_training = Path(shutil.copytree(self.captured, folder / "in_training"))
        when = [str(self.in_training), "arms/*/checkpoints/checkpoint-*/whole.json", 1]
        self._stop(self.train_random(self.in_training), when)
        self.run = Path(shutil.copytree(self.captured, folder / "run"))
        for command in (
            self.losses(self.run),
            self.select(self.run),
            self.select_loss(self.run),
            self.select_auto(self.run),
            self.compare(self.run),
        ):
            must(server.command(*command))
        self.kept = folder / "kept"
        code = (
            "import json, gradsift as gs\n"
            f"rows = [json.loads(line) for line in open({str(self.data)!r})]\n"
            f"gs.capture({self.model!r}, rows, out={str(self.kept)!r})\n"
        )
        must(server.run({"code": code})[0])

    def _stop(self, argv, when):
        """Kill a command once so many files are there."""
        outcome = self.server.command(*argv, kill_when=when)
        assert outcome.code == -9, outcome

    def copy(self, base, root=None):
        """Return the folder of a new trial; `base` is copied to `run` in it."""
        if root is None:
            self._n += 1
            root = self.folder / f"trial-{self._n}"
            root.mkdir()
        if base is not None:
            shutil.copytree(getattr(self, base), root / "run", symlinks=True)
        return root

    def command(self, name, root, **job):
        """Run one of the commands below on the run in a trial's folder."""
        return self.server.command(*getattr(self, name)(root / "run"), **job)

    # The commands of trials.
    def capture(self, run, *more):
        sft = ("--sft", "per_device_train_batch_size=2", "--sft", "learning_rate=1e-3")
        steps = ("--set", "save_steps=3")
        return ("capture", self.data, "--model", self.model, "--out", run, *sft, *steps, *more)

    def capture_scoring(self, run):
        return self.capture(run, "--set", "warmup_fraction=0.5")

    def select(self, run, *more):
        return ("select", run, "--budget", "50%", "--json", *more)

    def select_new(self, run):
        return self.select(run, "--name", "new")

    def select_loss(self, run):
        return self.select(run, "--strategy", "ifd-loss", "--name", "ifd", "--export", "trl")

    def select_auto(self, run):
        return (
            "select",
            run,
            "--budget",
            "auto",
            "--name",
            "auto",
            "--set",
            "weights=true",
            "--json",
        )

    def losses(self, run):
        return ("reference-losses", run, "--json")

    def compare(self, run, n_tokens=4):
        quick = ("--seeds", "1", "--epochs", "1", "--set", f"max_new_tokens={n_tokens}")
        arms = ("--arms", "base,grads", "--keep-models", "--general", self.text)
        return ("compare", run, "--test", self.test, *arms, *quick, "--json")

    def compare_more(self, run):
        """Ask the models that were kept for longer answers."""
        return self.compare(run, 6)

    def train_saved(self, run):
        """Train what `compare` has kept, into another folder: it is copied."""
        out = ("--out", run.parent / "out", "--json")
        return ("train", run, "--arm", "grads", "--budget", "50%", "--epochs", "1", *out)

    def train_random(self, run, *more):
        return ("train", run, "--arm", "random", "--budget", "50%", "--epochs", "2",
                "--set", "save_steps=3", "--json", *more)  # fmt: skip

    def explain(self, run, row="r03"):
        return ("explain", run, row, "--json")

    def strategies(self, run):
        return ("strategies", run, "--budget", "50%", "--json")


def must(outcome):
    assert outcome.code == 0, outcome.stderr


# What commands leave, as patterns below the folder of a trial.
_SELECTION = "run/selections/{}/*"
LEFT = {
    "capture": ("run/gradients/*.parquet", "run/pool.parquet", "run/config.yaml"),
    "select": (_SELECTION.format("grads-50pct"),),
    "select_new": (_SELECTION.format("new"),),
    "select_loss": (_SELECTION.format("ifd"), _SELECTION.format("ifd/export")),
    "select_auto": (_SELECTION.format("auto"),),
    "losses": ("run/losses/*.parquet",),
    "compare": ("run/comparison.json",),
    "train_saved": ("out/*.safetensors",),
    "train_random": ("run/arms/random*/model/*.safetensors",),
}
LEFT["capture_scoring"] = LEFT["capture"]
# What a trial may leave beside: all there is, for those that kill and fill the disk.
EVERYTHING = (
    *LEFT["capture"],
    _SELECTION.format("*"),
    *LEFT["losses"],
    *LEFT["compare"],
    "run/arms/*/scores.json",
    "run/arms/*/answers.jsonl",
    "run/arms/*/model/*.safetensors",
)
# Names of parts go by where a capture was resumed.
_PART = re.compile(r"part-\d+|/locks/|\.lock$")
_TIMES = re.compile(r"seconds|per_second|n_computed|resumed_at")


def observed(root, patterns, outcome=None):
    """What a command said and left, as a flat dictionary."""
    found = {}
    if outcome is not None:
        lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
        found |= flat("stdout", json.loads(lines[-1].replace(str(root), "ROOT"))) if lines else {}
    tables = {}
    for path in sorted({one for pattern in patterns for one in root.glob(pattern)}):
        name = str(path.relative_to(root))
        if path.is_dir() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".parquet" and path.parent.name in ("gradients", "losses"):
                # In how many parts they are may differ.
                tables.setdefault(str(Path(name).parent), []).extend(rows_of(path))
            elif path.suffix == ".parquet":
                found[name] = digest(rows_of(path))
            elif path.suffix == ".json":
                found |= flat(name, json.loads(path.read_text().replace(str(root), "ROOT")))
            elif path.suffix in (".yaml", ".jsonl", ".py"):
                found[name] = digest(path.read_text().replace(str(root), "ROOT"))
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (ValueError, OSError) as error:
            found[name] = f"unreadable: {error}"
    for name, rows in tables.items():
        # Two at once may write the same rows twice; whoever reads takes one.
        found[name] = digest(sorted(set(map(repr, rows))))
    return found


def files_in(root):
    """Every file below a folder, but locks and the parts of a store, as keys of `observed`."""
    names = (str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
    return {f"file {name}": "there" for name in names if not _PART.search(name)}


def rows_of(path):
    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()


def flat(name, value):
    if isinstance(value, dict):
        pairs = [flat(f"{name}.{key}", inner) for key, inner in value.items()]
        return {key: inner for pair in pairs for key, inner in pair.items()}
    return {name: repr(value)}


@dataclass(frozen=True)
class Expected:
    """What two undamaged runs agree on; and the places where they do not."""

    same: dict
    differing: frozenset

    @classmethod
    def of(cls, first, second):
        keys = first.keys() | second.keys()
        differing = frozenset(key for key in keys if first.get(key) != second.get(key))
        return cls({key: first[key] for key in keys - differing}, differing)

    def differences(self, found, *, times_count=True):
        """Return the places where something else was found."""
        keys = (self.same.keys() | found.keys()) - self.differing
        # A page also shows the other selections, those that are whole and there by then.
        keys = {key for key in keys if not str(key).endswith("report.html")}
        keys = {key for key in keys if times_count or not _TIMES.search(key)}
        return sorted(key for key in keys if self.same.get(key) != found.get(key))


class Oracle:
    """What sequences of commands come to where nothing is damaged; each is found out once."""

    def __init__(self, folders):
        self._world, self._known = folders, {}

    def expected(self, base, names):
        """Return, for each command, what it leaves (from two runs)."""
        if (base, names) not in self._known:
            runs = [self._run(base, names) for _ in range(2)]
            self._known[base, names] = [Expected.of(*pair) for pair in zip(*runs, strict=True)]
        return self._known[base, names]

    def everything(self, base, name):
        """Return what there is after one command, with the names of all files."""
        return self.expected(base, (name,))[1]

    def _run(self, base, names):
        root, found = self._world.copy(base), []
        for name in names:
            outcome = self._world.command(name, root)
            must(outcome)
            found.append(observed(root, LEFT.get(name, ()), outcome))
        found.append(observed(root, EVERYTHING) | files_in(root))
        shutil.rmtree(root)
        return found


# From bad to good; those before NAMED break a promise.
TRACEBACK, CRASH, HANG, SILENT = "TRACEBACK", "CRASH", "HANG", "SILENT"
UNNAMED, WRITTEN, LOST, LEFTOVER = "UNNAMED", "WRITTEN", "LOST", "LEFTOVER"
NAMED, REMADE, HARMLESS, EQUAL = "named", "remade", "harmless", "equal"
HELD = (NAMED, REMADE, HARMLESS, EQUAL)
ORDER = (TRACEBACK, CRASH, HANG, LOST, WRITTEN, SILENT, UNNAMED, LEFTOVER, *HELD)


def worst(verdicts):
    return min(verdicts, key=lambda pair: ORDER.index(pair[0]))


def ended_badly(outcome):
    """Return the verdict on a command that ended otherwise than by finishing or by one line."""
    if outcome.code < 0:
        return (HANG if outcome.code == -9 else CRASH, f"signal {-outcome.code}")
    if outcome.broke:
        return (TRACEBACK, f"exit {outcome.code}: {(outcome.last_line or outcome.stderr)[-300:]}")
    return None


def judge(outcome, expected, found, names, *, times_count=True):
    """Judge one command after damage; `names`: what a line that names the file has in it."""
    bad = ended_badly(outcome)
    if bad is not None:
        return bad
    if outcome.code == 2:
        named = any(name in outcome.last_line for name in names)
        return (NAMED if named else UNNAMED, outcome.last_line)
    told = [line for line in outcome.stderr.splitlines() if any(name in line for name in names)]
    different = expected.differences(found, times_count=times_count)
    if different and not told:
        return (SILENT, f"differs: {different[:4]}")
    return (NAMED if different else REMADE, told[0]) if told else (HARMLESS, "")


class Table:
    """promise | test | trials | held, and what came of the trials."""

    def __init__(self):
        self.path = os.environ.get("GRADSIFT_TRIALS_TABLE")

    def add(self, promise, test, verdicts):
        """Write one line; returns the trials that broke the promise, as text."""
        counts = Counter(verdict for verdict, _ in verdicts)
        held = sum(n for verdict, n in counts.items() if verdict in HELD)
        what = ", ".join(f"{counts[one]} {one}" for one in ORDER if counts[one])
        line = f"| {promise} | {test} | {len(verdicts)} | {held} | {what} |\n"
        print(line, end="")
        if self.path:
            with open(self.path, "a") as file:
                if not file.tell():
                    head = ("promise", "test", "trials", "held", "what came of them")
                    file.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
                file.write(line)
        return "\n".join(f"{v}: {why}" for v, why in verdicts if v not in HELD)
