"""The manifest: what made a gradient store, which parts it has, and their columns and checksums."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from gradsift.errors import GradsiftError
from gradsift.files import TEMPORARY
from gradsift.schema import migrated
from gradsift.seals import DamagedError, read_json, short_sha256, write_json
from gradsift.terms import LAYERS, STATISTICS
from gradsift.wording import first_line, short

MANIFEST_NAME = "manifest.json"
PARTS_FOLDER = "gradients"
# Version 3 is read too: it calls the column el2n error_norm, and some settings otherwise.
SCHEMA_VERSION = 4
# What else is in a run folder, written by whom it may.
_NAMES_IN_RUNS = (
    PARTS_FOLDER,
    "checkpoints",
    "config.yaml",
    "pool.parquet",
    "pool-data.arrow",
    "pool-data.jsonl",
    "neighbours.parquet",
    "losses",
    "self-written",
    "selections",
    "arms",
    "comparison.json",
    "comparison.md",
)
STATUS_OK = "ok"
STATUS_NON_FINITE = "non_finite"


def record_schema(content_width: int, sketch_size: int) -> pa.Schema:
    """Return the schema of a part: one record for each (instance, layer).

    `loss` is in nats for each response token; `el2n` is the mean of ‖softmax − one-hot‖₂ over the
    response tokens; `step` counts optimizer updates made before the gradient was taken; statistics
    are over all entries of the layer's V×d gradient, `std` is the population's. The content
    features belong to the instance and stand once, in its `lm_head` record; they are null in that
    of the embedding.
    """
    return pa.schema(
        [
            pa.field("instance_id", pa.string(), nullable=False),
            pa.field("layer", pa.string(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("loss", pa.float64(), nullable=False),
            pa.field("el2n", pa.float64(), nullable=False),
            pa.field("n_response_tokens", pa.int32(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in STATISTICS),
            pa.field("status", pa.string(), nullable=False),
            pa.field("content_features", pa.list_(pa.float32(), content_width)),
            pa.field("sketch", pa.list_(pa.float32(), sketch_size)),
        ]
    )


@dataclass(frozen=True)
class Part:
    """One Parquet file in PARTS_FOLDER.

    Its records were taken before `last_step` optimizer updates were made.
    """

    # A plain name: it is read from PARTS_FOLDER and from nowhere else.
    file: Annotated[str, StringConstraints(pattern=r"^part-\d+(-\d+)?\.parquet$")]
    n_records: int
    last_step: int
    sha256: str


class _About(BaseModel, extra="allow"):
    """What `about` may say; any of it may be absent."""

    data: dict[str, Any] = None
    data_sha256: str = None
    signed: str | None = None
    pool_sha256: str = None
    row_format: str = None
    columns: dict[str, Any] = None
    self_check: dict[str, Any] | None = None
    estimate: dict[str, Any] | None = None
    seconds: float = None
    n_steps_skipped: int = None
    model: str = None
    versions: dict[str, str] = None


@dataclass(frozen=True)
class Manifest:
    """How a store was made.

    Attributes:
        identity: What must be equal for records to belong together: hashes of model, tokenizer,
            data and instances, the seed, the training settings, sizes of the sketch.
        about: What is worth knowing but may differ between two sessions: versions, paths, host.
        n_instances: How many instances the finished store holds; None while that is not known.
        layers: Which layers each instance has a record of.
        parts: In order.
        complete: Whether every instance is recorded.
        schema_version: Of the columns.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    identity: dict[str, object]
    about: dict[str, object]
    n_instances: int | None
    layers: tuple[str, ...] = LAYERS
    parts: tuple[Part, ...] = field(default=())
    complete: bool = False
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """A digest of what must be equal for records to belong together."""
        return short_sha256(json.dumps(self.identity, sort_keys=True, default=str))

    def save(self, folder: Path) -> None:
        """Write the manifest into a run folder, atomically."""
        write_json(folder / MANIFEST_NAME, asdict(self))


def require_no_others(folder: Path) -> None:
    """Refuse a folder without a run that holds what a run would write over, or remove.

    Raises:
        GradsiftError: Naming what is there; empty folders are nothing.
    """
    if (folder / MANIFEST_NAME).exists():
        return
    there = [name for name in _NAMES_IN_RUNS if _holds_something(folder / name)]
    if there:
        raise GradsiftError(
            f"{folder} holds {', '.join(there)} but no run (no {MANIFEST_NAME}): that would be "
            "overwritten. Use another `out`."
        )


def _holds_something(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(not TEMPORARY.fullmatch(one.name) for one in path.iterdir())
    return os.path.lexists(path)


def load_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a run folder, if there is one."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    about = ""
    try:
        content = read_json(path)
        version = content["schema_version"]
        if version in (SCHEMA_VERSION, SCHEMA_VERSION - 1):
            renamed = _of_today(content) if version < SCHEMA_VERSION else {}
            manifest = TypeAdapter(Manifest).validate_python({**content, **renamed})
            about = "about."
            _About.model_validate(manifest.about)
            return manifest
    except DamagedError as error:
        raise GradsiftError(f"{error.found} Restore it, or capture into a new folder.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        is_shape = isinstance(error, ValidationError)
        what = about + _what_is_wrong(error) if is_shape else first_line(error)
        raise GradsiftError(
            f"{path}: this is not a readable manifest ({what}). Restore it, or capture into a new "
            "folder."
        ) from error
    raise GradsiftError(
        f"{path}: the store has schema version {short(version, 20)}, this gradsift reads "
        f"{SCHEMA_VERSION - 1} and {SCHEMA_VERSION}. Capture again into a new folder."
    )


def _what_is_wrong(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _of_today(content: dict[str, Any]) -> dict[str, object]:
    about = dict(content["about"])
    if check := about.get("self_check"):
        about["self_check"] = {"method" if k == "path" else k: v for k, v in check.items()}
    identity = migrated(content["identity"])
    return {"identity": identity, "about": about, "schema_version": SCHEMA_VERSION}


def require_same_identity(
    folder: Path, stored: dict[str, object], expected: dict[str, object]
) -> None:
    """Refuse to mix records that were made differently, naming every differing key."""
    keys = sorted(stored.keys() | expected.keys())
    different = [
        f"{key}: the store has {stored.get(key)!r}, now it is {expected.get(key)!r}"
        for key in keys
        if stored.get(key) != expected.get(key)
    ]
    if different:
        raise GradsiftError(
            f"{folder} was captured differently ({'; '.join(different)}). Use the old settings, or "
            "another `out` folder."
        )
