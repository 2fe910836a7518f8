"""What an error comes to on the command line: an exit code, and one line."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import typer
from pydantic.fields import FieldInfo

from gradsift import config as groups
from gradsift.cli.options import SETTINGS, extra_of
from gradsift.errors import GradsiftError
from gradsift.schema import RENAMED, fields_of, nearest

UsageError = typer.BadParameter.__base__
RENAMED_COMMANDS = {"losses": "reference-losses"}


def told(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code for an error, and the line that tells of it."""
    if isinstance(error, UsageError):
        return 2, _usage(error)
    if isinstance(error, GradsiftError):
        return 2, with_flags(" ".join(str(error).split()), arguments)
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
    setting = {"layer": "layers", "statistic": "signal_statistics"}.get(setting, setting)
    if option and setting in fields:
        return f"{option} has no option of its own: write --set {setting}=VALUE"
    if option and setting in RENAMED and RENAMED[setting][0] in fields:
        new, words = RENAMED[setting]
        also = ", ".join(f"{old} is {word}" for old, word in words.items())
        return f"{option} is now {_flag(new, fields)}" + (f" ({also})" if also else "")
    if option and type(error).__name__ == "NoSuchOption":
        flags = [_flag(known, fields) for known in fields]
        return f"no option {option}; {nearest(option, flags)} (gradsift {name} --help)"
    return f"{message} (gradsift {name} --help)"


def _flag(name: str, fields: Mapping[str, FieldInfo]) -> str:
    if name in fields and not extra_of(fields[name], "option"):
        return f"--set {name}"
    return f"--{name.replace('_', '-')}"


def with_flags(message: str, arguments: Sequence[str]) -> str:
    """Show settings, which stand in backticks, as this command's options."""
    name = next((word for word in arguments if word in SETTINGS), "")
    known = {*fields_of(groups.RunConfig, groups.ArmsConfig, groups.ArmTrainingConfig,
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
