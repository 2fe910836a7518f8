"""Where outputs of tasks lie: a folder each, whole or not there.

An output is a folder of files and, written last, a marker that names them with their digests. It
is put in place in one step.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradsift.errors import GradsiftError
from gradsift.files import whole_folder
from gradsift.seals import sha256_of, short_sha256

MARKER = "complete.json"
# Markers are small; what is not is none.
_MOST_BYTES = 2**24


class Place:
    """A folder of outputs, by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Markers of outputs that were compared with their digests.
        self._compared: dict[str, str] = {}

    def digest(self, name: str) -> str | None:
        """Return the digest of an output's marker, None where it is not whole."""
        marker = self._marker(name)
        return None if marker is None else short_sha256(marker, 64)

    def inputs(self, name: str) -> Mapping[str, str]:
        """Return the digests of what an output was made from."""
        return self._said(name)["inputs"]

    @contextmanager
    def writing(self, name: str, inputs: Mapping[str, str]) -> Generator[Path, None, None]:
        """Let an output be written into a folder, then put that in place, with its marker."""
        with whole_folder(self.root / name, replace=True) as folder:
            yield folder  # ruff: ignore[fallible-context-manager] - what fails there is to skip the rest.
            (folder / MARKER).write_text(_marker_of(folder, inputs), encoding="utf-8")
        self._compared.pop(name, None)

    def folder(self, name: str) -> Path:
        """Return the folder of an output, compared with its digests once.

        Raises:
            GradsiftError: If it is not whole, or was changed; saying which file.
        """
        marker = self._marker(name)
        if marker is None or self._compared.get(name) != marker:
            for file, digest in self._said(name)["files"].items():
                path = self.root / name / file
                if not path.is_file() or path.is_symlink():
                    raise self._damaged(name, f"{file} is missing")
                if sha256_of(path) != digest:
                    raise self._damaged(name, f"{file} was changed or damaged")
            self._compared[name] = str(marker)
        return self.root / name

    def _marker(self, name: str) -> str | None:
        path = self.root / name / MARKER
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _said(self, name: str) -> Mapping[str, Any]:
        marker = self._marker(name)
        try:
            said = json.loads(marker or "")
            files, inputs = said["files"], said["inputs"]
            texts = all(isinstance(one, str) for one in (*files, *files.values(), *inputs.values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(name, f"{MARKER} is missing, or no such file") from error
        # Paths within the output, and at least one.
        outside = any(".." in one.split("/") or one.startswith("/") for one in files)
        if not (texts and files) or outside:
            raise self._damaged(name, f"{MARKER} names no files of an output")
        return said

    def _damaged(self, name: str, what: str) -> GradsiftError:
        return GradsiftError(
            f"{self.root / name}: this output of a task is not what was written: {what}. Run the "
            "same command again, which makes it anew."
        )


def _marker_of(folder: Path, inputs: Mapping[str, str]) -> str:
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = sorted(path.relative_to(folder).as_posix() for path in paths)
    digests = {file: sha256_of(folder / file) for file in files}
    return json.dumps({"files": digests, "inputs": dict(sorted(inputs.items()))}, indent=1)
