"""No control character of data gets to the terminal: no sequence, no forged line, no reversal."""

import json
import os
import re
import subprocess
import sys

import pytest

from gradsift.wording import in_line, joined, printable, printable_json
from terminal import gradsift
from tiny import save_tiny

TITLE = "\x1b]0;taken\x07"
BAD = f"{TITLE}\x9b31m\u202egnp.exe\u2066\u2028\x7f\r\b\t\u200f\U000e0041"
FORGED = "a\nwarning: forged"
# Everything that none of gradsift's own lines has; \n is its own.
CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\U000e0000-\U000e007f]"
)


def rows():
    for i in range(12):
        answer = f"{BAD} number {i} " + "word " * (i % 4)
        row = {"id": f"{i}{BAD}", "prompt": f"{i} {BAD}?", "response": answer}
        yield {**row, "source": f"{BAD}{i % 2}", f"column {BAD}": i}
    yield {"id": FORGED, "prompt": "forged?", "response": "no", "source": FORGED}
    yield {"id": FORGED, "prompt": "again?", "response": "yes", "source": FORGED}
    yield {"id": "half\ud800", "prompt": "half\udfff", "response": "\ud83d", "source": "\udfff"}
    yield {"id": f"wrong{BAD}", "prompt": {BAD: 1}, "response": [BAD], "source": "x"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    save_tiny(folder / "model")
    (folder / f"data{TITLE}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return folder


@pytest.fixture(scope="module")
def captured(world):
    run = world / f"run{TITLE}\u202e"
    command = ["run", world / f"data{TITLE}.jsonl", "--model", world / "model", "--out", run]
    command += ["--budget", "50%", "--set", "warmup_fraction=0"]
    code, _, shown = gradsift(*command)
    assert code == 0, shown
    return run, shown


def said(*arguments, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "gradsift", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    return done.stdout.decode(), done.stderr.decode()


def require_clean(text):
    assert not CONTROL.search(text), text
    assert not any(line.startswith("warning: forged") for line in text.split("\n")), text


def test_a_run_in_a_terminal(captured):
    _, shown = captured
    # What rich writes for its bar.
    own = re.compile(r"\x1b\[(?:[\d;]*m|2K|1A|\?25[lh])|\r")
    require_clean("\n".join(own.sub("", line) for line in shown.split("\n")))
    assert r"\x1b]0;taken\x07" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "RUN", "line:3"),
        ("explain", "RUN", "line:13"),
        ("explain", "RUN", "line:15"),
        ("explain", "RUN", "line:16"),
        ("explain", "RUN", f"nobody{BAD}"),
        ("select", "RUN", "--budget", "3"),
        ("select", "RUN", "--budget", "3", "--quota", f"{BAD}=1"),
        ("select", "RUN", "--budget", "3", "--name", BAD),
        ("select", f"nowhere{BAD}", "--budget", "3"),
        ("strategies", "RUN", "--budget", "50%", "--strategy", "grads", "--strategy", "random"),
        ("stability", "RUN", "--budget", "50%"),
        ("settings", BAD),
        (BAD,),
        ("select", "RUN", f"--{BAD}"),
    ],
    ids=lambda words: " ".join(words[::2]).encode("ascii", "ignore").decode().split("\x1b")[0],
)
def test_what_is_said_of_it(captured, arguments):
    run, _ = captured
    arguments = [run if word == "RUN" else word for word in arguments]
    code, _, shown = gradsift(*arguments)
    require_clean(shown)
    assert "Traceback" not in shown
    out, err = said(*arguments, code=code)
    require_clean(out)
    require_clean(err)


def test_a_comparison_and_messages_of_libraries(world, captured):
    test = world / f"data{TITLE}.jsonl"
    out, err = said("compare", captured[0], "--test", test, "--dry-run")
    require_clean(out + err)
    (world / f"broken{TITLE}.jsonl").write_text(f'{{"{BAD}": \n')
    arguments = ["capture", world / f"broken{TITLE}.jsonl", "--model", "x", "--out", world / "no"]
    out, err = said("--debug", *arguments, code=2)
    require_clean(out + err)


def test_json_says_the_very_same(captured):
    run, _ = captured
    out, _ = said("explain", run, "line:3", "--json")
    require_clean(out)
    assert json.loads(out)["instance_id"] == f"2{BAD}"
    out, _ = said("explain", run, "line:3", "--json", PYTHONIOENCODING="ascii")
    assert out.isascii()
    assert json.loads(out)["instance_id"] == f"2{BAD}"


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C"}], ids=repr
)
def test_any_encoding(captured, environment):
    out, err = said("select", captured[0], "--budget", "3", **environment)
    assert "3 selected" in out
    out, err = said("compare", captured[0], "--test", "nowhere-é", code=2, **environment)
    assert "Traceback" not in err


ALL = "".join(map(chr, range(0x20))) + "\x7f\x80\x9b\u2028\u2029\u202e\u2069\udfff\ud800"
ALL += "\u061c\u200b\u200e\u200f\ufeff\U000e0041"


def test_every_control_character_is_escaped():
    assert CONTROL.sub("", in_line(ALL)) == in_line(ALL)
    assert "\n" not in in_line(ALL)
    assert in_line(ALL).isascii()
    assert printable("a\n" + ALL).split("\n", 1)[0] == "a"
    assert not CONTROL.search(printable(ALL))
    assert joined(["a\nb", "c"]) == "a\\nb\nc"
    # Other scripts, marks and signs stay as they are.
    assert in_line("naïve 数据 עברית 👩‍🔬 ±→") == "naïve 数据 עברית 👩‍🔬 ±→"


@pytest.mark.parametrize("unicode", [True, False])
def test_json_parses_to_the_same(unicode):
    text = printable_json(json.dumps({ALL: [ALL, "é"]}, ensure_ascii=not unicode))
    assert json.loads(text) == {ALL: [ALL, "é"]}
    assert not CONTROL.search(text)
    text.encode()
