"""A captured run of a tiny model and a finished comparison, for tests of training and comparing."""

import json
import logging
import shutil
from contextlib import contextmanager

import pytest

import gradsift as gs
from tiny import save_tiny

ARMS = ("base", "full:seeds=1", "full-equal-steps:seeds=1", "random", "grads")
# Fast: answers of a few tokens, no task, one short text.
QUICK = {"budgets": ("50%",), "seeds": 2, "epochs": 1, "max_new_tokens": 4}
TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}
WORDS = ["red", "green", "blue", "cat", "dog", "tree", "stone", "river"]


class Killed(BaseException):
    """As a kill would be: nothing catches it."""


def die(*_):
    raise Killed


def write_rows(path, n, offset=0):
    rows = []
    for i in range(offset, offset + n):
        answer = " ".join(WORDS[(i * j) % 8] for j in range(1, 5 + i % 6))
        source = "book" if i % 4 == 0 else "forum"
        rows.append({"id": f"r{i:02d}", "prompt": f"{i}?", "response": answer, "source": source})
    rows[5] = {**rows[1], "id": f"r{offset + 5:02d}"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparing")
    model = str(save_tiny(folder / "model"))
    write_rows(folder / "data.jsonl", 24)
    write_rows(folder / "test.jsonl", 9, offset=60)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    gs.capture(model, gs.load_pool(str(folder / "data.jsonl")), out=folder / "run", sft=TRAINING)
    return folder


def compared(world, **changes):
    general = (str(world / "text.txt"),)
    options = {"test": str(world / "test.jsonl"), "arms": ARMS, "general": general, **QUICK}
    return gs.compare(world / "run", **{**options, **changes})


@pytest.fixture(scope="session")
def finished(world):
    result = compared(world, name="first")
    return result, json.loads((world / "run" / "first.json").read_text())


@pytest.fixture
def fresh_run(world, tmp_path):
    """The captured run, with nothing selected or trained from it."""
    ignored = shutil.ignore_patterns("arms", "first*", "selections")
    return shutil.copytree(world / "run", tmp_path / "run", ignore=ignored)


@contextmanager
def logged(emit):
    """Call a function with each line of the log."""
    handler = logging.Handler()
    handler.emit = lambda record: emit(record.getMessage())
    logger = logging.getLogger("gradsift")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def log():
    """The lines that were logged so far."""
    lines = []
    with logged(lines.append):
        yield lines
