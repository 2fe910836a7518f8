"""Options of the command line, derived from the settings in `config`; what they say, by setting."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from gradsift import config as groups
from gradsift.errors import GradsiftError
from gradsift.schema import (
    Group,
    Several,
    default_of,
    extra_of,
    fields_of,
    literals,
    parse_pair,
    require_known,
)

ADVANCED = "Advanced"
# What `gradsift --help` lists, in this order.
PANELS = {
    "From a file to a subset": ("run", "capture", "select", "reference-losses", "demo"),
    "Look at a subset": (
        "report",
        "show",
        "explain",
        "audit",
        "stability",
        "strategies",
        "agreement",
    ),
    "Train on it, and compare": ("train", "compare", "push"),
    "Before a run": ("check", "plan", "settings"),
}


class InPanels(TyperGroup):
    """The commands, in the order of their panels."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names; one that stands in no panel comes last."""
        order = [name for names in PANELS.values() for name in names]
        return sorted(self.commands, key=lambda name: [*order, name].index(name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one, whose flags are shown as taking no value."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            _name_no_values(found.get_params(ctx))
        return found

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options before the command's name."""
        return _name_no_values(super().get_params(ctx))


def _name_no_values(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""  # Typer would write <bool>.
    return parameters


app = typer.Typer(
    name="gradsift",
    cls=InPanels,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pick the part of a supervised fine-tuning set that is worth training on, by each row's "
    "gradient.",
    epilog="Results go to stdout, notes and progress to stderr. Exit code 2 is for what you can "
    "mend, 1 for mistakes of gradsift's own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
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
        shown = [name for name, field in fields.items() if extra_of(field, "option")]
        # Group by group, what is required first.
        shown.sort(key=lambda name: not fields[name].is_required())
        shown.sort(key=lambda name: groups.GROUPS.index(extra_of(fields[name], "group")))
        options = [_option(name, fields[name]) for name in shown]
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
        panel = next((panel for panel, names in PANELS.items() if name in names), None)
        app.command(
            name,
            help=function.__doc__,
            epilog=epilog if examples else None,
            rich_help_panel=panel,
        )(call)
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


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag, default = f"--{name.replace('_', '-')}", default_of(field)
    kinds = _kinds(field)
    help_text, kind, more = field.description, str | None, {}
    choices = _choices(name, field)
    if name == "lora":
        kind, flag = bool | None, "--lora/--full"
    elif field.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{name.replace('_', '-')}"
    elif Several in field.metadata:
        # May be repeated, and each may hold several.
        kind, more = list[str] | None, {"metavar": "TEXT"}
    elif isinstance(default, dict):
        kind, more = list[str] | None, {"metavar": "KEY=VALUE"}
        help_text = f"{help_text} May be repeated."
    else:
        number = "INTEGER" if int in kinds and str not in kinds else "NUMBER"
        more = {"metavar": number if str not in kinds and {int, float} & {*kinds} else "TEXT"}
    if choices:
        more["autocompletion"] = choices
    if field.is_required():
        help_text = f"{help_text} \\[required, here or in a file]"
    elif default is not None and default is not False and default not in ({}, ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help_text = f"{help_text} \\[default: {shown}]"
    option = typer.Option(flag, help=help_text, rich_help_panel=extra_of(field, "group"), **more)
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _choices(name: str, field: FieldInfo) -> Callable[[], list[str]] | None:
    """Return what says the values that a shell completes, where they are few."""
    words = [str(value) for value in literals(field.annotation)]
    if words:
        return lambda: words
    if name == "strategy":
        return strategy_names
    if name in ("arm", "arms"):
        return lambda: [*load("comparison.arms").NOT_SELECTED, *strategy_names()]
    if name == "score":
        return score_names
    if name == "format":
        return lambda: list(load("data.formats").ROW_FORMATS)
    return None


def strategy_names() -> list[str]:
    """Return the names of all strategies."""
    return list(load("selection.strategies.catalogue").STRATEGIES)


def score_names(incomplete: str = "") -> list[str]:
    """Return the names of all gradient scores, after those that are joined already."""
    before, plus, _ = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in load("selection.scores").SCORES]


def _set_option(fields: Mapping[str, FieldInfo]) -> inspect.Parameter:
    names = ", ".join(name for name, field in fields.items() if not extra_of(field, "option"))
    nested = " Those of sft and lora as sft.learning_rate=1e-4." if "sft" in fields else ""
    option = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Any other setting, may be repeated: {names}.{nested} `gradsift settings` explains "
        "them.",
        rich_help_panel=ADVANCED,
        autocompletion=lambda: [f"{name}=" for name in fields],
    )
    return inspect.Parameter(
        "set_",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[list[str] | None, option],
    )


def _given(fields: Mapping[str, FieldInfo], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a command line says, by name; none may be said twice."""
    given: dict[str, Any] = {}
    for name, field in fields.items():
        value = said.get(name)
        if value is None:
            continue
        if isinstance(default_of(field), dict):
            for text in value:
                key, one = _quota(text) if name == "quota" else parse_pair(text, f"`{name}`")
                _say(given, name, key, one)
            continue
        value = ",".join(value) if isinstance(value, list) else value
        if isinstance(value, str) and str not in _kinds(field):
            value = _number(value)
        _say(given, name, None, value)
    for text in said.get("set_") or ():
        path, value = parse_pair(text, "--set")
        name, _, key = path.partition(".")
        group, _, rest = path.partition(".")
        if rest and group.title() in groups.GROUPS and dict not in _origins(fields.get(name)):
            name, _, key = rest.partition(".")
            if name in fields and extra_of(fields[name], "group").lower() != group:
                where = extra_of(fields[name], "group").lower()
                raise GradsiftError(f"--set {path}: {name} is in the group {where}.")
        require_known([name], fields, "--set")
        _say(given, name, key or None, value)
    return given


def _say(given: dict[str, Any], name: str, key: str | None, value: Any) -> None:
    path = f"{name}.{key}" if key else name
    inner = given.get(name, {})
    # --lora and then its settings say the same twice, and mean it.
    inner = {} if inner is True else inner
    if (not key and name in given) or not isinstance(inner, dict) or key in inner:
        raise GradsiftError(
            f"{path} is said twice on the command line: leave one out; several values go as A+B."
        )
    given[name] = {**inner, key: value} if key else value


def _origins(field: FieldInfo | None) -> tuple[Any, ...]:
    return () if field is None else tuple(get_origin(kind) or kind for kind in _kinds(field))


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a setting may have, one by one."""
    kinds, left = [], [field.annotation]
    while left:
        kind = left.pop()
        inner = get_args(kind) if get_origin(kind) in (Annotated, Union, UnionType) else ()
        left += inner[:1] if get_origin(kind) is Annotated else inner
        kinds += [] if inner else [kind]
    return tuple(kinds)


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


def one_file(option: str, files: Sequence[Path] | None) -> Path | None:
    """Return the file that an option names; typer would take the last of several in silence."""
    if files and len(files) > 1:
        names = ", ".join(map(str, files))
        raise GradsiftError(f"--{option} is given {len(files)} times ({names}): expected one file.")
    return files[0] if files else None


def load(module: str) -> Any:
    """Return a module of gradsift's: what a command needs is loaded when it is called."""
    return import_module(f"gradsift.{module}")
