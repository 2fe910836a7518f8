"""What an error comes to on the command line: an exit code, and one line that tells of it."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo

from gradsift import config as groups
from gradsift.cli.options import SETTINGS
from gradsift.errors import GradsiftError
from gradsift.files import free_space
from gradsift.schema import RENAMED, extra_of, fields_of, nearest, values_renamed
from gradsift.wording import first_line, one_line, short

UsageError = typer.BadParameter.__base__
# Options of before whose setting has another name.
OPTIONS_OF_BEFORE = {"layer": "layers", "statistic": "signal_statistics"}
# Distributions that are called otherwise than their module.
DISTRIBUTIONS = {"vl-convert": "vl-convert-python", "faiss": "faiss-cpu", "yaml": "pyyaml"}
RENAMED_COMMANDS = {"losses": "reference-losses"}
KEPT = "what was computed so far is kept, and the same command goes on from there."
# What to do where a file cannot be written.
CANNOT_BE_WRITTEN = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room: your share of the disk is used up",
    errno.EFBIG: "The file system takes no file as large: use another one",
    errno.EIO: "The disk or its connection fails: look into that",
    errno.EROFS: "Use a folder that can be written to",
    errno.EACCES: "Look after its owner and its rights, or use another folder",
    errno.EPERM: "Look after its owner and its rights, or use another folder",
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.EMFILE: "Allow more open files (ulimit -n)",
}
ERRNO_TEXTS = {number: os.strerror(number) for number in CANNOT_BE_WRITTEN}
# As pyarrow, safetensors, tokenizers and PyTorch's writer of checkpoints have it in their texts.
OF_A_FILE = re.compile(
    "|".join([*map(re.escape, ERRNO_TEXTS.values()), "PytorchStreamWriter failed",
              r"inline_container\.cc", r"\(os error \d+\)"])
)  # fmt: skip
NO_MEMORY = re.compile(r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory")


def told(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code for an error, and the line that tells of it."""
    if isinstance(error, UsageError):
        return 2, _usage(error, arguments)
    if isinstance(error, GradsiftError):
        return 2, with_flags(str(error), arguments)
    if (line := _of_the_system(error, arguments)) is not None:
        return 2, line
    if (package := _missing(error)) is not None:
        what = one_line(error)
        return 2, f"{what}. This command needs more packages: pip install '{package}'"
    if type(error).__name__ == "OutOfMemoryError":
        return 2, (
            f"the accelerator's memory is full ({first_line(error)}) Lower "
            "per_device_train_batch_size (--sft) or --max-length, or train adapters (--lora); "
            "gradsift plan MODEL says what fits."
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}gradsift{os.sep}" in frame.filename]
    at = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    what = one_line(error)
    return 1, (
        f"{type(error).__name__}{at}: {what}. This is a mistake of gradsift's own: please report "
        "it, with the command and what --debug shows. What was computed so far is kept."
    )


def _of_the_system(error: BaseException, arguments: Sequence[str]) -> str | None:
    """Return what is said of a file, a file system or a memory that could not do it; else None.

    Libraries wrap such an error, and those of C++ and Rust keep nothing of it but its text.
    """
    chain = list(_chain(error))
    if any(isinstance(one, MemoryError) or NO_MEMORY.search(str(one)) for one in chain):
        return (
            f"the memory is full ({short(error)}). Take fewer rows, a smaller model or a "
            f"larger machine; {KEPT}"
        )
    for one in chain:
        # What was met and dealt with on the way to another error is not what is told.
        is_it = one is error or getattr(one, "errno", None) in CANNOT_BE_WRITTEN
        if is_it and isinstance(one, OSError) and (one.filename or one.errno):
            what, number = one.strerror or first_line(one), one.errno
            path = one.filename if isinstance(one.filename, str) else None
            return _told_of_file(path, what, number, arguments)
    for one in chain:
        if match := OF_A_FILE.search(str(one)):
            number = next((n for n, words in ERRNO_TEXTS.items() if words == match[0]), None)
            return _told_of_file(None, short(one), number, arguments)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context


def _told_of_file(path: str | None, what: str, number: int | None, arguments: Sequence[str]) -> str:
    if path == "stdout" or (path is not None and number not in CANNOT_BE_WRITTEN):
        return f"{path}: {what}"
    # Where no file is named, it is one of the folder that the command works on, most likely.
    near = path or _folder_in(arguments)
    line = f"{path or 'a file could not be written'}: {what}"
    if near is not None:
        line += f" ({free_space(Path(near).absolute())} on the file system of {near})"
    return f"{line}. {CANNOT_BE_WRITTEN.get(number, 'Mend that')}; {KEPT}"


def _folder_in(arguments: Sequence[str]) -> str | None:
    """Return the folder that a command line names: what --out says, or the run folder."""
    values = [word.partition("=")[2] for word in arguments if word.startswith("--out=")]
    values += [b for a, b in itertools.pairwise(arguments) if a == "--out"] + [*arguments]
    return next((word for word in values if os.path.isdir(word)), None)


def _usage(error: Exception, arguments: Sequence[str]) -> str:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help(), err=True)
        return ""
    message = error.format_message()
    if unknown := re.match(r"No such command '([\w-]+)'", message):
        if unknown[1] in RENAMED_COMMANDS:
            return f"{unknown[1]} is now called: gradsift {RENAMED_COMMANDS[unknown[1]]}"
        return f"no command {unknown[1]!r}; {nearest(unknown[1], SETTINGS, len(SETTINGS))}"
    name = _command_in(arguments)
    see = f"(gradsift {name} --help)" if name else "(gradsift --help)"
    option = getattr(error, "option_name", "") or ""
    if type(error).__name__ != "NoSuchOption":
        return f"{message} {see}"
    return f"{_no_such_option(option, SETTINGS.get(name, {}), context)} {see}"


def _no_such_option(option: str, fields: Mapping[str, FieldInfo], context: Any) -> str:
    setting = option.lstrip("-").replace("-", "_")
    setting = OPTIONS_OF_BEFORE.get(setting, setting)
    if setting in fields:
        several = "; several go as A+B" if setting in OPTIONS_OF_BEFORE.values() else ""
        value = "" if extra_of(fields[setting], "option") else "=VALUE"
        return f"no option {option}: write {_flag(setting, fields)}{value}{several}"
    if setting in RENAMED and RENAMED[setting][0] in fields:
        new, words = RENAMED[setting]
        value = "" if extra_of(fields[new], "option") else "=VALUE"
        return f"{option} is now {_flag(new, fields)}{value}{values_renamed(words)}"
    if any(p.name == setting and not p.opts[0].startswith("-") for p in context.command.params):
        return f"no option {option}: it is the argument, {setting.upper()} without a name before it"
    # What could have been meant → what to write.
    written = {f"--{k.replace('_', '-')}": _flag(k, fields) + "=VALUE" * (not extra_of(f, "option"))
               for k, f in fields.items()}  # fmt: skip
    written |= {f"--no-{k.replace('_', '-')}": f"--set {k}=false" for k, f in fields.items()
                if f.annotation is bool}  # fmt: skip
    written |= {flag: flag for p in context.command.params for flag in (*p.opts, *p.secondary_opts)
                if flag.startswith("-")}  # fmt: skip
    written |= {"--no-lora": "--full"} if "--full" in written else {}
    close = difflib.get_close_matches(option, written, n=2)
    close = close[:1] if option in close else close
    return f"no option {option}" + (
        f"; did you mean {' or '.join(dict.fromkeys(written[one] for one in close))}?" * bool(close)
    )


def _command_in(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if word in SETTINGS), "")


def _flag(name: str, fields: Mapping[str, FieldInfo]) -> str:
    if name in fields and not extra_of(fields[name], "option"):
        return f"--set {name}"
    return f"--{name.replace('_', '-')}"


def with_flags(message: str, arguments: Sequence[str]) -> str:
    """Show settings, which stand in backticks, as this command's options.

    `max_length` becomes --max-length, `load_in: 4bit` --load-in 4bit, `lora: false` --full; and
    those without an option --set truncation=drop.
    """
    fields = SETTINGS.get(_command_in(arguments), {})
    others = ("test", "config", "dry_run", "arm", "other", "budget", "out", "name")
    known = {*fields_of(groups.RunConfig, groups.ArmsConfig, groups.ArmTrainingConfig,
                        groups.EvaluationConfig), *fields, *others}  # fmt: skip

    def shown(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in known:
            return match[0]
        flag = _flag(name, fields)
        if value is None:
            return flag
        if name == "lora" and value in ("true", "false"):
            return "--lora" if value == "true" else "--full"
        return f"{flag}={value}" if flag.startswith("--set") else f"{flag} {value}"

    return re.sub(r"`(\w+)(?:: ([^`]+))?`", shown, message)


def _missing(error: BaseException | None) -> str | None:
    """Return what to install where a package is missing; transformers wraps such an error."""
    while isinstance(error, ImportError):
        if error.name and (extra := _extra_with(error.name)) is not None:
            return f"gradsift[{extra}]" if extra else "gradsift"
        error = error.__cause__ or error.__context__
    return None


def _extra_with(module: str) -> str | None:
    """Return the extra of gradsift's that a module comes with, "" for what it always needs."""
    package = module.split(".")[0].replace("_", "-").lower()
    package = DISTRIBUTIONS.get(package, package)
    try:
        requirements = requires("gradsift") or []
    except PackageNotFoundError:
        return None
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        names = extras.setdefault(extra[1] if extra else "", [])
        names.append(re.match(r"[\w.-]+", name)[0].lower())
    # Extras contain each other: the smallest is what is missing.
    having = [extra for extra, packages in extras.items() if package in packages]
    return min(having, key=lambda extra: len(extras[extra]) if extra else 0, default=None)
