"""The command line: parse, call, print. Nothing heavy is loaded before it is needed."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsift import config as groups
from gradsift.cli import interrupts
from gradsift.cli.errors import told, with_flags
from gradsift.cli.options import ADVANCED, app, command, load, one_file, strategy_names
from gradsift.errors import GradsiftError
from gradsift.progress import Progress, is_first_process
from gradsift.terms import SHARDS
from gradsift.wording import in_line, printable, printable_json

Data = Annotated[
    list[str] | None,
    typer.Argument(
        help="SFT file, folder, pattern or hub id; may be repeated: several files are one pool."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="YAML file with any of the settings; the command line wins.",
        rich_help_panel=ADVANCED,
    ),
]
TrainerConfigs = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="YAML file of axolotl, LLaMA-Factory or trl: what it says is done, or refused by "
        "name; --config and the command line win.",
        rich_help_panel=ADVANCED,
    ),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Where the run's rows are, if somebody else captured them or they were moved; may be "
        "repeated.",
        rich_help_panel=groups.DATA,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes at a time, for a pool in shards (default: 1).",
        rich_help_panel=ADVANCED,
    ),
]
BudgetOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help=groups.BUDGET_HELP,
        rich_help_panel=groups.SELECTION,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Stop after the estimate.", rich_help_panel=ADVANCED)
]
Details = Annotated[
    bool,
    typer.Option(
        "--details",
        help="Show the tables of criteria and audit, too.",
        rich_help_panel=groups.SELECTION,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=ADVANCED)
]


def _progress() -> Progress:
    """Let notes and progress go to stderr, with settings shown as options."""
    progress = load("console").talk_on_stderr(lambda line: with_flags(line, sys.argv))
    interrupts.show_with(progress)
    return progress


def _show(result: Any, as_json: bool) -> None:
    """Print a result to stdout; progress and notes went to stderr."""
    if not is_first_process():
        return
    if as_json:
        # What the terminal or the file takes that it goes to.
        unicode = "utf" in (sys.stdout.encoding or "").lower()
        text = printable_json(json.dumps(result.summary(), ensure_ascii=not unicode))
    else:
        # Not the user's own rows, which may hold backticks, too.
        advice = ("warning: ", "left out: ")
        text = "\n".join(
            with_flags(line, sys.argv) if line.startswith(advice) else line
            for line in printable(result.text()).split("\n")
        )
    _echo(text)


def _echo(text: str) -> None:
    try:
        typer.echo(text)
    except OSError as error:
        error.filename = "stdout"
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        _echo(load("version").__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    pass


@command(
    groups.RunConfig,
    examples=(
        "gradsift run rows.jsonl --model MODEL --budget 50% --out runs/mine",
        "gradsift run rows.jsonl --model MODEL --lora --budget 9% --out runs/l",
        "gradsift run --config run.yaml --set warmup_fraction=0.2 --out runs/q",
    ),
)
def run(
    settings: dict[str, Any],
    data: Data = None,
    config: ConfigFiles = None,
    trainer_config: TrainerConfigs = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Capture and select: from an SFT file to a smaller one. Run again to resume."""
    _run(settings, data, config, trainer_config, dry_run, json_, selecting=True)


@command(
    groups.RunConfig,
    without=(*groups.SubsetConfig.model_fields.keys() - {"seed"}, "budget"),
    examples=(
        "gradsift capture rows.jsonl --model MODEL --out runs/mine",
        "gradsift capture rows.jsonl --model MODEL --set signal=head --out runs/s",
        "gradsift capture --trainer-config axolotl.yaml --out runs/mine --dry-run",
    ),
)
def capture(
    settings: dict[str, Any],
    data: Data = None,
    config: ConfigFiles = None,
    trainer_config: TrainerConfigs = None,
    dry_run: DryRun = False,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Capture so many shards, each by itself, with a model that is not trained: for "
            "pools beyond one process.",
            rich_help_panel=groups.CAPTURE,
        ),
    ] = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Run the preliminary epoch and record every row's gradient. Run again to resume."""
    if shards is not None:
        _progress()
        if dry_run:
            raise GradsiftError("`dry_run` says nothing of `shards`: try it on one of the files.")
        if data:
            settings["data"] = data
        resolved = _resolved(settings, config, trainer_config)
        _show(load("sharding.commands").capture_shards(resolved, shards, workers or 1), json_)
        return
    _refuse_workers(workers)
    _run(settings, data, config, trainer_config, dry_run, json_, selecting=False)


def _refuse_workers(workers: int | None) -> None:
    if workers is not None:
        raise GradsiftError("`workers` is for pools in shards, and this is none: leave it out.")


def _run(
    settings: dict[str, Any],
    data: list[str] | None,
    config: list[Path] | None,
    trainer_config: list[Path] | None,
    dry_run: bool,
    as_json: bool,
    *,
    selecting: bool,
) -> None:
    progress = _progress()
    if data:
        settings["data"] = data
    resolved = _resolved(settings, config, trainer_config)
    run_stages = load("commands.run").run_stages
    _show(run_stages(resolved, progress, selecting=selecting, dry_run=dry_run), as_json)


def _resolved(
    settings: dict[str, Any],
    config: list[Path] | None,
    trainer_config: list[Path] | None,
    unneeded: Mapping[str, Any] | None = None,
) -> groups.RunConfig:
    return load("config_files").resolve(
        settings,
        one_file("config", config),
        one_file("trainer-config", trainer_config),
        unneeded=unneeded,
    )


@command(
    groups.SubsetConfig,
    groups.ReplayConfig,
    groups.TrustConfig,
    examples=(
        "gradsift select runs/mine --budget 5%",
        "gradsift select runs/mine --budget 500 --quota web=200",
        "gradsift select runs/mine --budget 50% --set gamma=0 --name near",
    ),
)
def select(
    settings: dict[str, Any],
    run_folder: RunFolder,
    budget: BudgetOption,
    details: Details = False,
    data: Rows = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Select from a captured run, in seconds: another budget, another strategy."""
    progress = _progress()
    if (run_folder / SHARDS).is_file():
        if data:
            raise GradsiftError("`data` is not known to a pool in shards: each has its own.")
        selected = load("sharding.commands").select_from_shards(
            run_folder, budget=budget, workers=workers or 1, details=details, **settings
        )
        _show(selected, json_)
        return
    _refuse_workers(workers)
    selected = load("commands.select").select(
        run_folder, budget=budget, details=details, data=data, progress=progress, **settings
    )
    _show(selected, json_)


@command(examples=("gradsift explain runs/mine ROW_ID", "gradsift explain runs/mine line:12"))
def explain(
    run_folder: RunFolder,
    row_id: Annotated[
        str, typer.Argument(help="Id of a row, line:N of the file (from 1), or row:N (from 0).")
    ],
    name: Annotated[str | None, typer.Option(help="Selection (default: all of them).")] = None,
    json_: Json = False,
) -> None:
    """Say why a row was kept or not."""
    _progress()
    if (run_folder / SHARDS).is_file():
        _show(load("sharding.commands").explain_in_shards(run_folder, row_id, name), json_)
        return
    _show(load("commands.explain").explain(run_folder, row_id, name=name), json_)


@command(examples=("gradsift report runs/mine", "gradsift report runs/mine --out page.html"))
def report(
    run_folder: RunFolder,
    name: Annotated[str | None, typer.Option(help="Selection (default: the newest).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File (default: report.html in the selection's folder).")
    ] = None,
    data: Rows = None,
    json_: Json = False,
) -> None:
    """Show a selection as one HTML page: what was kept and why, charts, and all rows."""
    _progress()
    _show(load("commands.report").report(run_folder, name=name, out=out, data=data), json_)


@command(
    examples=(
        "gradsift show runs/mine",
        "gradsift show runs/mine --borderline -n 6",
        "gradsift show runs/mine --near line:12 --json",
    )
)
def show(
    run_folder: RunFolder,
    kept: Annotated[bool, typer.Option("--kept", help="Rows that were kept (default).")] = False,
    rejected: Annotated[bool, typer.Option("--rejected", help="Rows that were not.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Rows that could not be.")] = False,
    borderline: Annotated[
        bool, typer.Option("--borderline", help="The last rows kept, and the first that were not.")
    ] = False,
    near: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Rows nearest to one, named as for explain, kept or not."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Selection (default: the one written last).")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Rows, at most.")] = 10,
    json_: Json = False,
) -> None:
    """Show what rows say, and what was decided on them."""
    _progress()
    said = {"kept": kept, "rejected": rejected, "dropped": dropped, "borderline": borderline}
    asked = [which for which, wanted in said.items() if wanted]
    if len(asked) + (near is not None) > 1:
        flags = [f"--{which}" for which in (*asked, *(["near"] if near is not None else []))]
        raise GradsiftError(f"{' and '.join(flags)}: expected one of them.")
    which = asked[0] if asked else "kept"
    _show(load("commands.show").show(run_folder, which, near=near, name=name, n=n), json_)


@command(
    groups.SelectionConfig,
    examples=("gradsift strategies", "gradsift strategies runs/mine --budget 5%"),
)
def strategies(
    settings: dict[str, Any],
    run_folder: Annotated[
        Path | None, typer.Argument(help="A run folder; without one they are listed.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=groups.BUDGET_HELP, rich_help_panel=groups.SELECTION),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated (default: all that can be had from what is there).",
            rich_help_panel=groups.SELECTION,
            autocompletion=strategy_names,
        ),
    ] = None,
    data: Rows = None,
    json_: Json = False,
) -> None:
    """List the strategies, or compare what they would keep: criteria, mixes, overlap."""
    _progress()
    module = load("commands.strategies")
    if run_folder is None:
        _show(module.catalogue(), json_)
        return
    if budget is None:
        raise GradsiftError("`budget` is missing: give 50%, 500 (rows) or 20000tok (tokens).")
    compared = module.strategies(
        run_folder, budget=budget, names=tuple(strategy or ()), data=data, **settings
    )
    _show(compared, json_)


@command(
    groups.SelectionConfig,
    examples=(
        "gradsift stability runs/mine --budget 10%",
        "gradsift stability runs/mine --budget 10% --other runs/another-seed",
    ),
)
def stability(
    settings: dict[str, Any],
    run_folder: RunFolder,
    budget: BudgetOption,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder with the same rows, such as one of another seed; repeated."),
    ] = None,
    data: Rows = None,
    json_: Json = False,
) -> None:
    """Say how much of a subset depends on score, layer, coefficient, seed or capture."""
    _progress()
    measured = load("commands.stability").stability(
        run_folder, budget=budget, others=tuple(other or ()), data=data, **settings
    )
    _show(measured, json_)


@command(
    groups.ArmConfig,
    groups.ArmTrainingConfig,
    groups.ReplayConfig,
    groups.SelectionConfig,
    groups.TrustConfig,
    without=("strategy", "keep_models"),
    examples=("gradsift train runs/mine --arm grads --budget 50% --out models/mine",),
)
def train(
    settings: dict[str, Any], run_folder: RunFolder, data: Rows = None, json_: Json = False
) -> None:
    """Fine-tune on the rows of an arm; weights as safetensors. Run again to resume."""
    progress = _progress()
    trained = load("commands.train").train(run_folder, progress=progress, data=data, **settings)
    _show(trained, json_)


@command(
    groups.ArmsConfig,
    groups.ArmTrainingConfig,
    groups.ReplayConfig,
    groups.EvaluationConfig,
    groups.SelectionConfig,
    without=("strategy",),
    examples=(
        "gradsift compare runs/mine --test held-out.jsonl",
        "gradsift compare runs/mine --test held-out.jsonl --arms random,grads@5%",
        "gradsift compare runs/mine --test held-out.jsonl --general piqa",
    ),
)
def compare(
    settings: dict[str, Any],
    run_folder: RunFolder,
    test: Annotated[str, typer.Option(help="Held-out rows, written as those of DATA are.")],
    test_split: Annotated[
        str | None, typer.Option(help="Of held-out rows that come in several splits.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the files (comparison).")] = None,
    data: Rows = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Did it learn more, forget less, and beat random? Run again to resume."""
    progress = _progress()
    compared = load("commands.compare").compare(
        run_folder,
        test=test,
        test_split=test_split,
        name=name,
        dry_run=dry_run,
        progress=progress,
        data=data,
        **settings,
    )
    _show(compared, json_)


@command(examples=("gradsift push runs/mine me/subset", "gradsift push runs/mine s --name a"))
def push(
    run_folder: RunFolder,
    repo: Annotated[str, typer.Argument(help='"name" or "owner/name" of a dataset on the hub.')],
    name: Annotated[str | None, typer.Option(help="Selection (default: the only one).")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it; else only its owner does.")
    ] = False,
    data: Rows = None,
    json_: Json = False,
) -> None:
    """Upload a selection to the Hugging Face hub: rows, decisions, and how it was chosen."""
    _progress()
    pushed = load("commands.push").push(run_folder, repo, name=name, private=not public, data=data)
    _show(pushed, json_)


@command(groups.TrustConfig, examples=("gradsift reference-losses runs/mine",))
def reference_losses(
    settings: dict[str, Any], run_folder: RunFolder, data: Rows = None, json_: Json = False
) -> None:
    """Compute the losses of the untrained model that some strategies need. Run again to resume."""
    progress = _progress()
    compute = load("commands.reference_losses").reference_losses
    _show(compute(run_folder, progress=progress, data=data, **settings), json_)


@command(
    groups.GateConfig,
    groups.TrustConfig,
    examples=("gradsift audit runs/mine", "gradsift audit runs/mine --n 50 --json"),
)
def audit(
    settings: dict[str, Any],
    run_folder: RunFolder,
    n: Annotated[
        int, typer.Option(min=0, help="Rows shown for each reason, the worst first.")
    ] = 10,
    data: Rows = None,
    json_: Json = False,
) -> None:
    """Estimate how many rows are faulty, and name them: answers that belong to no prompt."""
    progress = _progress()
    _show(
        load("commands.audit").audit(run_folder, n=n, progress=progress, data=data, **settings),
        json_,
    )


@command(examples=("gradsift agreement runs/cheap runs/full",))
def agreement(
    run_folder: RunFolder,
    other: Annotated[Path, typer.Argument(help="A run folder with the same rows.")],
    json_: Json = False,
) -> None:
    """Say how alike two captures rank the rows, such as a cheap one and a full one."""
    _progress()
    _show(load("commands.agreement").agreement(run_folder, other), json_)


@command(
    groups.CheckConfig,
    without=("save_steps", "seed"),
    examples=("gradsift check MODEL", "gradsift check MODEL --lora --sft bf16=false"),
)
def check(
    settings: dict[str, Any],
    model: Annotated[
        str | None, typer.Argument(help='Hub id, folder with safetensors, or "demo".')
    ] = None,
    config: ConfigFiles = None,
    trainer_config: TrainerConfigs = None,
    json_: Json = False,
) -> None:
    """Say whether recording is exact on a model: two rows against autograd."""
    _progress()
    if model is not None:
        settings["model"] = model
    # It has rows of its own, and no run folder.
    unneeded = {"data": "none", "out": "none"}
    resolved = _resolved(settings, config, trainer_config, unneeded)
    taken = groups.CheckConfig.model_fields.keys() - {"save_steps"}
    _show(load("commands.check").check(**{k: getattr(resolved, k) for k in taken}), json_)


@command(groups.PlanConfig, examples=("gradsift plan meta-llama/Llama-3.1-8B --lora --gpus 2",))
def plan(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(help="Hub id or folder with config.json.")],
    json_: Json = False,
) -> None:
    """Say what fits on which GPUs, counted from a model's configuration; no weights are loaded."""
    _show(load("commands.plan").plan(model, **settings), json_)


@command(examples=("gradsift settings", "gradsift settings truncation"))
def settings(
    name: Annotated[str | None, typer.Argument(help="Of one setting.")] = None,
    json_: Json = False,
) -> None:
    """Explain the settings: what --set, configuration files and Python take."""
    _show(load("commands.settings").explain_settings(name), json_)


@command(groups.DemoConfig, examples=("gradsift demo", "gradsift demo --compare"))
def demo(settings: dict[str, Any], json_: Json = False) -> None:
    """Run the whole job on Python's own documentation and a small model; no hub is needed."""
    progress = _progress()
    _show(load("commands.demo").demo(progress=progress, **settings), json_)


def main() -> None:
    """Run the command line.

    What the user can mend is one line on stderr and exit code 2; anything else is a mistake of
    gradsift's own, told as that, with exit code 1. --debug shows where either comes from.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    shows_nothing = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed (>&-); many a library takes it that they are not.
            setattr(sys, name, open(os.devnull, "w"))  # ruff: ignore[open-file-with-context-handler]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Not where a test or a notebook has put its own.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
        if shows_nothing:
            raise OSError(errno.EBADF, "closed: nothing could be shown", "stdout")
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1  # Whoever read has read enough; typer makes the same of it.
    except Exception as error:
        if debug:
            typer.echo(printable(traceback.format_exc()), err=True)
        if isinstance(error, OSError) and {"--help", "-h"} & {*arguments}:  # Which typer writes.
            error.filename = "stdout"
        code, line = told(error, arguments)
        if line:
            typer.echo(f"gradsift: {in_line(line)}", err=True)
    if code == 130:
        typer.echo(f"gradsift: {interrupts.STOPPED}", err=True)
    _give_up_stdout_if_it_is_full()
    interrupts.ended()
    if code:
        sys.exit(code)


def _give_up_stdout_if_it_is_full() -> None:
    """Leave nothing for Python to write at its end, where it would fail with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
