"""What the command line says of itself, to people and to shells."""

import os
import subprocess
import sys

from typer.main import get_command

from gradsift.cli.main import app
from gradsift.cli.options import PANELS, SETTINGS
from test_cli import invoke

COMPLETED = """
import sys
from gradsift.__main__ import main
sys.argv = ["gradsift"]
try:
    main()
finally:
    heavy = {"torch", "transformers", "pyarrow", "pandas"} & sys.modules.keys()
    print("loaded:", *heavy, file=sys.stderr)
"""


def test_every_command_stands_in_a_panel_and_shows_how_it_is_called():
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(SETTINGS)
    group = get_command(app)
    assert group.list_commands(None) == listed
    for name, command in group.commands.items():
        assert f"gradsift {name}" in (command.epilog or ""), name


def test_flags_are_shown_as_taking_no_value(capsys):
    for words in (["select"], []):
        code, out, _ = invoke(capsys, *words, "--help")
        assert code == 0
        assert "--help" in out
        assert "<bool>" not in out


def test_a_shell_completes_and_waits_for_nothing_heavy():
    words = "gradsift select run --strategy gra"
    asked = {"_GRADSIFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETED], env={**os.environ, **asked},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "grads" in done.stdout.split(), done.stderr
    assert all(word.startswith("gra") for word in done.stdout.split())
    assert done.stderr.split() == ["loaded:"]
