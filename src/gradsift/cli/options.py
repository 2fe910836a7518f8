"""The options of the command line, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[str | None, typer.Argument(help="SFT file, `save_to_disk` folder or hub id.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Model = Annotated[str | None, typer.Option(help='Hub id, folder with safetensors, or "demo".')]
Out = Annotated[str | None, typer.Option(help="Run folder; run again to resume.")]
Config = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="<path>", help="YAML file with any of these settings; the command line wins."
    ),
]
TrainerConfig = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="<path>",
        help="YAML file of axolotl, LLaMA-Factory or trl: what it says is done, or refused by "
        "name; --config and the command line win.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="prompt_completion, messages, text, alpaca, sharegpt or qa; detected if not given."
    ),
]
IdColumn = Annotated[str | None, typer.Option(help="Field with the row's id (default: id).")]
PromptColumn = Annotated[str | None, typer.Option(help="Field with the question.")]
ResponseColumn = Annotated[str | None, typer.Option(help="Field with the answer.")]
SourceColumn = Annotated[
    str | None, typer.Option(help="Field that says where a row comes from (default: source).")
]
SystemColumn = Annotated[str | None, typer.Option(help="Field with a system prompt.")]
DatasetInfo = Annotated[
    str | None, typer.Option(help="LLaMA-Factory's dataset_info.json; DATA is a name in it.")
]
Split = Annotated[str | None, typer.Option(help="Split of a hub dataset or of a folder.")]
TrainOn = Annotated[
    str | None, typer.Option(help="Assistant turns trained on: all (default) or last.")
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        help="Require that the model's own chat template is like this one (chatml, llama3, …); "
        "tokenizer_default: whichever it is."
    ),
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of an instance (default 1024).")]
Truncation = Annotated[
    str | None,
    typer.Option(help="Longer rows: keep_start (default), keep_end, or drop."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Dtype = Annotated[str | None, typer.Option(help="Weights: float32 (default), bfloat16, float16.")]
RemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code/--no-trust-remote-code", help="Run code that comes with a model."
    ),
]
Lora = Annotated[
    bool | None, typer.Option("--lora/--full", help="Train LoRA adapters or all parameters.")
]
LoadIn = Annotated[
    str | None,
    typer.Option(help="Quantise the weights while loading: 4bit (QLoRA) or 8bit; needs --lora."),
]
Sft = Annotated[
    list[str] | None,
    typer.Option("--sft", help="A setting of trl's SFTConfig, as key=value; may be repeated."),
]
SaveSteps = Annotated[
    int | None, typer.Option(help="Optimizer steps between checkpoints (default: about 8).")
]
SketchSize = Annotated[
    int | None, typer.Option(help="Numbers of a gradient sketch, a power of two (1024).")
]
Signal = Annotated[
    str | None,
    typer.Option(help="full (both layers) or head (no backward pass; default when scoring)."),
]
When = Annotated[
    str | None,
    typer.Option(help="Record during the preliminary epoch (default), or after: a scoring pass."),
]
Preliminary = Annotated[
    float | None,
    typer.Option(help="Fraction of the rows that is trained on before scoring; 0 for none (1)."),
]
Recording = Annotated[
    str | None,
    typer.Option(
        help="auto (default) takes the first exact one of fused, fused-intercepted, hooked and "
        "intercepted."
    ),
]
Batching = Annotated[
    str | None,
    typer.Option(
        help="How rows are put into micro-batches: packed end to end, by_length, random (padded "
        "to the longest), or auto (default): packed if the model keeps packed rows apart, else "
        "by_length."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn (default 0).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop after the cost estimate.")]
Budget = Annotated[
    str | None,
    typer.Option(help="Of the usable rows: 50%, 500 (rows), 20000tok (tokens) or auto."),
]
NeededBudget = Annotated[
    str, typer.Option("--budget", help="Of the usable rows: 50%, 500 (rows), 20000tok or auto.")
]
Strategy = Annotated[
    str | None,
    typer.Option(help="grads (default), random, or another name that `gradsift strategies` lists."),
]
Score = Annotated[
    str | None,
    typer.Option(
        help="Gradient score: consistent (default), representative, informative, balanced or "
        "grounded."
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", help="embedding, lm_head; may be repeated (default all)."),
]
Statistics = Annotated[
    list[str] | None,
    typer.Option(
        "--statistic",
        help="max, min, mean, mean_abs, std, l2_norm; may be repeated (default l2_norm).",
    ),
]
Adjust = Annotated[
    list[str] | None,
    typer.Option(
        help="Taken off the signal: response_length, prompt_length, step (default: all), or none; "
        "may be repeated."
    ),
]
Quota = Annotated[
    list[str] | None,
    typer.Option(
        help='Most rows of a source, as SOURCE=500 or SOURCE=25%; "*" for all others; may be '
        "repeated."
    ),
]
Keep = Annotated[Path | None, typer.Option(help="File of ids that are selected first.")]
Drop = Annotated[Path | None, typer.Option(help="File of ids that are never selected.")]
Anchor = Annotated[Path | None, typer.Option(help="Run folder of general rows, for ogs-static.")]
Target = Annotated[
    Path | None, typer.Option(help="Run folder of target rows, for target-similarity and rds.")
]
Alpha = Annotated[float | None, typer.Option(help="Weight of the gradient score (1).")]
Beta = Annotated[float | None, typer.Option(help="Weight of content diversity (1).")]
Gamma = Annotated[float | None, typer.Option(help="Weight of similarity reduction (1).")]
Near = Annotated[
    float | None, typer.Option(help="Similarity above which rows repeat each other (0.8).")
]
Weights = Annotated[
    bool | None,
    typer.Option(
        "--weights/--no-weights", help="Add a weight for each kept row to decisions.parquet."
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the selection's folder.")]
Epochs = Annotated[float, typer.Option(help="Passes over an arm's rows, above 0.")]
ArmSaveSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Optimizer steps between checkpoints (default: about 4 of them)."),
]
ArmSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the selection for all arms, as key=value (score=balanced); repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
