"""What is shown of progress: stages by name, the whole from the first moment, a time left."""

import logging
import os
import re
import sys
from types import SimpleNamespace

import pytest

from gradsift import console
from gradsift.errors import GradsiftError
from gradsift.progress import no_progress, stage, tell_kept
from terminal import in_terminal

SHOW = """
import time
from gradsift.console import talk_on_stderr
from gradsift.progress import stage
progress = stage(talk_on_stderr(), "trained on")
progress(12000, 50000, 3_000_000, 12_345_678)
time.sleep(0.5)
progress(12008, 50000, 3_002_000, 12_345_678)
time.sleep(0.5)
progress = stage(progress, "scored")
progress(0, 4, 0, 40)
progress(4, 4, 40, 40)
"""


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def display(clock):
    return console.talk_on_stderr()


def test_lines_tell_the_stage_and_a_time_left_of_this_session(display, clock, capsys):
    scored = stage(display, "scored")
    scored(16, 40, 1600, 4000)
    clock[0] += 20
    scored(20, 40, 2000, 4000)
    clock[0] += 1
    scored(21, 40, 2100, 4000)  # Too soon.
    stage(display, "answered")(0, 9, 0, 90)
    assert capsys.readouterr().err.splitlines() == [
        "16/40 rows scored, 1600 tokens",
        "20/40 rows scored, 2000 tokens, 20 tokens/s, 100 s left",
        "0/9 rows answered, 0 tokens",
    ]


def test_what_is_said_of_an_interrupted_stage(display):
    assert display.stopped() is None
    progress = stage(display, "")
    progress(0, 40, 0, 4000)
    progress(10, 40, 1000, 4000)
    again = "; the same command begins with them again (none is kept yet)"
    assert display.stopped() == "stopped after 10 of 40 rows" + again
    tell_kept(progress)
    progress(40, 40, 4000, 4000)
    said = "stopped after 40 of 40 rows; the same command resumes (10 of them are kept)"
    assert display.stopped() == said
    tell_kept(progress)
    said = "stopped after all 40 rows, which are kept; the same command goes on with what follows"
    assert display.stopped() == said
    stage(display, "answered")(0, 9, 0, 90)
    assert display.stopped() == "stopped after 0 of 9 rows answered" + again
    stage(display, "answered")(9, 9, 90, 90)
    tell_kept(display)
    assert "after all 9 rows answered, which are kept" in display.stopped()
    # What it begins with, it has from the disk.
    progress = stage(display, "scored")
    progress(4, 9, 40, 90)
    progress(5, 9, 50, 90)
    said = "stopped after 5 of 9 rows scored; the same command resumes (4 of them are kept)"
    assert display.stopped() == said


def test_a_function_of_the_callers_own_is_called_as_ever():
    calls = []
    progress = stage(lambda *counts: calls.append(counts), "scored")
    tell_kept(progress)
    progress(1, 2, 3, 4)
    assert calls == [(1, 2, 3, 4)]
    assert stage(no_progress, "scored") is no_progress


def test_the_bar_at_80_columns():
    _, _, shown = in_terminal(["-c", SHOW])
    own = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
    lines = [own.sub("", line) for line in re.split(r"[\r\n]", shown)]
    assert max(map(len, lines)) == 80
    first = next(line for line in lines if line)
    assert "12000/50000 rows trained on" in first
    assert any(re.search(r"\d tokens/s .* \d:\d\d:\d\d left", line) for line in lines)
    assert any("4/4 rows scored" in line for line in lines)
    # The cursor is there at the end.
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_notes_from_data_are_one_line(display, capsys):
    logging.getLogger("gradsift").warning("of \x1b[31m\nwarning: forged")
    assert capsys.readouterr().err == "warning: of \\x1b[31m\\nwarning: forged\n"


@pytest.mark.parametrize("name", console.HARMLESS)
def test_only_what_is_harmless_is_silenced(display, name, caplog):
    logger = logging.getLogger(name)
    logger.warning(console.HARMLESS[name] + " And more.")
    logger.warning("Something else failed")
    assert [record.getMessage() for record in caplog.records] == ["Something else failed"]


def test_the_others_of_several_processes_are_silent(monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert console.talk_on_stderr() is no_progress


@console.shows_progress
def three_rows(*, progress, fail=False):
    """What every function of the package does with `progress`."""
    progress = stage(progress, "scored")
    for n in range(4):
        progress(n, 3, 10 * n, 30)
        if fail:
            raise ValueError("on the way")
    stage(progress, "answered")(3, 3, 9, 9)


def test_in_python_progress_is_shown_unless_it_is_switched_off(capsys, monkeypatch):
    three_rows()
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in shown] == [
        "0/3 rows scored",
        "3/3 rows scored",
        "3/3 rows answered",
    ]
    three_rows(progress=False)
    calls = []
    three_rows(progress=lambda *counts: calls.append(counts))
    assert len(calls) == 5
    for progress in (3, "no", None):
        with pytest.raises(GradsiftError, match=r"`progress` is .* expected True, False or a"):
            three_rows(progress=progress)
    monkeypatch.setenv("RANK", "1")
    three_rows()
    assert capsys.readouterr().err == ""


def test_in_a_notebook_the_bars_are_tqdms(capsys, monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(ValueError, match="on the way"):
        three_rows(fail=True)
    three_rows()
    # Each bar ends its line: none stands in that of another, and none is left open.
    bars = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    done = re.findall(r"rows (\w+): +\d+%\|.*?\| (\d/3)", "\n".join(bars))
    assert done == [("scored", "0/3"), ("scored", "3/3"), ("answered", "3/3")]
    assert bars[-1] == ""


def test_a_bar_in_a_terminal_gives_the_cursor_back_where_a_function_fails():
    program = "import test_console; test_console.three_rows(fail=True)"
    _, _, shown = in_terminal(["-c", program], PYTHONPATH=os.pathsep.join(sys.path))
    assert "0/3 rows scored" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0
    assert "ValueError: on the way" in shown
