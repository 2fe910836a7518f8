"""The rows that a run was captured from: where they are, and whether they may be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from gradsift.config import RunConfig
from gradsift.data.containers.lines import Place
from gradsift.data.containers.rows import fingerprint
from gradsift.data.containers.sources import (
    KEPT_LINES,
    KEPT_TABLE,
    LINES,
    PLAIN,
    Source,
    find_source,
    require_own_parts,
    require_plain_files,
    require_same_files,
)
from gradsift.data.dataset_configs import DatasetEntry
from gradsift.data.formats import Columns
from gradsift.data.pool import Pool, read_pool
from gradsift.errors import GradsiftError
from gradsift.signatures import is_signed
from gradsift.store.manifest import MANIFEST_NAME, Manifest
from gradsift.store.tables import POOL_NAME

T = TypeVar("T")


class CapturedRows:
    """What a run folder says of its rows, which may be anybody's word.

    Attributes:
        row_format: Of each of them.
        columns: What their fields are called.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        named: str | Sequence[str] | None,
        is_own: bool,
    ):
        """Look at nothing yet.

        Args:
            folder: The run folder.
            manifest: Its manifest.
            named: Where the user says that they are, if the user says it.
            is_own: Whether the run's settings are the user's own, not read from the folder.

        Raises:
            GradsiftError: If the manifest does not say.
        """
        about = manifest.about
        if not about.keys() >= {"data", "data_sha256", "row_format", "columns"}:
            raise GradsiftError(
                f"{folder}: does not say which rows it was recorded from. Record with `pool`, the "
                "rows from load_pool, to select some of them."
            )
        self._folder, self._about, self._identity = folder, about, manifest.identity
        self._named, self._is_own = named, is_own
        self.row_format: str = about["row_format"]
        # A stranger's may have any shape.
        self.columns = self._said("columns", Columns)
        self._captured = self._said("data", Source)

    def _said(self, key: str, kind: type[T]) -> T:
        try:
            return TypeAdapter(kind).validate_python(self._about[key])
        except ValidationError as error:
            raise GradsiftError(
                f"{self._folder / MANIFEST_NAME}: this is not a readable manifest (about.{key}: "
                f"{error.errors()[0]['msg']}). Restore it, or capture into a new folder."
            ) from None

    @cached_property
    def source(self) -> Source:
        """Where they are."""
        source = self._captured
        if self._named is None:
            return replace(source, name=kept_in(self._folder, source.name))
        names = [self._named] if isinstance(self._named, str) else [*self._named]
        split, data_config = source.split, source.data_config
        if all(Path(name).is_file() for name in names):
            split = data_config = None
        return find_source(names, split, data_config)

    @property
    def names(self) -> str:
        """What they are called, as a command needs it, whatever characters that has."""
        return _shown(_names_of(self.source))

    def require_unchanged(self, config: RunConfig | None) -> None:
        """Refuse rows that are not those of the capture, before any of them is read.

        Args:
            config: The run's settings as its folder has them, which must name the same; None if
                there are none.

        Raises:
            GradsiftError: If the folder alone names them, or if they changed or are not there any
                more.
        """
        source = self.source
        self._require_own()
        for part in source.parts or (source,):
            require_own_parts(part)
        if config is not None and self._named is None and not self._is_own:
            self._require_same_names(config)
        require_same_files(source)
        for part in source.parts or (source,):
            if part.container == "hub" or part.path.exists():
                continue
            raise GradsiftError(
                f"{part.name}: the input of this run is not there any more. Put it back, or say "
                "with `data` where it is; the selected rows are copied from it."
            )
        require_plain_files(source)
        found, expected = fingerprint(source), self._about["data_sha256"]
        if found != expected and self._named is not None:
            raise GradsiftError(
                f"{source.name}: is not what was captured (its SHA-256 is {found[:16]}…, expected "
                f"{expected[:16]}…). The rows of this run were in "
                f"{_shown(_names_of(self._captured))}."
            )
        if found != expected:
            raise GradsiftError(
                f"{source.name}: changed since the capture (SHA-256 is {found[:16]}…, the store "
                f"says {expected[:16]}…). Put the old file back, or capture again into a new "
                "folder."
            )

    def _require_own(self) -> None:
        """Refuse rows that neither this user named nor the folder holds.

        A folder from somebody else could name any file of the user's.
        """
        named = self._is_own or self._named is not None or self._lies_inside()
        if not named and not self._is_signed():
            raise GradsiftError(
                f"{self._folder}: was captured elsewhere, or by an earlier gradsift; its rows are "
                f"in {self.names}. If that is the file that is meant, give `data`; or run the "
                "same capture again, which makes it your own."
            )

    def _lies_inside(self) -> bool:
        """Return whether the rows are one plain file in the folder, which leads nowhere else."""
        source = self.source
        return (
            source.container in PLAIN
            and not (source.given or source.parts)
            and source.path.parent == self._folder
            and source.path.is_file()
            and not source.path.is_symlink()
        )

    def _is_signed(self) -> bool:
        signed = self._about.get("signed")
        return signed is not None and is_signed(what_is_signed(self._identity, self._about), signed)

    def _require_same_names(self, config: RunConfig) -> None:
        names = [config.data] if isinstance(config.data, str) else [*config.data]
        if config.dataset_info is None and names != [*_names_of(self.source)]:
            raise GradsiftError(
                f"{self._folder}: its config.yaml names the rows {_shown(names)}, its manifest "
                f"{self.names}. Give `data`, or restore the file that was changed."
            )

    def read(self, config: RunConfig) -> Pool:
        """Read the rows that the manifest accounts for, once it is sure that they are these."""
        self.require_unchanged(config)
        source, entry = self.source, None
        names = source.given or source.name
        if config.dataset_info is not None:
            # What it said is in the manifest; where it is may be anybody's word.
            entry = DatasetEntry(names, self.row_format, self.columns, source.split)
        where = {"split": source.split, "data_config": source.data_config}
        return read_pool(names, config.model_copy(update=where), entry=entry)


def what_is_signed(
    identity: Mapping[str, object], about: Mapping[str, object]
) -> dict[str, object]:
    """Return what a signature is of: which rows this user named, for which run.

    `pool_sha256` is that of `pool.parquet`, which says what bytes of them are copied.
    """
    return {
        "identity": identity,
        **{key: about.get(key) for key in ("data", "data_sha256", "pool_sha256")},
    }


def kept_in(folder: Path, data: Any) -> Any:
    """Return where rows are that are kept in a run folder, wherever it was when it was made."""
    kept = isinstance(data, str) and Path(data).name in (KEPT_TABLE, KEPT_LINES)
    here = folder / Path(data).name if kept else None
    return str(here) if here is not None and here.exists() else data


def _names_of(source: Source) -> Sequence[str]:
    return source.given or (source.name,)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def places_of(folder: Path, source: Source, rows: pa.Table) -> list[Place]:
    """Return where rows of the pool table lie.

    Raises:
        GradsiftError: If that is nowhere in the source.
    """
    in_file = pc.coalesce(rows["index_in_file"], rows["row"]).to_pylist()
    places = list(map(Place, in_file, *(rows[n].to_pylist() for n in ("start", "end", "file"))))
    containers = {part.label: part.container for part in source.parts or (source,)}
    last: dict[str | None, tuple[int, int]] = {}
    for place in places:
        # One after the other: bytes of lines, positions in a table.
        row, end = last.get(place.file, (-1, 0))
        fits = place.file in containers and place.row > row
        if fits and containers[place.file] in LINES:
            fits = place.start is not None and place.end is not None
            fits = fits and end <= place.start < place.end
        if not fits:
            raise GradsiftError(
                f"{folder / POOL_NAME}: damaged or changed (its rows do not lie one after the "
                f"other in {source.name}). Put the old one back, or run its capture command again, "
                "which writes it anew."
            )
        last[place.file] = (place.row, place.end or 0)
    return places
