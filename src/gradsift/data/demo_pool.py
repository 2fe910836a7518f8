"""The demo pool: questions about Python's standard library, answered by its own documentation.

Real text with real noise (one-line answers, inherited and copied docstrings), in every Python,
without bundling or downloading anything.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Importing these opens windows or browsers, prints, or runs for long.
NOT_IMPORTED = {
    "__main__",
    "antigravity",
    "distutils",  # Replaced by setuptools where that is installed.
    "idlelib",
    "lib2to3",
    "msilib",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}

SUBMODULES = (
    "collections.abc",
    "concurrent.futures",
    "email.message",
    "http.client",
    "importlib.util",
    "logging.handlers",
    "os.path",
    "unittest.mock",
    "urllib.parse",
    "urllib.request",
    "xml.etree.ElementTree",
)


def demo_rows() -> list[dict[str, str]]:
    """Collect the public functions, classes and methods of the standard library.

    Returns:
        Rows with `id`, `question` and `answer`, sorted by id; the same on every call.
    """
    rows: dict[str, str] = {}
    for name in sorted({*sys.stdlib_module_names, *SUBMODULES} - NOT_IMPORTED):
        if not name.startswith("_"):
            module = _import(name)
            if module is not None:
                rows.update(_documented(name, module))
    return [
        {"id": name, "question": f"What does `{name}` do?", "answer": answer}
        for name, answer in sorted(rows.items())
    ]


def write_demo_pool(
    path: Path, n_rows: int, seed: int, *, held_out: Path | None = None, n_held_out: int = 0
) -> int:
    """Write a sample of the demo pool as JSONL.

    Args:
        path: The file.
        n_rows: Rows of the sample.
        seed: Of the sample.
        held_out: A file for other rows, whose answers do not stand in the sample.
        n_held_out: Rows of it.

    Returns:
        Rows of the whole pool.

    Raises:
        ValueError: If more rows are asked for than there are.
    """
    # In a process of its own: torch and others replace functions of the standard library.
    shown = subprocess.run(
        [sys.executable, "-m", "gradsift.data.demo_pool"], capture_output=True, check=True
    )
    rows = json.loads(shown.stdout)
    if n_rows > len(rows):
        raise ValueError(
            f"{n_rows} rows were asked for; this Python's documentation has {len(rows)}."
        )
    rng = random.Random(seed)
    sample = rng.sample(rows, n_rows)
    _write(path, sample)
    if held_out is not None:
        answers = {row["answer"] for row in sample}
        others = [row for row in rows if row["answer"] not in answers]
        _write(held_out, rng.sample(others, min(n_held_out, len(others))))
    return len(rows)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _import(name: str) -> ModuleType | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None  # Not built on this platform.


def _documented(module_name: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    # Where its own things come from: itself, its package, or its private C implementation.
    own = (module.__name__, module_name.split(".")[0], "_")
    public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in public:
        thing = getattr(module, name, None)
        if not (inspect.isroutine(thing) or inspect.isclass(thing)):
            continue
        if not str(getattr(thing, "__module__", module_name)).startswith(own):
            continue
        yield from _answer(f"{module_name}.{name}", thing)
        if inspect.isclass(thing):
            for method_name, method in sorted(vars(thing).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield from _answer(f"{module_name}.{name}.{method_name}", method)


def _answer(name: str, thing: object) -> Iterator[tuple[str, str]]:
    text = inspect.getdoc(thing)
    if text and text.strip():
        yield name, text.strip()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(demo_rows()))
