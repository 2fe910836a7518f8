"""Append parts to a gradient store; resume one that was interrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from gradsift.errors import GradsiftError
from gradsift.files import make_folder, remove, remove_leftovers, require_no_link, writing
from gradsift.seals import read_parquet, sha256_of, write_parquet
from gradsift.store.manifest import (
    PARTS_FOLDER,
    Manifest,
    Part,
    load_manifest,
    record_schema,
    require_no_others,
    require_same_identity,
)
from gradsift.store.reader import fault_of

LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)


class StoreWriter:
    """The writer of a run folder's gradient store, inside a `with` block.

    A part counts once the manifest names it; whatever else lies in the folder is left over from a
    killed run and is removed. Writing the same part twice gives the same store.

    Where several processes train together each has a writer, and all call the same methods in the
    same order: each writes its own parts, the first one locks the folder and writes the manifest.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        content_width: int,
        sketch_size: int,
        rank: int = 0,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
    ):
        """Nothing is read or written yet.

        Args:
            folder: The run folder.
            manifest: What is to be captured; an existing store must have the same identity.
            content_width: Entries of the content features.
            sketch_size: Entries of a sketch.
            rank: Of this process; 0 is the first.
            gather: Gives every process the values of all, in the order of ranks.
        """
        self._folder = folder
        self._manifest = manifest
        self._schema = record_schema(content_width, sketch_size)
        self._lock = FileLock(folder / LOCK_NAME)
        self._rank, self._gather = rank, gather

    def __enter__(self) -> StoreWriter:
        """Lock the folder and resume its store, unless that was made with other settings."""
        error = None
        if self._rank == 0:
            try:
                self._open()
            except GradsiftError as caught:
                error = caught
        (message, *_) = self._gather(None if error is None else str(error))
        if message is not None:
            raise error or GradsiftError(message)
        if self._rank > 0:
            self._manifest = load_manifest(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the folder."""
        self._lock.release()

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands on disk."""
        return self._manifest

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._rank

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of ranks."""
        return self._gather(value)

    def recorded_ids(self) -> set[str]:
        """Return the instances that the parts named in the manifest hold."""
        paths = [self._folder / PARTS_FOLDER / part.file for part in self._manifest.parts]
        expected = [self._schema.field("instance_id")]
        tables = [read_parquet(path, ["instance_id"], expected) for path in paths]
        columns = [table["instance_id"] for table in tables]
        return {instance_id for column in columns for instance_id in column.to_pylist()}

    def keep_until(self, step: int) -> None:
        """Forget the parts with records taken after `step` updates: training resumes there."""
        kept = tuple(part for part in self._manifest.parts if part.last_step <= step)
        self._save(kept, complete=False)
        self._remove_unnamed()
        self._gather(None)

    def drop_damaged(self) -> Part | None:
        """Forget the first part that is missing or damaged, and all after it; return that part."""
        parts, n_whole = self._manifest.parts, None
        if self._rank == 0:
            n_whole = self._count_whole(parts)
        (n_whole, *_) = self._gather(n_whole)
        if n_whole == len(parts):
            return None
        self._save(parts[:n_whole], complete=False)
        self._remove_unnamed()
        self._gather(None)
        return parts[n_whole]

    def _count_whole(self, parts: Sequence[Part]) -> int:
        for at, part in enumerate(parts):
            if (fault := fault_of(self._folder, part)) is not None:
                logger.warning(
                    f"{self._folder / PARTS_FOLDER / part.file}: this part of the gradient store "
                    f"{fault}: it and later parts are recorded again"
                )
                return at
        return len(parts)

    def append(
        self,
        records: Sequence[dict[str, object]],
        *,
        last_step: int,
        about: dict[str, object],
        complete: bool = False,
    ) -> None:
        """Write one part and name it in the manifest.

        Args:
            records: Values by column, see `record_schema`.
            last_step: Optimizer updates made after the last of these records.
            about: What to add to, or replace in, the manifest's `about`.
            complete: Whether these are the last records of the store.
        """
        part = self._write_part(records, last_step) if records else None
        parts = (*self._manifest.parts, *(part for part in self._gather(part) if part is not None))
        about = {**self._manifest.about, **about}
        self._manifest = replace(self._manifest, about=about, parts=parts)
        if complete:
            n_recorded = len(self.recorded_ids())
            if self._manifest.n_instances is None:
                self._manifest = replace(self._manifest, n_instances=n_recorded)
            expected = self._manifest.n_instances
            assert n_recorded == expected, f"{n_recorded} instances recorded, {expected} expected"
        self._save(parts, complete=complete)
        self._gather(None)  # No process goes on to read before the manifest is written.

    def _write_part(self, records: Sequence[dict[str, object]], last_step: int) -> Part:
        number = len(self._manifest.parts)
        name = f"part-{number:05d}{f'-{self._rank}' if self._rank else ''}.parquet"
        path = self._folder / PARTS_FOLDER / name
        write_parquet(path, pa.Table.from_pylist(list(records), schema=self._schema))
        return Part(name, len(records), last_step, sha256_of(path))

    def _open(self) -> None:
        make_folder(self._folder)
        with writing(self._folder / LOCK_NAME):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise GradsiftError(
                    f"{self._folder}: another gradsift is writing here. Wait for it, or use "
                    "another `out` folder."
                ) from None
        try:
            self._resume()
        except BaseException:
            self._lock.release()
            raise

    def _resume(self) -> None:
        existing = load_manifest(self._folder)
        if existing is None:
            require_no_others(self._folder)
            self._save((), complete=False)
        else:
            require_same_identity(self._folder, existing.identity, self._manifest.identity)
            self._manifest = existing
        remove_leftovers(self._folder)
        self._remove_unnamed()

    def _save(self, parts: tuple[Part, ...], *, complete: bool) -> None:
        self._manifest = replace(self._manifest, parts=parts, complete=complete)
        if self._rank == 0:
            self._manifest.save(self._folder)

    def _remove_unnamed(self) -> None:
        if self._rank > 0:
            return
        named = {part.file for part in self._manifest.parts}
        folder = self._folder / PARTS_FOLDER
        require_no_link(folder)
        # Whatever else is called otherwise is none of ours.
        for path in folder.glob("part-*.parquet"):
            if path.name not in named:
                remove(path)
