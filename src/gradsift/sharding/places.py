"""Where outputs of tasks lie: a local folder, or a URL of an object store; whole or not there.

An output is a folder of files and, written last, a marker that names them with their digests.
Local folders are put in place in one step; on an object store the marker is what makes it whole.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.errors import GradsiftError
from gradsift.files import remove, whole_folder
from gradsift.seals import sha256_of, short_sha256
from gradsift.wording import first_line, short

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MARKER = "complete.json"
# Markers are small; what is not is none.
_MOST_BYTES = 2**24


def open_place(root: str) -> Place:
    """Return the place that a path or URL names.

    Raises:
        GradsiftError: If it is a URL that cannot be opened.
    """
    if "://" not in root:
        return LocalPlace(Path(root))
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise GradsiftError(
            f"{short(root)}: cannot be opened ({first_line(error)}). URLs need the package fsspec "
            "and that of their protocol, such as s3fs for s3://."
        ) from error
    return RemotePlace(filesystem, path.rstrip("/"), root)


class Place:
    """A folder of outputs, by name."""

    def digest(self, name: str) -> str | None:
        """Return the digest of an output's marker, None where it is not whole."""
        marker = self._marker(name)
        return None if marker is None else short_sha256(marker, 64)

    def inputs(self, name: str) -> Mapping[str, str]:
        """Return the digests of what an output was made from."""
        return self._said(name)["inputs"]

    @contextmanager
    def writing(self, name: str, inputs: Mapping[str, str]) -> Generator[Path, None, None]:
        """Let an output be written into a local folder, then put it in its place, with its marker."""
        raise NotImplementedError

    def folder(self, name: str) -> Path:
        """Return a local folder that holds an output, compared with its digests once.

        Raises:
            GradsiftError: If it is not whole, or was changed; saying which file.
        """
        raise NotImplementedError

    def forget(self, name: str) -> None:
        """Remove an output."""
        raise NotImplementedError

    def _marker(self, name: str) -> str | None:
        raise NotImplementedError

    def _said(self, name: str) -> Mapping[str, Any]:
        marker = self._marker(name)
        try:
            said = json.loads(marker or "")
            files, inputs = said["files"], said["inputs"]
            assert all(isinstance(one, str) for one in (*files, *files.values(), *inputs.values()))
            assert not any(".." in one.split("/") or one.startswith("/") for one in files)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise _damaged(name, f"{MARKER} says something else than an output") from error
        return said


class LocalPlace(Place):
    """A folder of a file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._compared: dict[str, str] = {}

    @contextmanager
    def writing(self, name: str, inputs: Mapping[str, str]) -> Generator[Path, None, None]:
        """See `Place`."""
        with whole_folder(self.root / name, replace=True) as folder:
            yield folder
            (folder / MARKER).write_text(_marker_of(folder, inputs), encoding="utf-8")
        self._compared.pop(name, None)

    def folder(self, name: str) -> Path:
        """See `Place`."""
        marker = self._marker(name)
        if self._compared.get(name) != marker or marker is None:
            _compare(name, self.root / name, self._said(name)["files"])
            self._compared[name] = str(marker)
        return self.root / name

    def forget(self, name: str) -> None:
        """See `Place`."""
        self._compared.pop(name, None)
        remove(self.root / name)

    def _marker(self, name: str) -> str | None:
        path = self.root / name / MARKER
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None


class RemotePlace(Place):
    """A prefix of an object store; outputs are copied to a scratch folder when they are read."""

    def __init__(self, filesystem: AbstractFileSystem, path: str, url: str) -> None:
        self.filesystem, self.path, self.url = filesystem, path, url
        self._scratch = tempfile.TemporaryDirectory(prefix="gradsift-")
        self._copies: dict[str, str] = {}

    @contextmanager
    def writing(self, name: str, inputs: Mapping[str, str]) -> Generator[Path, None, None]:
        """See `Place`."""
        with tempfile.TemporaryDirectory(prefix="gradsift-") as made:
            folder = Path(made)
            yield folder
            marker = _marker_of(folder, inputs)
            # Without its marker, what is there counts as nothing while files are replaced.
            self.forget(name)
            for file in _files_in(folder):
                self.filesystem.put_file(str(folder / file), f"{self.path}/{name}/{file}")
            self.filesystem.pipe_file(f"{self.path}/{name}/{MARKER}", marker.encode())

    def folder(self, name: str) -> Path:
        """See `Place`."""
        marker, folder = self._marker(name), Path(self._scratch.name, name)
        if self._copies.get(name) != marker or marker is None:
            files = self._said(name)["files"]
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.filesystem.get_file(f"{self.path}/{name}/{file}", str(folder / file))
                except FileNotFoundError as error:
                    raise _damaged(f"{self.url}/{name}", f"{file} is missing") from error
            _compare(f"{self.url}/{name}", folder, files)
            self._copies[name] = str(marker)
        return folder

    def forget(self, name: str) -> None:
        """See `Place`."""
        self._copies.pop(name, None)
        marker = f"{self.path}/{name}/{MARKER}"
        self.filesystem.invalidate_cache()
        if self.filesystem.exists(marker):
            self.filesystem.rm_file(marker)
        if self.filesystem.exists(f"{self.path}/{name}"):
            self.filesystem.rm(f"{self.path}/{name}", recursive=True)

    def _marker(self, name: str) -> str | None:
        # Others may have written since it was listed.
        self.filesystem.invalidate_cache()
        try:
            content = self.filesystem.cat_file(f"{self.path}/{name}/{MARKER}")
        except FileNotFoundError:
            return None
        return content.decode("utf-8", errors="replace")


def _marker_of(folder: Path, inputs: Mapping[str, str]) -> str:
    files = {file: sha256_of(folder / file) for file in _files_in(folder)}
    return json.dumps({"files": files, "inputs": dict(sorted(inputs.items()))}, indent=1)


def _files_in(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _compare(name: str, folder: Path, files: Mapping[str, str]) -> None:
    for file, digest in files.items():
        path = folder / file
        if not path.is_file() or path.is_symlink():
            raise _damaged(name, f"{file} is missing")
        if sha256_of(path) != digest:
            raise _damaged(name, f"{file} was changed or damaged")


def _damaged(name: str, what: str) -> GradsiftError:
    return GradsiftError(
        f"{name}: this output of a task is not what was written: {what}. Run the same command "
        "again, which makes it anew."
    )
