"""The documentation says what the code does.

`python tests/test_docs.py` rewrites docs/cli.md and the tables of docs/trainer-configs.md.
"""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent


LOOP_OF_ONES_OWN = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("MODEL")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ids = torch.randint(6, 262, (10, 8), generator=torch.Generator().manual_seed(0))
batches = [
    {"input_ids": i, "labels": i, "attention_mask": torch.ones_like(i), "row": r}
    for i, r in zip(ids.split(5), torch.arange(10).split(5))
]
"""


def command_line_reference() -> str:
    from gradsift.cli.main import app
    from gradsift.cli.options import SETTINGS

    parts = [
        "# Command line\n",
        "Written from `--help` by `python tests/test_docs.py`; a test compares the two.\n",
    ]
    for command in ((), *((name,) for name in SETTINGS)):
        shown = CliRunner().invoke(
            app, [*command, "--help"], env={"COLUMNS": "100", "TERM": "dumb"}, prog_name="gradsift"
        )
        text = "\n".join(line.rstrip() for line in shown.stdout.strip("\n").splitlines())
        title = " ".join(("gradsift", *command))
        parts.append(f"## {title}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def test_the_command_line_reference_is_up_to_date():
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == command_line_reference()


STUB = """\
# Written from the signatures and config.py by `python tests/test_docs.py`; a test compares the two.
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import Trainer

from gradsift.progress import Progress
from gradsift.version import __version__ as __version__
"""


def type_stub() -> str:
    import gradsift

    classes, functions = [], []
    for name, module in gradsift.PUBLIC.items():
        thing = getattr(gradsift, name)
        if inspect.isclass(thing):
            classes.append(f"from gradsift.{module} import {name} as {name}")
        else:
            functions.append(f"def {name}({parameters_of(thing)}) -> {returned(thing)}: ...")
    return "\n".join([STUB.rstrip(), *classes, "", *functions, ""])


def parameters_of(function) -> str:
    parts, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        default = "" if parameter.default is parameter.empty else " = ..."
        parts.append(f"{parameter.name}: {parameter.annotation}{default}")
    return ", ".join(parts)


def returned(function) -> str:
    return inspect.signature(function).return_annotation


def test_the_type_stub_is_up_to_date():
    assert (ROOT / "src/gradsift/__init__.pyi").read_text(encoding="utf-8") == type_stub()


def test_the_package_lists_its_names():
    import gradsift

    assert dir(gradsift) == sorted(["__version__", *gradsift.PUBLIC])
    for name in gradsift.PUBLIC:
        assert inspect.getdoc(getattr(gradsift, name)), name
    with pytest.raises(AttributeError, match=r"is now called gradsift\.reference_losses"):
        gradsift.losses  # ruff: ignore[useless-expression]


TABLES = "<!-- tables: written by `python tests/test_docs.py` -->\n"


def trainer_configs_page() -> str:
    from gradsift.trainer_configs import axolotl, trl
    from gradsift.trainer_configs.translate import TOOLS

    page = (ROOT / "docs/trainer-configs.md").read_text(encoding="utf-8")
    entries = {"axolotl": axolotl.ENTRY_KEYS, "trl": trl.ENTRY_KEYS}
    parts = [page.partition(TABLES)[0] + TABLES]
    for tool in TOOLS:
        parts.append(f"## {tool.name}\n")
        parts.append(keys_tables(tool.keys))
        if tool.name in entries:
            parts.append(f"### {tool.name}: an entry of `datasets`\n")
            parts.append(keys_tables(entries[tool.name]))
    return "\n".join(parts)


def keys_tables(keys) -> str:
    from gradsift.trainer_configs.keys import Decided, Joint, OneOf, Refused, Setting

    becomes, decided, refused = {}, {}, {}
    for name, key in keys.items():
        if isinstance(key, Setting | Joint):
            becomes.setdefault(key.to, []).append(name)
        elif isinstance(key, OneOf):
            ends = [f"{word(value)}{arrow(end)}" for value, end in key.values.items()]
            becomes.setdefault(f"{', '.join(ends)}; others refused", []).append(name)
        elif isinstance(key, Decided):
            decided.setdefault(key.why, []).append(name)
        elif isinstance(key, Refused):
            refused.setdefault(key.why, []).append(name)
    return "\n".join(
        [
            table("key", "becomes", becomes),
            table("decided, or of no consequence", "why", decided),
            table("refused", "why, and what to do", refused),
        ]
    )


def word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def arrow(settings) -> str:
    return "".join(f" → {name} {word(value)}" for name, value in settings.items())


def table(left, right, rows) -> str:
    lines = [f"| {left} | {right} |", "| --- | --- |"]
    lines += [f"| {', '.join(f'`{key}`' for key in keys)} | {end} |" for end, keys in rows.items()]
    return "\n".join(lines) + "\n"


def test_the_tables_of_trainers_keys_are_up_to_date():
    page = (ROOT / "docs/trainer-configs.md").read_text(encoding="utf-8")
    assert page == trainer_configs_page()


def test_every_reason_is_documented():
    from gradsift.data.example import DROP_REASONS

    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text, flags=re.MULTILINE))
    assert rows == DROP_REASONS


def test_every_strategy_is_documented():
    from gradsift.selection.strategies.catalogue import STRATEGIES

    page = (ROOT / "docs/strategies.md").read_text(encoding="utf-8")
    for name in STRATEGIES:
        assert f"`{name}`" in page, name


def test_every_score_is_documented():
    from gradsift.selection.scores import SCORES

    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    for name in SCORES:
        assert re.search(rf"^\| `{name}`[ |]", page, flags=re.MULTILINE), name


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


FILES = "<!-- files: written by `python tests/test_docs.py` -->\n"
END_OF_FILES = "<!-- end of files -->\n"


def architecture_page() -> str:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(FILES)
    return (
        before
        + FILES
        + "\n```\n"
        + files_and_rooms()
        + "```\n\n"
        + END_OF_FILES
        + rest.partition(END_OF_FILES)[2]
    )


def files_and_rooms() -> str:
    """Each folder and file under its first line, those without a folder first."""
    root, lines = ROOT / "src/gradsift", []
    paths = [path for path in root.rglob("*.py") if path.name not in {"__main__.py", "version.py"}]
    for path in sorted(paths, key=lambda path: (len(path.parts) > len(root.parts) + 1, path)):
        place = path.relative_to(root)
        depth = len(place.parts) - 1
        name = f"{place.stem}.py" if place.stem != "__init__" else f"{place.parent.name}/"
        if place.stem == "__init__":
            if not depth:
                continue
            depth -= 1
            if depth == 0:
                lines.append("")
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")[0]
        lines.append(f"{'  ' * depth}{name:{24 - 2 * depth}}{says}")
    return "\n".join(lines).strip("\n") + "\n"


def test_the_architecture_lists_every_file():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert page == architecture_page()


def test_the_tables_of_the_evidence_are_the_experiments_own(tmp_path):
    page = tmp_path / "evidence.md"
    page.write_bytes((ROOT / "docs/evidence.md").read_bytes())
    subprocess.run([sys.executable, str(ROOT / "experiments/tables.py"), str(page)], check=True)
    assert page.read_bytes() == (ROOT / "docs/evidence.md").read_bytes()


def test_the_evidence_on_clean_pools_is_the_experiments_own():
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "experiments/learn_and_forget.py"),
            "table",
            "--results",
            str(ROOT / "experiments/results/learn_and_forget"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert done.stdout.strip() in (ROOT / "docs/evidence.md").read_text(encoding="utf-8")


def test_the_simulated_intervals_in_the_docs_are_the_experiments_own():
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "experiments/intervals.py"),
            "table",
            "--results",
            str(ROOT / "experiments/results/intervals.json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    page = (ROOT / "docs/comparing.md").read_text(encoding="utf-8")
    assert f"<!-- intervals -->\n{done.stdout}<!-- /intervals -->" in page


def test_the_commands_of_the_readme_work(tmp_path, monkeypatch, capsys):
    """With a tiny model in place of the hub's, and a file of ten rows."""
    from test_cli import invoke
    from tiny import save_tiny

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model = save_tiny("model")
    rows = [{"prompt": f"what is {i}?", "response": f"it is {i * i}"} for i in range(10)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"what is {i}?", "response": f"{i}"} for i in range(20, 24)]
    Path("held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = [
        line.partition("#")[0].replace(" 5%", " 30%").replace("--seeds 3", "--seeds 1")
        for line in re.findall(r"^gradsift .*$", readme, flags=re.MULTILINE)
    ]
    assert len(commands) == 13
    for command in commands:
        if "compare" in command:
            command += " --limit 5 --set max_new_tokens=4"
        words = command.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model).split()
        words = ["line:2" if word == "ROW_ID" else word for word in words]
        # In this process: loading the libraries eleven times would be most of the time.
        code, out, err = invoke(capsys, *words[1:])
        assert code == 0, (command, err)
        assert out
    snippet, loop = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    snippet = snippet.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model)
    code = snippet + LOOP_OF_ONES_OWN.replace("MODEL", model) + loop
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 selected + 5 rejected + 0 dropped = 10 rows") == 2


if __name__ == "__main__":
    (ROOT / "src/gradsift/__init__.pyi").write_text(type_stub(), encoding="utf-8")
    (ROOT / "docs/architecture.md").write_text(architecture_page(), encoding="utf-8")
    (ROOT / "docs/cli.md").write_text(command_line_reference(), encoding="utf-8")
    (ROOT / "docs/trainer-configs.md").write_text(trainer_configs_page(), encoding="utf-8")
