"""The command line: parse, call, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsift.options import (
    Adjust,
    Alpha,
    Anchor,
    ArmSettings,
    Beta,
    Budget,
    Config,
    Data,
    DatasetInfo,
    Drop,
    DryRun,
    Dtype,
    Epochs,
    Format,
    Gamma,
    IdColumn,
    Json,
    Keep,
    Layers,
    Lora,
    MaxLength,
    Model,
    Name,
    Near,
    NeededBudget,
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
    Seed,
    Sft,
    Side,
    Signal,
    SketchRank,
    SourceColumn,
    Split,
    Statistics,
    Strategy,
    SystemColumn,
    Target,
    TrainOn,
    Truncation,
    Weights,
    When,
)

app = typer.Typer(
    name="gradsift",
    help="Pick the part of a supervised fine-tuning set that is worth training on, by each row's "
    "gradient.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from gradsift.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    data: Data = None,
    model: Model = None,
    budget: Budget = None,
    out: Out = None,
    config: Config = None,
    format: Format = None,
    id_column: IdColumn = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_column: SystemColumn = None,
    source_column: SourceColumn = None,
    dataset_info: DatasetInfo = None,
    split: Split = None,
    train_on: TrainOn = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    sft: Sft = None,
    save_steps: SaveSteps = None,
    sketch_rank: SketchRank = None,
    signal: Signal = None,
    when: When = None,
    preliminary: Preliminary = None,
    recording: Recording = None,
    seed: Seed = None,
    strategy: Strategy = None,
    side: Side = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    near_threshold: Near = None,
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
    _run(_given(locals()), config, select=True, dry_run=dry_run, as_json=json_)


@app.command()
def capture(
    data: Data = None,
    model: Model = None,
    out: Out = None,
    config: Config = None,
    format: Format = None,
    id_column: IdColumn = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_column: SystemColumn = None,
    source_column: SourceColumn = None,
    dataset_info: DatasetInfo = None,
    split: Split = None,
    train_on: TrainOn = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    sft: Sft = None,
    save_steps: SaveSteps = None,
    sketch_rank: SketchRank = None,
    signal: Signal = None,
    when: When = None,
    preliminary: Preliminary = None,
    recording: Recording = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run the preliminary epoch and record every row's gradient. Run again to resume."""
    _run(_given(locals()), config, select=False, dry_run=dry_run, as_json=json_)


@app.command()
def select(
    run_folder: RunFolder,
    budget: NeededBudget,
    strategy: Strategy = None,
    side: Side = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    near_threshold: Near = None,
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

    _print(select_rows(run_folder, **_said(locals())), json_)


@app.command()
def strategies(
    run_folder: RunFolder,
    budget: NeededBudget,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated (default: all that can be had from what is there)."),
    ] = None,
    side: Side = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    near_threshold: Near = None,
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

    given = _said(locals())
    _print(compare(run_folder, names=tuple(given.pop("strategy", ())), **given), json_)


@app.command()
def stability(
    run_folder: RunFolder,
    budget: NeededBudget,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder with the same rows, such as one of another seed; repeated."),
    ] = None,
    strategy: Strategy = None,
    side: Side = None,
    layers: Layers = None,
    signal_statistics: Statistics = None,
    adjust: Adjust = None,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    near_threshold: Near = None,
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

    given = _said(locals())
    _print(measure(run_folder, others=tuple(given.pop("other", ())), **given), json_)


@app.command()
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
    save_steps: SaveSteps = None,
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

    given = _said(locals())
    settings = _selection(given)
    _print(train_arm(run_folder, listener=_listener(), **given, **settings), json_)


@app.command()
def compare(
    run_folder: RunFolder,
    test: Annotated[str, typer.Option(help="Held-out rows, written as those of DATA are.")],
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
        bool, typer.Option("--keep-models", help="Keep the weights of every arm.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a task file names.")
    ] = False,
    save_steps: SaveSteps = None,
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

    given = {**_said(locals()), "dry_run": dry_run}
    settings = _selection(given)
    for key in ("arms", "budgets", "general"):
        given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    _print(compare_arms(run_folder, listener=_listener(), **given, **settings), json_)


@app.command()
def losses(run_folder: RunFolder, json_: Json = False) -> None:
    """Make the further, forward-only pass that some strategies need. Run again to resume."""
    from gradsift.run import losses as compute

    _print(compute(run_folder, _listener()), json_)


@app.command()
def explain(
    run_folder: RunFolder,
    row_id: Annotated[
        str, typer.Argument(help="Id of a row, line:N of the file (from 1), or row:N (from 0).")
    ],
    name: Annotated[str | None, typer.Option(help="Selection (default: all of them).")] = None,
    json_: Json = False,
) -> None:
    """Say why a row was kept or not."""
    from gradsift.stages.explain import explain_row

    _print(explain_row(run_folder, row_id, name), json_)


@app.command()
def agreement(
    run_folder: RunFolder,
    other: Annotated[Path, typer.Argument(help="A run folder with the same rows.")],
    json_: Json = False,
) -> None:
    """Say how alike two captures rank the rows, such as a cheap one and a full one."""
    from gradsift.stages.agreement import compare_runs

    _print(compare_runs(run_folder, other), json_)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help='Hub id, folder with safetensors, or "demo".')],
    revision: Revision = None,
    dtype: Dtype = None,
    trust_remote_code: RemoteCode = None,
    lora: Lora = None,
    sft: Sft = None,
    recording: Recording = None,
    json_: Json = False,
) -> None:
    """Say whether recording is exact on a model: two rows against autograd."""
    from gradsift.run import check as check_model

    _print(check_model(**_said(locals())), json_)


@app.command()
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

    _print(run_demo(out, rows, budget, seed, _listener(), comparing=compare), json_)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        typer.echo(f"gradsift: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except OSError as error:
        where = error.filename or "the file system"
        typer.echo(f"gradsift: {where}: {error.strerror or error}", err=True)
        sys.exit(2)
    except ImportError as error:
        typer.echo(
            f"gradsift: {error}. Capturing needs more packages than selecting: "
            "pip install 'gradsift[train]'",
            err=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("gradsift: stopped; run the same command again to resume", err=True)
        sys.exit(130)


def _run(
    given: dict[str, Any], config: Path | None, *, select: bool, dry_run: bool, as_json: bool
) -> None:
    from gradsift.config import resolve
    from gradsift.run import run_stages

    settings = resolve(given, config)
    _print(run_stages(settings, _listener(), selecting=select, dry_run=dry_run), as_json)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the command line says about settings, with `--sft key=value` as a mapping."""
    other = {"config", "dry_run", "json_", "run_folder"}
    given = {k: v for k, v in arguments.items() if k not in other and not callable(v)}
    if given.get("sft"):
        given["sft"] = _key_values(given["sft"])
    if given.get("set_"):
        given["set_"] = _key_values(given["set_"], "--set")
    if given.get("quota"):
        given["quota"] = _quotas(given["quota"])
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}


def _selection(given: dict[str, Any]) -> dict[str, Any]:
    # Takes what --set says out of the arguments.
    from gradsift.selection.settings import Settings

    settings = given.pop("set_", {})
    for key in settings:
        if key not in Settings.model_fields or key in given:
            known = ", ".join(name for name in Settings.model_fields if name not in given)
            raise ValueError(f"--set {key}: expected one of {known}.")
    return settings


def _said(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _given(arguments).items() if value is not None}


def _quotas(texts: list[str]) -> dict[str, str]:
    values = {}
    for text in texts:
        source, equals, amount = text.rpartition("=")
        if not equals or not source:
            raise ValueError(f"--quota {text}: expected SOURCE=500 or SOURCE=25%")
        values[source] = amount
    return values


def _key_values(texts: list[str], option: str = "--sft") -> dict[str, Any]:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text}: expected key=value")
        # YAML reads 1e-5 as text; JSON reads it as the number that is meant.
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = _yaml_value(f"{option} {text}", value)
    return values


def _yaml_value(text: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{text}: the value is neither JSON nor YAML.") from None


def _listener() -> Any:
    from gradsift.progress import stderr_listener

    return stderr_listener()


def _print(result: Any, as_json: bool) -> None:
    from gradsift.progress import is_first_process

    if is_first_process():
        typer.echo(json.dumps(result.summary(), ensure_ascii=False) if as_json else result.text())
