"""The command line: parse, call, print. Its options come from `config`; nothing heavy is loaded."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from pydantic.fields import FieldInfo

from gradsift import config as groups
from gradsift.config import Group, default_of, fields_of, nearest, parse_pair, require_known
from gradsift.errors import GradsiftError

app = typer.Typer(
    name="gradsift",
    help="Pick the part of a supervised fine-tuning set that is worth training on, by each row's "
    "gradient.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
UsageError = typer.BadParameter.__base__
ORDER = (
    groups.DATA, groups.MODEL, groups.CAPTURE, groups.TRAINING, groups.SELECTION, groups.EVALUATION,
)  # fmt: skip
ADVANCED = "Advanced"
RENAMED_COMMANDS = {"losses": "reference-losses"}

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
Budget = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Of the usable rows: 50%, 500 (rows), 20000tok (tokens) or auto.",
        rich_help_panel=groups.SELECTION,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Stop after the estimate.", rich_help_panel=ADVANCED)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=ADVANCED)
]
# Command → the settings it takes, for messages.
SETTINGS: dict[str, dict[str, FieldInfo]] = {}


def command(
    *taken: type[Group], without: Iterable[str] = (), examples: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command, with the settings of some groups as options.

    Args:
        taken: Groups; what is said of their settings comes as the function's first argument.
        without: Settings that it does not take, beside its own parameters.
        examples: Shown under its help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[bool(taken) :]
        hints = get_type_hints(function, include_extras=True)
        own = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        skipped = {*without, *(parameter.name for parameter in own)}
        fields = {k: field for k, field in fields_of(*taken).items() if k not in skipped}
        options = [
            _option(name, field) for name, field in fields.items() if _extra(field, "option")
        ]
        options.sort(
            key=lambda option: ORDER.index(option.annotation.__metadata__[0].rich_help_panel)
        )
        if len(options) < len(fields):
            options.append(_set_option(fields))

        def call(**said: Any) -> None:
            values = {parameter.name: said[parameter.name] for parameter in own}
            if taken:
                function(_given(fields, said), **values)
            else:
                function(**values)

        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in _in_order(own, options)
        ]
        call.__signature__ = inspect.Signature(parameters)
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        name = function.__name__.replace("_", "-")
        SETTINGS[name] = fields
        epilog = "\n\n".join(("Examples:", *(f"  {line}" for line in examples)))
        app.command(name, help=function.__doc__, epilog=epilog if examples else None)(call)
        return function

    return register


def _in_order(
    own: list[inspect.Parameter], options: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Return what is required first, then the settings, then what is for those who know more."""
    required = [one for one in own if one.default is one.empty or _is_argument(one)]
    advanced = [one for one in own if one not in required and _panel(one) == ADVANCED]
    usual = [one for one in own if one not in required and one not in advanced]
    return [*required, *usual, *options, *advanced]


def _is_argument(parameter: inspect.Parameter) -> bool:
    return type(parameter.annotation.__metadata__[0]).__name__ == "ArgumentInfo"


def _panel(parameter: inspect.Parameter) -> str | None:
    return parameter.annotation.__metadata__[0].rich_help_panel


def _extra(field: FieldInfo, key: str) -> Any:
    return field.json_schema_extra[key]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag, default = f"--{name.replace('_', '-')}", default_of(field)
    kinds = _kinds(field)
    help_text, kind, more = field.description, str | None, {}
    choices = _choices(name, field)
    if name == "lora":
        kind, flag = bool | None, "--lora/--full"
    elif field.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{name.replace('_', '-')}"
    elif isinstance(default, dict):
        kind, more = list[str] | None, {"metavar": "KEY=VALUE"}
        help_text = f"{help_text} May be repeated."
    else:
        number = "INTEGER" if int in kinds and str not in kinds else "NUMBER"
        more = {"metavar": number if str not in kinds and {int, float} & {*kinds} else "TEXT"}
    if choices:
        more["autocompletion"] = lambda: choices()
    if default not in (None, False, (), {}) and not field.is_required():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help_text = f"{help_text} \\[default: {shown}]"
    option = typer.Option(flag, help=help_text, rich_help_panel=_extra(field, "group"), **more)
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _choices(name: str, field: FieldInfo) -> Callable[[], list[str]] | None:
    """Return what says the values that a shell completes, where they are few."""
    words = [one for one in get_args(field.annotation) if isinstance(one, str)]
    for inner in get_args(field.annotation):
        words += [one for one in get_args(inner) if isinstance(one, str)]
    if words:
        return lambda: words
    if name == "strategy":
        return lambda: list(_import("selection.strategies.catalogue").STRATEGIES)
    if name == "score":
        return lambda: list(_import("selection.scores").SCORES)
    if name == "format":
        return lambda: list(_import("data.formats").ROW_FORMATS)
    return None


def _set_option(fields: Mapping[str, FieldInfo]) -> inspect.Parameter:
    names = ", ".join(name for name, field in fields.items() if not _extra(field, "option"))
    nested = " Those of sft and lora as sft.learning_rate=1e-4." if "sft" in fields else ""
    option = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Any other setting: {names}.{nested} May be repeated.",
        rich_help_panel=ADVANCED,
    )
    return inspect.Parameter(
        "set_",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[list[str] | None, option],
    )


def _given(fields: Mapping[str, FieldInfo], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a command line says, by name."""
    given: dict[str, Any] = {}
    for name, field in fields.items():
        value = said.get(name)
        if value is None:
            continue
        if isinstance(default_of(field), dict):
            value = dict(_quota(text) if name == "quota" else parse_pair(text, f"`{name}`")
                         for text in value)  # fmt: skip
        elif isinstance(value, str) and str not in _kinds(field):
            value = _number(value)
        given[name] = value
    for text in said.get("set_") or ():
        path, value = parse_pair(text, "--set")
        parts = path.split(".", 1)
        if len(parts) > 1 and parts[0] not in fields and parts[0].title() in ORDER:
            parts = parts[1].split(".", 1)
        require_known(parts[:1], fields, "--set")
        if len(parts) == 1:
            given[parts[0]] = value
        else:
            inner = given.get(parts[0])
            given[parts[0]] = {**(inner if isinstance(inner, dict) else {}), parts[1]: value}
    return given


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) or (field.annotation,)


def _number(text: str) -> object:
    """Return the number that a text is, for the message that it does not fit; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _quota(text: str) -> tuple[str, str]:
    source, _, amount = text.rpartition("=")
    if not source:
        raise GradsiftError(f"`quota` {text}: expected SOURCE=500 or SOURCE=25%.")
    return source, amount


def _one_file(option: str, files: Sequence[Path] | None) -> Path | None:
    """Return the file that an option names; typer would take the last of several in silence."""
    if files and len(files) > 1:
        names = ", ".join(map(str, files))
        raise GradsiftError(f"--{option} is given {len(files)} times ({names}): expected one file.")
    return files[0] if files else None


def _import(module: str) -> Any:
    # What a command needs is loaded when it is called.
    from importlib import import_module

    return import_module(f"gradsift.{module}")


def _show(result: Any, as_json: bool) -> None:
    """Print a result to stdout; progress and notes went to stderr."""
    if _import("console").is_first_process():
        typer.echo(json.dumps(result.summary(), ensure_ascii=False) if as_json else result.text())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(_import("version").__version__)
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
        "gradsift run rows.jsonl --model HuggingFaceTB/SmolLM2-135M --budget 50% --out runs/mine",
        "gradsift run rows.jsonl --model MODEL --lora --sft learning_rate=1e-4 --budget 10% --out R",
        "gradsift run --config runs/mine/config.yaml --set warmup_fraction=0.2 --out runs/quick",
    ),
)
def run(
    settings: dict[str, Any],
    data: Annotated[
        str | None, typer.Argument(help="SFT file, `save_to_disk` folder or hub id.")
    ] = None,
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
        "gradsift capture rows.jsonl --model HuggingFaceTB/SmolLM2-135M --out runs/mine",
        "gradsift capture rows.jsonl --model MODEL --set warmup_fraction=0 --out runs/scored",
        "gradsift capture --trainer-config axolotl.yaml --out runs/mine --dry-run",
    ),
)
def capture(
    settings: dict[str, Any],
    data: Annotated[
        str | None, typer.Argument(help="SFT file, `save_to_disk` folder or hub id.")
    ] = None,
    config: ConfigFiles = None,
    trainer_config: TrainerConfigs = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run the preliminary epoch and record every row's gradient. Run again to resume."""
    _run(settings, data, config, trainer_config, dry_run, json_, selecting=False)


def _run(
    settings: dict[str, Any],
    data: str | None,
    config: list[Path] | None,
    trainer_config: list[Path] | None,
    dry_run: bool,
    as_json: bool,
    *,
    selecting: bool,
) -> None:
    progress = _import("console").talk_on_stderr()
    if data is not None:
        settings["data"] = data
    resolved = _resolved(settings, config, trainer_config)
    run_stages = _import("commands.run").run_stages
    _show(run_stages(resolved, progress, selecting=selecting, dry_run=dry_run), as_json)


def _resolved(
    settings: dict[str, Any],
    config: list[Path] | None,
    trainer_config: list[Path] | None,
    unneeded: Mapping[str, Any] | None = None,
) -> groups.RunConfig:
    return _import("config_files").resolve(
        settings,
        _one_file("config", config),
        _one_file("trainer-config", trainer_config),
        unneeded=unneeded,
    )


@command(
    groups.SubsetConfig,
    examples=(
        "gradsift select runs/mine --budget 5%",
        "gradsift select runs/mine --budget 500 --strategy loss-middle --quota web=200",
        "gradsift select runs/mine --budget 50% --set gamma=0 --name no-similarity",
    ),
)
def select(
    settings: dict[str, Any], run_folder: RunFolder, budget: Budget, json_: Json = False
) -> None:
    """Select from a captured run, in seconds: another budget, another rule."""
    _show(_import("commands.select").select(run_folder, budget=budget, **settings), json_)


@command()
def explain(
    run_folder: RunFolder,
    row_id: Annotated[
        str, typer.Argument(help="Id of a row, line:N of the file (from 1), or row:N (from 0).")
    ],
    name: Annotated[str | None, typer.Option(help="Selection (default: all of them).")] = None,
    json_: Json = False,
) -> None:
    """Say why a row was kept or not."""
    _show(_import("commands.explain").explain(run_folder, row_id, name=name), json_)


@command(groups.SelectionConfig, examples=("gradsift strategies runs/mine --budget 5%",))
def strategies(
    settings: dict[str, Any],
    run_folder: RunFolder,
    budget: Budget,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated (default: all that can be had from what is there).",
            rich_help_panel=groups.SELECTION,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Compare what the strategies would keep: criteria, mixes, overlap. Writes nothing."""
    compared = _import("commands.strategies").strategies(
        run_folder, budget=budget, names=tuple(strategy or ()), **settings
    )
    _show(compared, json_)


@command(groups.SelectionConfig)
def stability(
    settings: dict[str, Any],
    run_folder: RunFolder,
    budget: Budget,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder with the same rows, such as one of another seed; repeated."),
    ] = None,
    json_: Json = False,
) -> None:
    """Say how much of a subset depends on score, layer, coefficient, seed or capture."""
    measured = _import("commands.stability").stability(
        run_folder, budget=budget, others=tuple(other or ()), **settings
    )
    _show(measured, json_)


@command(groups.TrainingConfig, groups.SelectionConfig, without=("strategy", "keep_models"))
def train(
    settings: dict[str, Any],
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
    json_: Json = False,
) -> None:
    """Fine-tune on the rows of an arm; weights as safetensors. Run again to resume."""
    progress = _import("console").talk_on_stderr()
    trained = _import("commands.train").train(
        run_folder, arm=arm, budget=budget, out=out, progress=progress, **settings
    )
    _show(trained, json_)


@command(
    groups.ArmsConfig,
    groups.TrainingConfig,
    groups.EvaluationConfig,
    groups.SelectionConfig,
    without=("strategy",),
    examples=(
        "gradsift compare runs/mine --test held-out.jsonl",
        "gradsift compare runs/mine --test held-out.jsonl --arms base,random,grads@5% --seeds 5",
        "gradsift compare runs/mine --test held-out.jsonl --general arc_easy,piqa --dry-run",
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
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Did it learn more, forget less, and beat random? Run again to resume."""
    progress = _import("console").talk_on_stderr()
    compared = _import("commands.compare").compare(
        run_folder,
        test=test,
        test_split=test_split,
        name=name,
        dry_run=dry_run,
        progress=progress,
        **settings,
    )
    _show(compared, json_)


@command()
def reference_losses(run_folder: RunFolder, json_: Json = False) -> None:
    """Compute the losses of the untrained model that some rules need. Run again to resume."""
    progress = _import("console").talk_on_stderr()
    compute = _import("commands.reference_losses").reference_losses
    _show(compute(run_folder, progress=progress), json_)


@command()
def agreement(
    run_folder: RunFolder,
    other: Annotated[Path, typer.Argument(help="A run folder with the same rows.")],
    json_: Json = False,
) -> None:
    """Say how alike two captures rank the rows, such as a cheap one and a full one."""
    _show(_import("commands.agreement").agreement(run_folder, other), json_)


@command(groups.RunConfig, without=groups.RunConfig.model_fields.keys() - groups.CHECKED)
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
    _import("console").talk_on_stderr()
    if model is not None:
        settings["model"] = model
    # It has rows of its own, and no run folder.
    unneeded = {"data": "none", "out": "none"}
    resolved = _resolved(settings, config, trainer_config, unneeded)
    asked = {name: getattr(resolved, name) for name in ("model", *sorted(groups.CHECKED))}
    _show(_import("commands.check").check(**asked), json_)


@command(groups.PlanConfig, examples=("gradsift plan meta-llama/Llama-3.1-8B --lora --gpus 2",))
def plan(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(help="Hub id or folder with config.json.")],
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="Only LoRA, or only all parameters.")
    ] = None,
    load_in: Annotated[
        str | None, typer.Option(help="Only QLoRA, with frozen weights in 4bit or 8bit.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
    ] = False,
    json_: Json = False,
) -> None:
    """Say what fits on which GPUs, counted from a model's configuration; no weights are loaded."""
    planned = _import("commands.plan").plan(
        model,
        lora=lora,
        load_in=load_in,
        revision=revision,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **settings,
    )
    _show(planned, json_)


@command()
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
    progress = _import("console").talk_on_stderr()
    shown = _import("commands.demo").demo(
        out, rows=rows, budget=budget, seed=seed, comparing=compare, progress=progress
    )
    _show(shown, json_)


def main() -> None:
    """Run the command line.

    What the user can mend is one line on stderr and exit code 2; anything else is a mistake of
    gradsift's own, told as that, with exit code 1. --debug shows where either comes from.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _told(error, arguments)
        if line:
            typer.echo(f"gradsift: {line}", err=True)
    if code == 130:
        typer.echo("gradsift: stopped; run the same command again to resume", err=True)
    if code:
        sys.exit(code)


def _told(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code for an error, and the line that tells of it."""
    if isinstance(error, UsageError):
        return 2, _usage(error)
    if isinstance(error, GradsiftError):
        return 2, _with_flags(" ".join(str(error).split()), arguments)
    if isinstance(error, OSError) and (error.filename or error.errno):
        return 2, f"{error.filename or 'the file system'}: {error.strerror or error}"
    if isinstance(error, ImportError) and (extra := _extra_with(error.name or "")):
        return 2, f"{error}. This command needs more packages: pip install 'gradsift[{extra}]'"
    if type(error).__name__ == "OutOfMemoryError":
        first_line = str(error).split("\n")[0]
        return 2, (
            f"the accelerator's memory is full ({first_line}) Lower per_device_train_batch_size "
            "(--sft) or --max-length, or train adapters (--lora); gradsift plan MODEL says what "
            "fits."
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}gradsift{os.sep}" in frame.filename]
    at = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    what = " ".join(str(error).split())
    return 1, (
        f"{type(error).__name__}{at}: {what}. This is a mistake of gradsift's own: please report "
        "it, with the command and what --debug shows. What was computed so far is kept."
    )


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help(), err=True)
        return ""
    name = (context.info_name or "") if context else ""
    option = getattr(error, "option_name", "") or ""
    setting = option.lstrip("-").replace("-", "_").removesuffix("_")
    fields = SETTINGS.get(name, {})
    message = error.format_message()
    if unknown := re.match(r"No such command '([\w-]+)'", message):
        if unknown[1] in RENAMED_COMMANDS:
            return f"{unknown[1]} is now called: gradsift {RENAMED_COMMANDS[unknown[1]]}"
        return f"no command {unknown[1]!r}; {nearest(unknown[1], SETTINGS)}"
    setting = {"layer": "layers", "statistic": "signal_statistics", "near": "near_threshold"}.get(
        setting, setting
    )
    if option and setting in fields:
        return f"{option} has no option of its own: write --set {setting}=VALUE"
    if option and setting in groups.RENAMED and groups.RENAMED[setting][0] in fields:
        new, words = groups.RENAMED[setting]
        also = ", ".join(f"{old} is {word}" for old, word in words.items())
        return f"{option} is now {_flag(new, fields)}" + (f" ({also})" if also else "")
    if option and type(error).__name__ == "NoSuchOption":
        flags = [_flag(known, fields) for known in fields]
        return f"no option {option}; {nearest(option, flags)} (gradsift {name} --help)"
    return f"{message} (gradsift {name} --help)"


def _flag(name: str, fields: Mapping[str, FieldInfo]) -> str:
    if name in fields and not _extra(fields[name], "option"):
        return f"--set {name}"
    return f"--{name.replace('_', '-')}"


def _with_flags(message: str, arguments: Sequence[str]) -> str:
    """Show settings, which stand in backticks, as this command's options."""
    name = next((word for word in arguments if word in SETTINGS), "")
    known = {*fields_of(groups.RunConfig, groups.ArmsConfig, groups.TrainingConfig,
                        groups.EvaluationConfig), *SETTINGS.get(name, {}), "test", "config",
             "dry_run", "arm", "other"}  # fmt: skip
    return re.sub(
        r"`(\w+)`",
        lambda m: _flag(m[1], SETTINGS.get(name, {})) if m[1] in known else m[0],
        message,
    )


def _extra_with(module: str) -> str | None:
    """Return the extra of gradsift's that a missing module comes with."""
    package = module.split(".")[0].replace("_", "-")
    package = {"vl-convert": "vl-convert-python"}.get(package, package)
    try:
        requirements = requires("gradsift") or []
    except PackageNotFoundError:
        return None
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", marker):
            extras.setdefault(extra[1], []).append(re.match(r"[\w.-]+", name)[0].lower())
    # Extras contain each other: the smallest is what is missing.
    having = [extra for extra, packages in extras.items() if package in packages]
    return min(having, key=lambda extra: len(extras[extra]), default=None)
