"""Every kind of file of a run folder, with a bit flipped, cut, or gone: named, remade, or harmless.

Never: another result without a word.
"""

import random
import shutil
from dataclasses import dataclass

import pytest

from trust.attacks import LEFT, NAMED, TRIALS, judge, observed, trials, worst


@dataclass(frozen=True)
class Kind:
    name: str
    base: str  # A run folder of World.
    pattern: str  # The files; trials go round them.
    commands: tuple[str, ...]  # Those that rely on it, in this order.
    names: tuple[str, ...] = ()  # What names it, beside its file name.


SELECTING = ("explain", "select_new", "select")  # explain tells of all selections: first.
SELECTIONS = ("explain", "select", "select_loss", "select_auto")
KINDS = [
    Kind("manifest", "run", "manifest.json", (*SELECTING, "strategies", "capture"),
         ("but no run (no manifest.json)",)),
    Kind("config", "run", "config.yaml", ("select_loss", "train_random")),
    Kind("pool", "run", "pool.parquet", (*SELECTING, "strategies", "losses")),
    Kind("texts", "run", "texts.parquet", SELECTING),
    Kind("gradients", "run", "gradients/*.parquet", (*SELECTING, "capture")),
    Kind("neighbours", "run", "neighbours.parquet", (*SELECTING, "select_auto")),
    Kind("losses", "run", "losses/*.parquet", ("losses", "select_loss", "strategies")),
    Kind("decisions", "run", "selections/*/decisions.parquet", SELECTIONS),
    Kind("selection", "run", "selections/*/selection.json", SELECTIONS),
    Kind("curve", "run", "selections/*/curve.parquet", SELECTIONS),
    Kind("selected rows", "run", "selections/*/selected.jsonl", SELECTIONS),
    Kind("scores", "run", "arms/*/scores.json", ("compare",)),
    Kind("answers", "run", "arms/*/answers.jsonl", ("compare",)),
    Kind("weights", "run", "arms/grads*/model/model.safetensors", ("train_saved", "compare_more"),
         ("/model",)),
    Kind("about a model", "run", "arms/grads*/model/*.json", ("train_saved", "compare_more"),
         ("/model",)),
    Kind("comparison", "run", "comparison.json", ("compare",), ("comparison.md",)),
    Kind("kept rows", "kept", "pool-data.*", ("select_new", "losses")),
    Kind("parts, resumed", "stopped", "gradients/part-00000.parquet", ("capture", "select")),
    Kind("checkpoint", "stopped", "checkpoints/checkpoint-*/*", ("capture", "select"),
         ("checkpoint-",)),
    Kind("checkpoint of an arm", "in_training", "arms/*/checkpoints/checkpoint-*/*",
         ("train_random",), ("checkpoint-",)),
]  # fmt: skip
# These take seconds; in CI they are tried with a flipped bit only, and those of arms and
# checkpoints in their own tests (comparison, training).
SLOWEST = ("weights", "about a model", "scores", "comparison", "checkpoint of an arm")
SLOW = (
    "weights",
    "about a model",
    "scores",
    "parts, resumed",
    "checkpoint",
    "config",
    "comparison",
)
BY_NAME = {kind.name: kind for kind in KINDS}


def flipped(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def places(size, n, seed):
    """First and last bytes, the footer's length, then places spread over the file."""
    ends = [0, size - 1, size - 6, size // 2, 4, size - 40]
    generator = random.Random(seed)
    spread = [int((k + generator.random()) * size / n) for k in range(n)]
    chosen = [*ends, *spread] if n > 8 else spread
    return [min(max(at, 0), size - 1) for at in chosen]


def attack(folders, oracle, kind, relative, damage, *, times_count):
    """Damage one file of a copy, run what relies on it; returns the worst verdict."""
    expected = oracle.expected(kind.base, kind.commands)
    root = folders.copy(kind.base)
    what = damage(root / "run" / relative)
    verdicts = []
    for name, one in zip(kind.commands, expected, strict=False):
        outcome = folders.command(name, root)
        found = observed(root, LEFT.get(name, ()), outcome)
        names = (relative.name, *kind.names)
        verdict, why = judge(outcome, one, found, names, times_count=times_count)
        verdicts.append((verdict, f"{relative} {what}: {name}: {why}"))
        if kind.base == "stopped" and verdict == NAMED:
            break  # Nothing can be selected from what is not finished.
    shutil.rmtree(root)
    return worst(verdicts)


def files_of(folders, kind):
    base = getattr(folders, kind.base)
    found = sorted(path.relative_to(base) for path in base.glob(kind.pattern) if path.is_file())
    assert found, kind.pattern
    return found


@pytest.mark.parametrize("name", BY_NAME)
def test_a_flipped_bit_is_never_silent(folders, oracle, table, name):
    if not TRIALS and name in SLOWEST:
        pytest.skip("tried with GRADSIFT_TRIALS")
    kind, verdicts = BY_NAME[name], []
    files, n = files_of(folders, kind), trials(1)
    per_file = -(-n // len(files))
    generator = random.Random(name)
    for relative in files if TRIALS else generator.sample(files, min(n, len(files))):
        content = (getattr(folders, kind.base) / relative).read_bytes()
        for at in places(len(content), per_file, str(relative)) if content else ():
            bit = generator.randrange(8)

            def damage(path, at=at, bit=bit, content=content):
                path.write_bytes(flipped(content, at, bit))
                return f"bit {bit} of byte {at} of {len(content)}"

            verdicts.append(attack(folders, oracle, kind, relative, damage, times_count=True))
    assert not (broken := table.add(f"a flipped bit: {name}", "test_damage", verdicts)), broken


@pytest.mark.parametrize("name", BY_NAME)
def test_a_cut_or_missing_file_is_named_or_made_again(folders, oracle, table, name):
    if not TRIALS and name in SLOW:
        pytest.skip("tried with GRADSIFT_TRIALS")
    kind, verdicts = BY_NAME[name], []
    files = files_of(folders, kind)
    generator = random.Random(name)
    for relative in files if TRIALS else generator.sample(files, 1):
        size = (getattr(folders, kind.base) / relative).stat().st_size
        lengths = (
            [None, 0, 1, size // 2, size - 8, size - 1]
            if TRIALS
            else generator.choices([None, size // 2])
        )
        for length in lengths:

            def damage(path, length=length, size=size):
                if length is None:
                    path.unlink()
                    return "gone"
                with path.open("r+b") as file:
                    file.truncate(max(length, 0))
                return f"cut to {length} of {size} bytes"

            # What is trained again has its own time.
            verdict = attack(folders, oracle, kind, relative, damage, times_count=False)
            verdicts.append(verdict)
    assert not (broken := table.add(f"cut or missing: {name}", "test_damage", verdicts)), broken
