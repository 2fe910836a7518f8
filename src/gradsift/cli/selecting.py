"""Commands on what was captured; none of them needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradsift.cli.arguments import said
from gradsift.cli.options import (
    Adjust,
    Alpha,
    Anchor,
    Beta,
    Drop,
    Gamma,
    Json,
    Keep,
    Layers,
    Name,
    Near,
    NeededBudget,
    Quota,
    RunFolder,
    Score,
    Seed,
    Statistics,
    Strategy,
    Target,
    Weights,
)
from gradsift.cli.output import show


def select(
    run_folder: RunFolder,
    budget: NeededBudget,
    strategy: Strategy = None,
    side: Score = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    similarity_threshold: Near = None,
    quota: Quota = None,
    keep: Keep = None,
    drop: Drop = None,
    anchor: Anchor = None,
    target: Target = None,
    seed: Seed = None,
    weights: Weights = None,
    name: Name = None,
    json_: Json = False,
) -> None:
    """Select from a captured run, in seconds: another budget, another rule."""
    from gradsift.selecting import select as select_rows

    show(select_rows(run_folder, **said(locals())), json_)


def strategies(
    run_folder: RunFolder,
    budget: NeededBudget,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated (default: all that can be had from what is there)."),
    ] = None,
    side: Score = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    similarity_threshold: Near = None,
    quota: Quota = None,
    keep: Keep = None,
    drop: Drop = None,
    anchor: Anchor = None,
    target: Target = None,
    seed: Seed = None,
    json_: Json = False,
) -> None:
    """Compare what the strategies would keep: losses, mixes, overlap. Writes nothing."""
    from gradsift.selecting import strategies as compare

    given = said(locals())
    show(compare(run_folder, names=tuple(given.pop("strategy", ())), **given), json_)


def stability(
    run_folder: RunFolder,
    budget: NeededBudget,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder with the same rows, such as one of another seed; repeated."),
    ] = None,
    strategy: Strategy = None,
    side: Score = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    similarity_threshold: Near = None,
    quota: Quota = None,
    keep: Keep = None,
    drop: Drop = None,
    anchor: Anchor = None,
    target: Target = None,
    seed: Seed = None,
    json_: Json = False,
) -> None:
    """Say how much of a subset depends on side, layer, coefficient, seed or capture."""
    from gradsift.selecting import stability as measure

    given = said(locals())
    show(measure(run_folder, others=tuple(given.pop("other", ())), **given), json_)


def explain(
    run_folder: RunFolder,
    row_id: Annotated[
        str, typer.Argument(help="Id of a row, line:N of the file (from 1), or row:N (from 0).")
    ],
    name: Annotated[str | None, typer.Option(help="Selection (default: all of them).")] = None,
    json_: Json = False,
) -> None:
    """Say why a row was kept or not."""
    from gradsift.commands.explain import explain_row

    show(explain_row(run_folder, row_id, name), json_)


def agreement(
    run_folder: RunFolder,
    other: Annotated[Path, typer.Argument(help="A run folder with the same rows.")],
    json_: Json = False,
) -> None:
    """Say how alike two captures rank the rows, such as a cheap one and a full one."""
    from gradsift.commands.agreement import compare_runs

    show(compare_runs(run_folder, other), json_)
