"""Read a complete gradient store into arrays, checking it against its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradsift.errors import GradsiftError
from gradsift.html_tables import html_table
from gradsift.seals import DamagedError, require_columns, sha256_of, short_sha256
from gradsift.store.manifest import (
    MANIFEST_NAME,
    PARTS_FOLDER,
    STATUS_OK,
    Manifest,
    Part,
    load_manifest,
    record_schema,
)
from gradsift.terms import LAYERS, LM_HEAD, SHARDS, STATISTICS
from gradsift.wording import few, first_line, in_line

# What a column is called in stores of schema version 3.
# Shown of a store in a notebook.
L2_NORM = "l2_norm"
QUANTILES = (0, 0.25, 0.5, 0.75, 1)
_FORMER_NAMES = {"el2n": "error_norm"}


@dataclass(frozen=True)
class GradientStore:
    """A gradient store in memory; arrays are in the order of `instance_ids` (sorted).

    Attributes:
        folder: The run folder.
        manifest: How the store was made.
        instance_ids: N ids, sorted.
        finite: [N] bool; False where a gradient was not finite: the other arrays hold no usable
            number there.
        step: [N] optimizer updates made before the gradient was taken.
        loss: [N] instance loss, nats for each response token.
        el2n: [N] mean ‖softmax − one-hot‖₂ over the response tokens.
        n_response_tokens: [N].
        statistics: layer → statistic → [N] float64, for the layers that were captured.
    """

    folder: Path
    manifest: Manifest
    instance_ids: tuple[str, ...]
    finite: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    el2n: np.ndarray
    n_response_tokens: np.ndarray
    statistics: dict[str, dict[str, np.ndarray]]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        n_odd = int((~self.finite).sum())
        odd = f", {n_odd} of them not finite" if n_odd else ""
        layers = " and ".join(self.layers)
        return in_line(
            f"GradientStore({len(self.instance_ids)} instances{odd}, {layers}, in {self.folder})"
        )

    def _repr_html_(self) -> str:
        columns = {
            "loss": self.loss,
            "response tokens": self.n_response_tokens.astype(float),
            **{f"{layer}: {L2_NORM}": self.statistics[layer][L2_NORM] for layer in self.layers},
        }
        finite = {name: values[self.finite] for name, values in columns.items()}
        rows = [
            (name, *map(float, np.quantile(values, QUANTILES)))
            for name, values in finite.items()
            if len(values)
        ]
        head = ("of its instances", "least", "quarter", "median", "three quarters", "most")
        return html_table(repr(self), head, rows)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were captured."""
        return tuple(self.statistics)

    @cached_property
    def content_ND(self) -> np.ndarray:
        """[N, d] float32 content features, read when they are first asked for."""
        return self._matrix("content_features", LM_HEAD)

    @cached_property
    def sketches(self) -> dict[str, np.ndarray]:
        """Layer → [N, K²] float32 gradient sketches, read when they are first asked for."""
        return {layer: self._matrix("sketch", layer) for layer in self.layers}

    def about(self, key: str) -> Any:
        """Return what the manifest's `about` says under a key.

        Raises:
            GradsiftError: If it does not say.
        """
        if key not in self.manifest.about:
            raise GradsiftError(
                f"{self.folder / MANIFEST_NAME}: about.{key} is missing. Restore it, or capture "
                "into a new folder."
            )
        return self.manifest.about[key]

    def fingerprint(self) -> str:
        """Return a digest of everything that is stored; equal for equal stores."""
        parts = sorted(part.sha256 for part in self.manifest.parts)
        return short_sha256(" ".join(parts), length=64)

    def _matrix(self, column: str, layer: str) -> np.ndarray:
        names = ["instance_id", "layer", "step", column]
        parts = self.manifest.parts
        table = _joined(
            self.folder, [_part(self.folder, part, names, verify=False) for part in parts]
        )
        rows = _of_layer(self.folder, table, layer, len(self.instance_ids))
        if rows[column].null_count:
            raise _not_of_parts(self.folder, f"records of layer {layer} without {column}")
        return _as_matrix(rows[column])


def read_store(folder: str | Path) -> GradientStore:
    """Read a complete store.

    Args:
        folder: The run folder.

    Returns:
        The store.

    Raises:
        GradsiftError: If there is none, it is not complete, or a part is missing or was changed.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if manifest is None:
        if (folder / PARTS_FOLDER).exists():
            raise GradsiftError(
                f"{folder / MANIFEST_NAME}: is missing, without which the rest of this run says "
                "nothing. Restore it, or capture into a new folder."
            )
        if (folder / SHARDS).is_file():
            raise GradsiftError(
                f"{folder}: a pool in shards, which select and explain know. Everything else is "
                f"done with one of its shards, such as {folder}/shards/shard-00000/run."
            )
        raise GradsiftError(
            f"{folder}: no gradient store here (no {MANIFEST_NAME}). "
            f"Make one with: gradsift capture DATA --model MODEL --out {folder}"
        )
    layers = manifest.layers
    if LM_HEAD not in layers or not {*layers} <= {*LAYERS}:
        raise GradsiftError(
            f"{folder / MANIFEST_NAME}: layers are {few(layers)}, expected {LM_HEAD} and of "
            f"{few(LAYERS)}. Restore it, or capture into a new folder."
        )
    if not manifest.complete:
        recorded = sum(part.n_records for part in manifest.parts) // len(manifest.layers)
        if "loop" in manifest.identity:
            raise GradsiftError(
                f"{folder}: the recording of a training is not finished ({recorded} instances so "
                "far), and gradsift cannot resume a training of your own: train again, with "
                "another `out` folder, or remove this one."
            )
        expected = "?" if manifest.n_instances is None else manifest.n_instances
        raise GradsiftError(
            f"{folder}: the capture is not finished ({recorded} of {expected} instances). Run the "
            "same capture command again; it resumes."
        )
    names = ["instance_id", "layer", "step", "loss", "el2n", "n_response_tokens"]
    names += [*STATISTICS, "status"]
    table = _joined(folder, [_part(folder, part, names) for part in manifest.parts])
    by_layer = {layer: _of_layer(folder, table, layer, manifest.n_instances) for layer in layers}
    head = by_layer[LM_HEAD]
    ids = head["instance_id"].to_pylist()
    if any(part["instance_id"].to_pylist() != ids for part in by_layer.values()):
        raise GradsiftError(f"{folder}: not every instance has one record a layer. Capture again.")
    finite = np.ones(len(ids), dtype=bool)
    for part in by_layer.values():
        finite &= np.array([status == STATUS_OK for status in part["status"].to_pylist()])
    return GradientStore(
        folder=folder,
        manifest=manifest,
        instance_ids=tuple(ids),
        finite=finite,
        step=head["step"].to_numpy(),
        loss=head["loss"].to_numpy(),
        el2n=head["el2n"].to_numpy(),
        n_response_tokens=head["n_response_tokens"].to_numpy(),
        statistics={
            layer: {name: by_layer[layer][name].to_numpy() for name in STATISTICS}
            for layer in layers
        },
    )


def _part(folder: Path, part: Part, columns: list[str], *, verify: bool = True) -> pa.Table:
    path = folder / PARTS_FOLDER / part.file
    if verify and (fault := fault_of(folder, part)) is not None:
        raise GradsiftError(
            f"{path}: this part of the gradient store {fault}. Restore it, or run the same capture "
            "command again, which records it anew."
        )
    try:
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            names = [name if name in stored else _FORMER_NAMES.get(name, name) for name in columns]
            table = file.read(names)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(path, f"no Parquet: {first_line(error)}") from error
    # How wide these are is for the others to agree with.
    places = map(table.schema.get_field_index, ("content_features", "sketch"))
    types = (table.schema.types[at] if at >= 0 else None for at in places)
    known = record_schema(*(getattr(kind, "list_size", 1) for kind in types))
    pairs = zip(names, columns, strict=True)
    require_columns(path, table, [known.field(column).with_name(name) for name, column in pairs])
    # Whether a field may be null is said or not; none of these is.
    return pa.table([table[name] for name in names], names=columns)


def _joined(folder: Path, parts: list[pa.Table]) -> pa.Table:
    if not parts:
        raise _not_of_parts(folder, "no parts")
    if any(part.schema.types != parts[0].schema.types for part in parts):
        raise _not_of_parts(folder, "parts with records of different sizes")
    return pa.concat_tables(parts)


def _not_of_parts(folder: Path, what: str) -> GradsiftError:
    return GradsiftError(
        f"{folder / PARTS_FOLDER}: the gradient store has {what}. Restore it, or capture again."
    )


def fault_of(folder: Path, part: Part) -> str | None:
    """Return what is wrong with a part's file, None if it is the one that was written."""
    path = folder / PARTS_FOLDER / part.file
    if not path.is_file():
        return "is missing"
    if (digest := sha256_of(path)) == part.sha256:
        return None
    return (
        f"was changed or damaged (SHA-256 is {digest[:12]}…, the manifest says {part.sha256[:12]}…)"
    )


def _of_layer(folder: Path, table: pa.Table, layer: str, n_instances: int) -> pa.Table:
    rows = table.filter(pc.equal(table["layer"], layer))
    rows = rows.sort_by([("instance_id", "ascending"), ("step", "ascending")])
    # Processes that train together fill up the last batch with rows that another one has too.
    ids = rows["instance_id"].combine_chunks()
    if len(ids) > 1:
        changes = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
        rows = rows.filter(pa.concat_arrays([pa.array([True]), changes]))
    if rows.num_rows != n_instances:
        raise GradsiftError(
            f"{folder}: {rows.num_rows} records of layer {layer}, but the manifest says "
            f"{n_instances} instances. Capture again."
        )
    return rows


def _as_matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)
