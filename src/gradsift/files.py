"""Files that are either whole or absent, written and removed through no link."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradsift.errors import GradsiftError
from gradsift.wording import first_line

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay.
    fcntl = None

TEMPORARY = re.compile(r"\.gradsift-[0-9a-f]{16}\.tmp")
# Of a file that a person writes: settings, a chat template.
MOST_SETTINGS = 16 << 20
# How libraries that are not written in Python say that the operating system refused.
_REFUSED = re.compile(
    r"os error \d+|\[errno \d+\]|no space left|i/o error|input/output error|disk quota|"
    r"file too large|PytorchStreamWriter|inline_container|file write failed|"
    r"iostream error|basic_ios",
    re.IGNORECASE,
)


GOES_ON = "What was done so far is kept: mend that, and the same command goes on."


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Tell of whatever keeps a file or folder from being written as one error that names it.

    Raises:
        GradsiftError: With the reason, and how much space is left there.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, GradsiftError) or not _is_refusal(error, path):
            raise
        raise GradsiftError(
            f"{path}: cannot be written: {_reason(error)} ({free_space(path)}). {GOES_ON}"
        ) from error


def _is_refusal(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError):
        # What names a file elsewhere could not read it.
        named = error.filename
        return not isinstance(named, str | os.PathLike) or _lies_in(Path(named), path.parent)
    return bool(_REFUSED.search(str(error)))


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else first_line(error)


def free_space(path: Path) -> str:
    """Return how much room the file system of a path has left, in words."""
    there = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return "free space unknown"
    return f"{free / 1e9:.1f} GB free" if free >= 1e8 else f"{free / 1e6:.1f} MB free"


def require_no_link(path: Path) -> None:
    """Refuse a place that is a link, or lies behind one.

    A run folder may come from a stranger: what it holds must not lead out of it. The folders that
    the user names are resolved before anything is written, so none of them is a link here.
    """
    absolute = os.path.abspath(path)
    if (real := os.path.realpath(absolute)) != absolute:
        raise GradsiftError(
            f"{path}: is a link, or lies behind one: it leads to {real}. Nothing is written or "
            "removed through links inside a run folder: put a real file or folder there."
        )


def require_plain(path: Path, what: str, *, most: int | None = None) -> None:
    """Refuse what is there and is no file, or is too large to be what it is taken for.

    A pipe would be waited for, and a device read for ever.

    Args:
        path: Of the file; that it is there is for whoever opens it.
        what: Names it in the message.
        most: Bytes.
    """
    if path.exists() and not path.is_file():
        raise GradsiftError(f"{what}: is no file, but a pipe, a device or a folder.")
    if most is not None and path.exists() and (size := path.stat().st_size) > most:
        raise GradsiftError(
            f"{what}: has {size / 1e6:.0f} MB, expected at most {most / 1e6:.0f} MB."
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, none of them through a link."""
    require_no_link(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, then put it in place in one step."""
    make_folder(path.parent)
    with _temporary(path, is_folder=False) as temporary, writing(path):
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Generator[Path, None, None]:
    """Let a folder be filled beside where it belongs, then put it in place in one step.

    Without `replace` it must be absent or empty. If filling fails, nothing of it stays.
    """
    make_folder(folder.parent)
    with _temporary(folder, is_folder=True) as unfinished:
        yield unfinished  # ruff: ignore[fallible-context-manager] - what fails there is to skip the rest.
        with writing(folder):
            sync_folder(unfinished)
            aside = _unused(folder) if replace and os.path.lexists(folder) else None
            if aside is not None:
                folder.rename(aside)
            unfinished.rename(folder)
            sync(folder.parent)
            if aside is not None:
                remove(aside)


@contextmanager
def _temporary(path: Path, *, is_folder: bool) -> Generator[Path, None, None]:
    """Make a file or folder beside a path, locked, and gone afterwards if it is still there."""
    temporary = _unused(path)
    # Never an existing file: that might be a link.
    with writing(path):
        if is_folder:
            temporary.mkdir()
            descriptor = os.open(temporary, os.O_RDONLY)
        else:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # As long as it is locked, somebody is at work on it.
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    finally:
        os.close(descriptor)
        _unlink(temporary)


def _unused(path: Path) -> Path:
    return path.with_name(f".gradsift-{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of processes that died at work below a folder."""
    if fcntl is None:
        return
    for place, folders, files in os.walk(folder):
        for name in filter(TEMPORARY.fullmatch, (*folders, *files)):
            path = Path(place, name)
            if path.is_symlink() or not _is_locked(path):
                _unlink(path)
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a link but not what it leads to, if there."""
    require_no_link(path.parent)
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except OSError as error:
                error.filename = str(path)  # It names what is in it by its last name alone.
                raise
        else:
            path.unlink(missing_ok=True)


def _unlink(path: Path) -> None:
    # What cannot be removed now is removed next time.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync_folder(path: Path) -> None:
    """Make sure that a folder's files are on the disk, before something says that they are."""
    for file in path.rglob("*"):
        if file.is_file():
            sync(file)
    sync(path)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do it for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
