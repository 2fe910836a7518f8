"""Commands that need the model: run, capture, losses, check, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsift.cli.arguments import given_settings, one_file, said
from gradsift.cli.options import (
    Adjust,
    Alpha,
    Anchor,
    Batching,
    Beta,
    Budget,
    ChatTemplate,
    Config,
    Data,
    DatasetInfo,
    Drop,
    DryRun,
    Dtype,
    Format,
    Gamma,
    IdColumn,
    Json,
    Keep,
    Layers,
    LoadIn,
    Lora,
    MaxLength,
    Model,
    Name,
    Near,
    Out,
    Preliminary,
    PromptColumn,
    Quota,
    Recording,
    RemoteCode,
    ResponseColumn,
    Revision,
    RunFolder,
    SaveSteps,
    Score,
    Seed,
    Sft,
    Signal,
    SketchSize,
    SourceColumn,
    Split,
    Statistics,
    Strategy,
    SystemColumn,
    Target,
    TrainerConfig,
    TrainOn,
    Truncation,
    Weights,
    When,
)
from gradsift.cli.output import progress, show


def run(
    data: Data = None,
    model: Model = None,
    budget: Budget = None,
    out: Out = None,
    config: Config = None,
    trainer_config: TrainerConfig = None,
    format: Format = None,
    id_column: IdColumn = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_column: SystemColumn = None,
    source_column: SourceColumn = None,
    dataset_info: DatasetInfo = None,
    split: Split = None,
    train_on: TrainOn = None,
    chat_template: ChatTemplate = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    load_in: LoadIn = None,
    sft: Sft = None,
    save_steps: SaveSteps = None,
    sketch_size: SketchSize = None,
    signal: Signal = None,
    when: When = None,
    preliminary: Preliminary = None,
    batching: Batching = None,
    recording: Recording = None,
    seed: Seed = None,
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
    weights: Weights = None,
    name: Name = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Capture and select: from an SFT file to a smaller one. Run again to resume."""
    _run(
        given_settings(locals()),
        config,
        trainer_config,
        select=True,
        dry_run=dry_run,
        as_json=json_,
    )


def capture(
    data: Data = None,
    model: Model = None,
    out: Out = None,
    config: Config = None,
    trainer_config: TrainerConfig = None,
    format: Format = None,
    id_column: IdColumn = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_column: SystemColumn = None,
    source_column: SourceColumn = None,
    dataset_info: DatasetInfo = None,
    split: Split = None,
    train_on: TrainOn = None,
    chat_template: ChatTemplate = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    load_in: LoadIn = None,
    sft: Sft = None,
    save_steps: SaveSteps = None,
    sketch_size: SketchSize = None,
    signal: Signal = None,
    when: When = None,
    preliminary: Preliminary = None,
    batching: Batching = None,
    recording: Recording = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run the preliminary epoch and record every row's gradient. Run again to resume."""
    _run(
        given_settings(locals()),
        config,
        trainer_config,
        select=False,
        dry_run=dry_run,
        as_json=json_,
    )


def losses(run_folder: RunFolder, json_: Json = False) -> None:
    """Make the further, forward-only pass that some strategies need. Run again to resume."""
    from gradsift.run import losses as compute

    show(compute(run_folder, progress()), json_)


def check(
    model: Annotated[
        str | None, typer.Argument(help='Hub id, folder with safetensors, or "demo".')
    ] = None,
    config: Config = None,
    trainer_config: TrainerConfig = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    load_in: LoadIn = None,
    sft: Sft = None,
    recording: Recording = None,
    json_: Json = False,
) -> None:
    """Say whether recording is exact on a model: two rows against autograd."""
    from gradsift.config import resolve
    from gradsift.run import check as check_model

    given = said(locals())
    wanted = ("model", "revision", "dtype", "trust_remote_code", "lora", "load_in", "sft",
              "recording")  # fmt: skip
    # It has rows of its own, and no run folder.
    unneeded = {"data": "none", "out": "none"}
    settings = resolve(
        given,
        one_file("--config", config),
        one_file("--trainer-config", trainer_config),
        tell=progress().note,
        unneeded=unneeded,
    )
    show(check_model(**{name: getattr(settings, name) for name in wanted}), json_)


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    rows: Annotated[int, typer.Option(min=20, help="Rows drawn from the pool.")] = 160,
    budget: Annotated[str, typer.Option(help="As for select.")] = "50%",
    seed: Annotated[int, typer.Option(help="Of the sample and the training.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train on the subset and its rivals: 15 minutes.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run the whole job on Python's own documentation and a small model; no hub is needed."""
    from gradsift.demo import run_demo

    show(run_demo(out, rows, budget, seed, progress(), comparing=compare), json_)


def _run(
    given: dict[str, Any],
    config: list[Path] | None,
    trainer_config: list[Path] | None,
    *,
    select: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from gradsift.config import resolve
    from gradsift.run import run_stages

    listener = progress()
    settings = resolve(
        given,
        one_file("--config", config),
        one_file("--trainer-config", trainer_config),
        tell=listener.note,
    )
    show(run_stages(settings, listener, selecting=select, dry_run=dry_run), as_json)
