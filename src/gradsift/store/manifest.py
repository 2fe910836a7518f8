"""Columns of the gradient store: one record for each (instance, layer).

The manifest: what made a gradient store, which parts it has, and their checksums.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from gradsift.errors import GradsiftError
from gradsift.terms import LAYERS, STATISTICS
from gradsift.utils import write_json

SCHEMA_VERSION = 3
STATUS_OK = "ok"
STATUS_NON_FINITE = "non_finite"


def record_schema(content_width: int, sketch_size: int) -> pa.Schema:
    """Return the schema of a part.

    Args:
        content_width: Entries of the content features; null in the records of the embedding, since
            they belong to the instance and stand once, in its `lm_head` record.
        sketch_size: Entries of a gradient sketch.

    Returns:
        The Arrow schema. `loss` is in nats for each response token; `el2n` is the mean of
        ‖softmax − one-hot‖₂ over the response tokens; `step` counts optimizer
        updates made before the gradient was taken; statistics are over all entries of the
        layer's V×d gradient, `std` is the population's.
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


MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One Parquet file of the store.

    Attributes:
        file: Its name inside the folder `gradients`.
        n_records: Its rows.
        last_step: The records in it were taken before this many optimizer updates were made.
        sha256: Of the file's bytes.
    """

    file: str
    n_records: int
    last_step: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """How a store was made.

    Attributes:
        identity: What must be equal for records to belong together: hashes of model, tokenizer,
            data and instances, the seed, the training settings, sizes of the sketch.
        about: What is worth knowing but may differ between two sittings: versions, paths, host.
        n_instances: How many instances the finished store holds; None while that is not known.
        layers: Which layers each instance has a record of.
        parts: The files, in order.
        complete: Whether every instance is recorded.
        schema_version: Of the columns.
    """

    identity: dict[str, object]
    about: dict[str, object]
    n_instances: int | None
    layers: tuple[str, ...] = LAYERS
    parts: tuple[Part, ...] = field(default=())
    complete: bool = False
    schema_version: int = SCHEMA_VERSION

    def save(self, folder: Path) -> None:
        """Write the manifest into a run folder, atomically.

        Args:
            folder: The run folder.
        """
        write_json(folder / MANIFEST_NAME, asdict(self))

    def with_parts(self, parts: tuple[Part, ...], *, complete: bool) -> Manifest:
        """Return the same manifest with other parts."""
        return replace(self, parts=parts, complete=complete)

    def with_n_instances(self, n_instances: int) -> Manifest:
        """Return the same manifest, now that the number is known."""
        return replace(self, n_instances=n_instances)

    def with_about(self, **about: object) -> Manifest:
        """Return the same manifest with some of `about` added or replaced."""
        return replace(self, about={**self.about, **about})


def load_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a run folder.

    Args:
        folder: The run folder.

    Returns:
        The manifest, or None where there is none.

    Raises:
        ValueError: If it cannot be read or belongs to another version of the schema.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            parts = tuple(Part(**part) for part in content["parts"])
            layers = tuple(content["layers"])
            return Manifest(**{**content, "parts": parts, "layers": layers})
    except (ValueError, TypeError, KeyError) as error:
        raise GradsiftError(
            f"{path}: this is not a readable manifest ({error}). Restore it, or capture into a new "
            "folder."
        ) from error
    raise GradsiftError(
        f"{path}: the store has schema version {version}, this gradsift reads {SCHEMA_VERSION}. "
        "Capture again into a new folder."
    )


def require_same_identity(
    folder: Path, found: dict[str, object], expected: dict[str, object]
) -> None:
    """Refuse to mix records that were made differently.

    Args:
        folder: The run folder, for the message.
        found: Identity in the manifest.
        expected: Identity of what is asked for now.

    Raises:
        ValueError: Naming every differing key with both values.
    """
    keys = sorted(found.keys() | expected.keys())
    different = [key for key in keys if found.get(key) != expected.get(key)]
    if different:
        lines = [
            f"{key}: the store has {found.get(key)!r}, now it is {expected.get(key)!r}"
            for key in different
        ]
        raise GradsiftError(
            f"{folder} was captured differently ({'; '.join(lines)}). Use the old settings, or "
            "another `out` folder."
        )
