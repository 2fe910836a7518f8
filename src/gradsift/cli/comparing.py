"""Commands that fine-tune on subsets and their rivals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradsift.cli.arguments import said, selection_settings
from gradsift.cli.options import (
    Anchor,
    ArmSaveSteps,
    ArmSettings,
    Drop,
    DryRun,
    Epochs,
    Json,
    Keep,
    Lora,
    RunFolder,
    Seed,
    Sft,
    Target,
)
from gradsift.cli.output import progress, show


def train(
    run_folder: RunFolder,
    arm: Annotated[
        str, typer.Option(help="full, full-equal-steps or a strategy, as for compare.")
    ] = "grads",
    budget: Annotated[
        str | None, typer.Option(help="Of the arm: 50%, 500 (rows) or 20000tok (tokens).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model (default: in the run folder).")
    ] = None,
    epochs: Epochs = 3,
    sft: Sft = None,
    lora: Lora = None,
    save_steps: ArmSaveSteps = None,
    anchor: Anchor = None,
    target: Target = None,
    keep: Keep = None,
    drop: Drop = None,
    seed: Seed = None,
    set_: ArmSettings = None,
    json_: Json = False,
) -> None:
    """Fine-tune on the rows of an arm; weights as safetensors. Run again to resume."""
    from gradsift.comparing import train as train_arm

    given = said(locals())
    settings = selection_settings(given)
    show(train_arm(run_folder, listener=progress(), **given, **settings), json_)


def compare(
    run_folder: RunFolder,
    test: Annotated[str, typer.Option(help="Held-out rows, written as those of DATA are.")],
    test_split: Annotated[
        str | None, typer.Option(help="Of held-out rows that come in several splits.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="base, full, full-equal-steps (full data, a subset's steps), random or another "
            "strategy, with commas; NAME@BUDGET:key=value gives one a budget, settings of the "
            "selection or seeds of its own."
        ),
    ] = "base,full,full-equal-steps,random,grads",
    budgets: Annotated[str, typer.Option(help="Of arms that name none, with commas.")] = "50%",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm.")] = 3,
    general: Annotated[
        str,
        typer.Option(
            help="What the model could do before: lm-eval tasks, task files (.yaml), text files "
            "(.txt, for perplexity) or probe (ours), with commas."
        ),
    ] = "probe",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task, the first ones (all).")
    ] = None,
    epochs: Epochs = 3,
    sft: Sft = None,
    lora: Lora = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer (the longest reference, at most 256).")
    ] = None,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models", help="Keep the weights of every arm, to ask them more later."
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a task file names.")
    ] = False,
    save_steps: ArmSaveSteps = None,
    name: Annotated[str | None, typer.Option(help="Of the files (comparison).")] = None,
    anchor: Anchor = None,
    target: Target = None,
    keep: Keep = None,
    drop: Drop = None,
    seed: Seed = None,
    set_: ArmSettings = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Did it learn more, forget less, and beat random? Run again to resume."""
    from gradsift.comparing import compare as compare_arms

    given = {**said(locals()), "dry_run": dry_run}
    settings = selection_settings(given)
    for key in ("arms", "budgets", "general"):
        given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    show(compare_arms(run_folder, listener=progress(), **given, **settings), json_)
