"""Selecting from a captured run, in Python; none of it needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradsift.commands.select import Files, SelectResult, select_from_store
from gradsift.commands.stability import Stability, measure_stability
from gradsift.commands.strategies import SideBySide, compare_strategies
from gradsift.config import validated_settings
from gradsift.selection.constraints import parse_budget
from gradsift.store.reader import GradientStore, read_store


def select(
    run: str | Path | GradientStore,
    *,
    budget: str | int | float,
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
    weights: bool = False,
    name: str | None = None,
    **settings: Any,
) -> SelectResult:
    """Select rows of a captured run and write them, in seconds and without torch.

    Args:
        run: A run folder, or its store.
        budget: Of the usable rows: "50%" or 0.5, 500 (rows), "20000tok" (tokens), "auto".
        anchor: Run folder of general rows, for the strategy ogs-static.
        target: Run folder of target rows, for target-similarity and rds.
        keep: File with ids that are selected first, one a line.
        drop: File with ids that are never selected, one a line.
        weights: Whether decisions.parquet gets a weight for each selected row.
        name: Of the selection's folder.
        **settings: Any field of `gradsift.SelectionConfig`: strategy, side, alpha, ….

    Returns:
        What was selected and written.

    Raises:
        ValueError: If a setting does not fit, or the input changed since the capture.
    """
    checked, parsed = validated_settings(settings), parse_budget(budget)
    store = _store(run)
    files = files_of(anchor=anchor, target=target, keep=keep, drop=drop)
    return select_from_store(store, parsed, checked, files, name=name, weights=weights)


def strategies(
    run: str | Path | GradientStore,
    *,
    budget: str | int | float,
    names: Sequence[str] = (),
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
    **settings: Any,
) -> SideBySide:
    """Compare what several strategies would keep of a captured run; nothing is written.

    Args:
        run: A run folder, or its store.
        budget: As for `select`, but not "auto".
        names: Strategies; empty for all that can be had from what is there.
        anchor: As for `select`.
        target: As for `select`.
        keep: As for `select`.
        drop: As for `select`.
        **settings: As for `select`.

    Returns:
        Losses, mixes and overlaps.

    Raises:
        ValueError: If a setting does not fit, or a strategy was named that cannot be had.
    """
    checked, parsed = validated_settings(settings), parse_budget(budget)
    store = _store(run)
    files = files_of(anchor=anchor, target=target, keep=keep, drop=drop)
    return compare_strategies(store, parsed, checked, files, names)


def stability(
    run: str | Path | GradientStore,
    *,
    budget: str | int | float,
    others: Sequence[str | Path] = (),
    anchor: str | Path | None = None,
    target: str | Path | None = None,
    keep: str | Path | None = None,
    drop: str | Path | None = None,
    **settings: Any,
) -> Stability:
    """Say how much of a subset depends on side, layer, coefficient, seed or capture.

    Args:
        run: A run folder, or its store.
        budget: As for `select`, but not "auto".
        others: Run folders with the same rows, such as captures with other seeds.
        anchor: As for `select`.
        target: As for `select`.
        keep: As for `select`.
        drop: As for `select`.
        **settings: As for `select`.

    Returns:
        The overlap with each other choice.

    Raises:
        ValueError: If a setting does not fit, or another run has other rows.
    """
    checked, parsed = validated_settings(settings), parse_budget(budget)
    store = _store(run)
    files = files_of(anchor=anchor, target=target, keep=keep, drop=drop)
    return measure_stability(store, parsed, checked, files, others)


def _store(run: str | Path | GradientStore) -> GradientStore:
    return run if isinstance(run, GradientStore) else read_store(Path(run).resolve())


def files_of(**paths: str | Path | None) -> Files:
    """Return reference runs and lists of ids as a selection takes them."""
    return Files(**{k: None if path is None else str(path) for k, path in paths.items()})
