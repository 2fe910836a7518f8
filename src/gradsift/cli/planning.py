"""Commands that need a model's configuration only: plan."""

from __future__ import annotations

from typing import Annotated

import typer

from gradsift.cli.arguments import said
from gradsift.cli.options import Dtype, Json, RemoteCode, Revision
from gradsift.cli.output import show


def plan(
    model: Annotated[str, typer.Argument(help="Hub id or folder with config.json.")],
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="Only LoRA, or only all parameters.")
    ] = None,
    load_in: Annotated[
        str | None, typer.Option(help="Only QLoRA, with frozen weights in 4bit or 8bit.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Default: 8.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of each. Default: 80.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a micro-batch on each GPU. Default: 1.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row. Default: 1024.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Default: 8.")] = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    json_: Json = False,
) -> None:
    """Say what fits on which GPUs, counted from a model's configuration; no weights are loaded."""
    from gradsift.run import plan as plan_model

    show(plan_model(**said(locals())), json_)
