"""Run folder → candidates: the arrays that a selection starts from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsift.errors import GradsiftError
from gradsift.selection.candidates import Candidates
from gradsift.selection.selector import Context
from gradsift.selection.strategies.base import Need, Reference
from gradsift.stages.content import content_of
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.tables import ReferenceLossesMissing, read_losses

UNKNOWN = "unknown"


def candidates_of(store: GradientStore, table: pa.Table, needs: Iterable[Need] = ()) -> Candidates:
    """Collect the instances with finite gradients.

    Args:
        store: A complete gradient store.
        table: Its pool table.
        needs: What is read beyond the statistics.

    Returns:
        The candidates, in the order of their ids.

    Raises:
        ValueError: If there is none, or the losses of the further pass are asked for and not there.
    """
    needs, finite = set(needs), store.finite
    ids = [i for i, ok in zip(store.instance_ids, finite.tolist(), strict=True) if ok]
    at = dict(zip(table["instance_id"].to_pylist(), range(table.num_rows), strict=True))
    lines = table.take(pa.array([at[i] for i in ids], pa.int64()))
    return Candidates(
        ids=ids,
        statistics={
            layer: {name: values[finite] for name, values in by_name.items()}
            for layer, by_name in store.statistics.items()
        },
        n_tokens=lines["n_tokens"].to_numpy().astype(np.int64),
        n_response_tokens=store.n_response_tokens[finite],
        step=store.step[finite],
        loss=store.loss[finite],
        el2n=store.el2n[finite],
        source=_names(lines["source"]),
        language=_names(lines["language"]),
        features_ND=store.content_ND[finite] if Need.FEATURES in needs else None,
        sketches=(
            {layer: sketch[finite] for layer, sketch in store.sketches.items()}
            if Need.SKETCHES in needs
            else {}
        ),
        losses=read_losses(store.folder, ids) if Need.LOSSES in needs else {},
    )


def has_losses(store: GradientStore) -> bool:
    """Say whether the further pass was made over all instances.

    Args:
        store: A gradient store.

    Returns:
        Whether strategies and sides that need it can be had.
    """
    try:
        read_losses(store.folder, store.instance_ids)
    except ReferenceLossesMissing:
        return False
    return True


def context_of(
    store: GradientStore,
    needs: Iterable[Need] = (),
    *,
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
) -> Context:
    """Collect what a selection uses beside the pool's own arrays.

    Args:
        store: A complete gradient store.
        needs: What the strategy needs.
        anchor: Run folder of general rows, captured with the same model.
        target: Run folder of target rows, captured with the same model.
        keep: File with ids that are selected first, one a line.
        drop: File with ids that are never selected, one a line.

    Returns:
        The context.

    Raises:
        ValueError: If a reference is needed and not given, or does not fit, or a list is
            unreadable.
    """
    neighbours, cluster_N = content_of(store)
    references = {}
    for need, option, folder in (
        (Need.ANCHOR, "`anchor`", anchor),
        (Need.TARGET, "`target`", target),
    ):
        if need in set(needs):
            references[need] = _reference(store, folder, need, option)
    return Context(neighbours, cluster_N, references, _ids(keep, "`keep`"), _ids(drop, "`drop`"))


def _names(column: pa.ChunkedArray) -> list[str] | None:
    if column.null_count == len(column):
        return None
    return [UNKNOWN if name is None else name for name in column.to_pylist()]


def _reference(
    store: GradientStore, folder: str | Path | None, need: Need, option: str
) -> Reference:
    if folder is None:
        raise GradsiftError(
            f"this strategy needs {need.value}: {option} RUN, a run folder of such rows, captured "
            "with the same model (gradsift capture ROWS --model MODEL --preliminary 0 --out RUN)."
        )
    other = read_store(Path(folder).resolve())
    for key in ("model", "sketch_size", "seed"):
        ours, theirs = store.manifest.identity.get(key), other.manifest.identity.get(key)
        if ours != theirs:
            raise GradsiftError(
                f"{folder}: was captured with {key} {theirs!r}, but {store.folder} with {ours!r}: "
                f"their gradients cannot be compared. Capture it with {key} {ours!r}."
            )
    if not other.finite.any():
        raise GradsiftError(f"{folder}: none of its gradients is finite.")
    return Reference(
        {layer: sketch[other.finite] for layer, sketch in other.sketches.items()},
        other.content_ND[other.finite],
        other.step[other.finite],
    )


def _ids(path: str | Path | None, option: str) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GradsiftError(
            f"{option} {path}: cannot be read ({error}). Expected ids, one a line."
        ) from None
    # Of a file of rows, the ids are what is meant.
    return [_id(line, path, at, option) for at, line in enumerate(lines, start=1) if line.strip()]


def _id(line: str, path: str | Path, at: int, option: str) -> str:
    line = line.strip()
    if not line.startswith("{"):
        return line
    try:
        found = json.loads(line)["id"]
    except (ValueError, KeyError):
        raise GradsiftError(
            f"{option} {path}, line {at}: looks like a row but has no id. Expected ids, one a "
            "line, or rows with an id."
        ) from None
    return str(found)
