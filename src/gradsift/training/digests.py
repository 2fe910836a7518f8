"""SHA-256 of every file of a folder, and what differs from it later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gradsift.seals import sha256_of


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a folder's files, by their names in it."""
    return {name: sha256_of(folder / name) for name in sorted(files_of(folder))}


def files_of(folder: Path) -> set[str]:
    """Return what is in a folder and its subfolders, by name in it; links are not followed."""
    # rglob follows no links to folders, and a link to nothing is there, too.
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix() for path in paths}


def first_damage(
    folder: Path, digests: Mapping[str, str] | None, *, ignored: Iterable[str] = ()
) -> str | None:
    """Return which file of a folder is not as its digest says, and how; None if all are.

    A file that has no digest is not as it says, nor is a link: it may be another file tomorrow.
    Without any digests only links are found.
    """
    found = files_of(folder) - set(ignored)
    for name in sorted(found | (digests or {}).keys()):
        path = folder / name
        if name not in found:
            return f"{path} is missing"
        if path.is_symlink():
            return f"{path} is a symbolic link"
        if not path.is_file():
            return f"{path} is no ordinary file"
        if digests is None:
            continue
        if name not in digests:
            return f"{path} was not there when it was saved"
        if (digest := sha256_of(path)) != digests[name]:
            return (
                f"{path} was changed or damaged (SHA-256 is {digest[:12]}…, it was "
                f"{digests[name][:12]}…)"
            )
    return None
