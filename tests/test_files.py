import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradsift.errors import GradsiftError
from gradsift.files import (
    make_folder,
    remove,
    remove_leftovers,
    require_no_link,
    whole_folder,
    write_atomically,
    write_text,
    writing,
)
from gradsift.seals import write_json


def broken(path):
    path.write_text("half")
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "file"
    write_text(path, "ä")
    with pytest.raises(GradsiftError, match=r"folder/file: cannot be written: No space.*B free\)"):
        write_atomically(path, broken)
    assert path.read_text(encoding="utf-8") == "ä"
    assert names(path.parent) == ["file"]


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("1")
        assert not folder.exists()
    with pytest.raises(OSError, match="No space"), whole_folder(folder, replace=True) as unfinished:
        broken(unfinished / "b")
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["a"]
    with whole_folder(folder, replace=True) as unfinished:
        (unfinished / "b").write_text("2")
    assert names(folder) == ["b"]
    with (
        pytest.raises(GradsiftError, match="folder: cannot be written: Directory not empty"),
        whole_folder(folder) as unfinished,
    ):
        (unfinished / "c").write_text("3")
    assert names(folder) == ["b"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "x"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed"),
    ],
)
def test_what_keeps_a_file_from_being_written_is_named(tmp_path, error):
    with (
        pytest.raises(GradsiftError, match=r"some file: cannot be written"),
        writing(tmp_path / "some file"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "/nowhere/else"), RuntimeError("a mistake")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_a_file_has_the_users_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(folder)
    (run / "file").symlink_to(folder / "file")
    (run / "nowhere").symlink_to(tmp_path / "not there")
    return folder


def fill(folder, **options):
    with whole_folder(folder, **options) as unfinished:
        (unfinished / "x").write_text("x")


@pytest.mark.parametrize(
    "attack",
    [
        lambda run: write_text(run / "link/file", "x"),
        lambda run: write_text(run / "link/deep/file", "x"),
        lambda run: write_json(run / "link/../link/file", {}),
        lambda run: make_folder(run / "link/new"),
        lambda run: make_folder(run / "nowhere/new"),
        lambda run: fill(run / "link/new"),
        lambda run: remove(run / "link/file"),
        lambda run: require_no_link(run / "link"),
    ],
)
def test_nothing_is_written_or_removed_behind_a_link(tmp_path, victim, attack):
    with pytest.raises(GradsiftError, match="is a link, or lies behind one"):
        attack(tmp_path / "run")
    assert names(victim) == ["file"]
    assert (victim / "file").read_text() == "mine"
    assert not (tmp_path / "not there").exists()


def test_a_link_itself_is_replaced_or_removed(tmp_path, victim):
    run = tmp_path / "run"
    write_text(run / "file", "x")
    write_text(run / "nowhere", "y")
    fill(run / "link", replace=True)
    assert [(run / name).is_symlink() for name in ("file", "nowhere", "link")] == [False] * 3
    (run / "again").symlink_to(victim)
    remove(run / "again")
    assert names(run) == ["file", "link", "nowhere"]
    assert (victim / "file").read_text() == "mine"


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path, victim):
    code = (
        "import os, sys, pathlib; from gradsift.files import *; p = pathlib.Path(sys.argv[1])\n"
        "with whole_folder(p / 'sub/b') as folder:\n"
        "    (folder / 'x').write_text('x')\n"
        "    write_atomically(p / 'a', lambda file: os._exit(0))"
    )
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    left = [path for path in run.rglob(".gradsift-*") if path.parent != victim]
    assert len(left) == 2
    (run / ".gradsift-0123456789abcdef.tmp").symlink_to(victim)
    (run / ".gradsift-mine.tmp").write_text("of the user")

    def look(file):
        remove_leftovers(tmp_path)
        assert file.exists()

    write_atomically(run / "mine", look)
    assert names(run) == [".gradsift-mine.tmp", "file", "link", "mine", "nowhere", "sub"]
    assert names(run / "sub") == []
    assert names(victim) == ["file"]


def test_a_run_folder_that_is_reached_by_a_link_is_written_to(tmp_path):
    # As `runs`, on a larger disk: the user's own link, resolved once.
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    write_text(Path(tmp_path / "runs" / "x").resolve() / "file", "x")
    assert (tmp_path / "disk/x/file").exists()
