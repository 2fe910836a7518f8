"""What an error comes to: one line where the system is at fault, whatever wraps it."""

import errno
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pyarrow as pa
import pytest

from gradsift.cli.errors import told
from gradsift.errors import GradsiftError

MISTAKE = "mistake of gradsift's own"
COULD_NOT = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EFBIG, errno.ENAMETOOLONG, errno.EMFILE]  # fmt: skip


def wrapped(error, outer=None):
    outer = outer or RuntimeError("it did not work")
    try:
        try:
            raise error
        except type(error) as inner:
            raise outer from inner
    except type(outer) as caught:
        return caught


@pytest.mark.parametrize("number", COULD_NOT, ids=errno.errorcode.get)
@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["bare", "wrapped"])
def test_a_file_that_cannot_be_written(number, wrap, tmp_path):
    path = str(tmp_path / "no" / "part.parquet")
    code, line = told(wrap(OSError(number, os.strerror(number), path)), ["capture"])
    assert code == 2
    assert line.startswith(f"{path}: {os.strerror(number)} (")
    assert re.search(
        rf"\(\d+\.\d [GM]B free on the file system of {re.escape(str(path))}\)\. ", line
    )
    assert "\n" not in line
    assert MISTAKE not in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/12: file write failed"),
        Exception("No space left on device (os error 28)"),
        pa.ArrowException("IOError: Error writing bytes: No space left on device"),
        ValueError("could not save: Input/output error"),
    ],
    ids=lambda error: str(error)[:20],
)
@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["bare", "wrapped"])
def test_what_keeps_only_a_text(error, wrap, tmp_path):
    code, line = told(wrap(error), ["capture", "x", "--out", str(tmp_path)])
    assert code == 2
    assert line.startswith("a file could not be written: ")
    assert f"free on the file system of {tmp_path})" in line
    assert MISTAKE not in line


@pytest.mark.parametrize(
    "error", [MemoryError(), wrapped(MemoryError("Unable to allocate 9 TiB")),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")]
)  # fmt: skip
def test_no_memory(error):
    code, line = told(error, [])
    assert code == 2
    assert line.startswith("the memory is full (")


def test_what_was_met_on_the_way_is_not_what_is_told(tmp_path):
    # A file that was looked for in vain, before something else went wrong.
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "x"))
    code, line = told(wrapped(missing, KeyError("a")), [])
    assert (code, MISTAKE in line) == (1, True)
    assert told(missing, []) == (2, f"{tmp_path / 'x'}: No such file or directory")
    code, line = told(wrapped(OSError(errno.ENOSPC, "full", "x"), GradsiftError("own words")), [])
    assert (code, line) == (2, "own words")


@pytest.mark.parametrize(
    "name", ["a  b", "a\r\nb", "a\x85b", "a\u2028b", "a\x1cb", "a\tb"], ids=ascii
)
@pytest.mark.parametrize(
    "error", [lambda path: GradsiftError(f"{path}: is no file"),
              lambda path: FileNotFoundError(2, "is no file", path), PackageNotFoundError],
    ids=["own", "of the system", "a mistake"],
)  # fmt: skip
def test_a_name_stays_the_name(error, name):
    _, line = told(error(name), [])
    if error is PackageNotFoundError:  # Lines of libraries are joined.
        name = name.replace("\n", " ")
    assert name in line


@pytest.mark.parametrize(
    "arguments",
    [["settings"], ["settings", "--json"], ["--help"], ["run", "--help"], ["--version"]],
)
def test_a_full_stdout(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gradsift", *arguments], stdout=full, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr == "gradsift: stdout: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "said"),
    [
        (["settings", "--json"], 1, 2, "gradsift: stdout: closed: nothing could be shown\n"),
        (["--help"], 1, 2, "gradsift: stdout: closed: nothing could be shown\n"),
        (["settings", "nonsense"], 2, 2, ""),
        (["settings"], 2, 0, ""),
    ],
)
def test_a_closed_stream(arguments, closed, code, said):
    done = subprocess.run(
        [sys.executable, "-m", "gradsift", *arguments], capture_output=True, text=True,
        preexec_fn=lambda: os.close(closed),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("arguments", [["settings"], ["--help"]])
def test_a_reader_that_has_read_enough(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "gradsift", *arguments], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
