"""What a setting is: how it is declared, checked, shown, and given to functions."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gradsift.errors import GradsiftError
from gradsift.wording import short
from gradsift.yaml_files import parse_yaml

# Settings of before, and the values that were renamed with them.
RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "side": (
        "score",
        {
            "consistent": "low-norm",
            "informative": "high-norm",
            "representative": "density",
            "balanced": "high-norm-in-density",
            "grounded": "prompt-gain",
        },
    ),
    "adjust": ("detrend", {}),
    "near_threshold": ("similarity_threshold", {}),
    "when": ("record_at", {}),
    "preliminary": ("warmup_fraction", {}),
}
# Keywords of before, which are in no file.
RENAMED_KEYWORDS = {"row_format": "format", "listener": "progress"}
# Names that are listed where one is not known; of more it is only said which is like it.
FEW = 12
LONGEST_VALUE = 80


def setting(
    default: Any,
    help: str,
    group: str,
    *,
    option: bool = False,
    **limits: Any,
) -> Any:
    """Declare a setting.

    Args:
        default: What it is if nobody says it.
        help: One line; says the default where that is not a plain value.
        group: Under which it is listed.
        option: Whether the command line has an option for it; the others are given by --set.
        limits: For pydantic's Field: ge, lt, ….
    """
    extra = {"group": group, "option": option}
    if isinstance(default, dict):
        return Field(default_factory=dict, description=help, json_schema_extra=extra, **limits)
    return Field(default, description=help, json_schema_extra=extra, **limits)


def _path(value: object) -> object:
    if value == "":
        raise ValueError("expected a path, found nothing")
    return str(value) if isinstance(value, Path) else value


def _number(value: object) -> object:
    """Numpy's numbers are numbers."""
    return value.item() if hasattr(value, "item") else value


def _words(value: object) -> object:
    return tuple(re.split(r"[+, ]+", value)) if isinstance(value, str) else value


def _several(value: object) -> object:
    """One thing may be given without a list around it; text is cut at commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, Path | int | float) else value


def _data(value: object) -> object:
    """Several names may be given; one in a list is that one."""
    if isinstance(value, list | tuple):
        names = tuple(_path(one) for one in value)
        return names[0] if len(names) == 1 else names
    return _path(value)


# How much: rows, a share, tokens.
BudgetValue = Annotated[str | int | float, BeforeValidator(_number)]
PathText = Annotated[str, BeforeValidator(_path)]
DataNames = Annotated[str | tuple[str, ...], BeforeValidator(_data)]
Words = BeforeValidator(_words)
Several = BeforeValidator(_several)


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnyGroup = TypeVar("AnyGroup", bound=Group)
Verb = TypeVar("Verb", bound=Callable[..., Any])


def fields_of(*groups: type[Group]) -> dict[str, FieldInfo]:
    """Return the settings of some groups by name, each once."""
    return {name: field for group in groups for name, field in group.model_fields.items()}


def takes(
    *groups: type[Group], without: Iterable[str] | Mapping[str, str] = ()
) -> Callable[[Verb], Verb]:
    """Give a function that takes **settings their names, types, defaults and help.

    Args:
        groups: What it takes; anything else is refused before it is called.
        without: Settings of these that it does not take, perhaps with the reason.
    """
    reasons = without if isinstance(without, Mapping) else {}

    def described(function: Verb) -> Verb:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = {p.name for p in own}
        fields = {
            name: field
            for name, field in fields_of(*groups).items()
            if name not in named and name not in without
        }

        @functools.wraps(function)
        def checked(*arguments: Any, **values: Any) -> Any:
            for name in reasons.keys() & values.keys():
                raise GradsiftError(f"settings: {name!r}: {reasons[name]}.")
            require_known(values, {*fields, *named})
            return function(*arguments, **values)

        settings = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else default_of(field),
                annotation=_type_text(field.annotation, field.metadata),
            )
            for name, field in fields.items()
        ]
        # What inspect, help() and the type stub show.
        checked.__signature__ = signature.replace(parameters=[*own, *settings])
        lines = [f"    {name}: {field.description}" for name, field in fields.items()]
        text = inspect.getdoc(function) or ""
        checked.__doc__ = "\n".join([text, "", "Settings:", *lines])
        return checked

    return described


def _type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Write a type as people do, with what pydantic takes before it checks."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(inner[0], inner[1:])
    before = {getattr(note, "func", None) for note in metadata}
    if _path in before:
        return "str | Path"
    if _data in before:
        return "str | Path | Sequence[str | Path]"
    if before & {_several, _words}:
        element = _type_text(inner[0])
        return f"Sequence[{element}] | {element if _several in before else 'str'}"
    if annotation is NoneType or annotation is Ellipsis:
        return "None" if annotation is NoneType else "..."
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, inner))
    name = "Mapping" if origin is dict else (origin or annotation).__name__
    return f"{name}[{', '.join(map(_type_text, inner))}]" if inner else name


def extra_of(field: FieldInfo, key: str) -> Any:
    """Return what a setting declares beside type, default and help: group, option."""
    return field.json_schema_extra[key]


def default_of(field: FieldInfo) -> Any:
    """Return what a setting is if nobody says it."""
    return field.get_default(call_default_factory=True)


def split_settings(values: Mapping[str, Any], *groups: type[Group]) -> list[Any]:
    """Check settings of several groups; returns one model for each.

    Raises:
        GradsiftError: As `validated`.
    """
    require_known(values, fields_of(*groups))
    return [
        validated(group, {k: v for k, v in values.items() if k in group.model_fields})
        for group in groups
    ]


def validated(
    group: type[AnyGroup], values: Mapping[str, Any], where: str = "settings"
) -> AnyGroup:
    """Check settings.

    Args:
        group: What they belong to.
        values: By name.
        where: They come from, for the message.

    Raises:
        GradsiftError: For an unknown key, a value that does not fit or a setting that is missing.
    """
    require_known(values, group.model_fields, where)
    try:
        # None says nothing where a mapping is expected.
        said = {
            name: value
            for name, value in values.items()
            if value is not None or default_of(group.model_fields[name]) != {}
        }
        return group.model_validate(said)
    except ValidationError as error:
        raise GradsiftError(f"{where}: {_one_line(error)}") from None


def choices_of(group: type[Group], name: str) -> tuple[Any, ...]:
    """Return the values that a setting, or each of its parts, can have; none if any text can."""
    return tuple(literals(group.model_fields[name].annotation))


def literals(annotation: Any) -> list[Any]:
    """Return the values of all Literals in a type."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    return [value for one in inner for value in literals(one)]


def parse_pair(text: str, where: str) -> tuple[str, Any]:
    """Read key=value; the value as JSON, else as YAML.

    YAML reads 1e-5 as text; JSON reads it as the number that is meant.

    Args:
        text: What the user wrote.
        where: For the message.

    Raises:
        GradsiftError: If there is no "=", or the value is neither.
    """
    key, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise GradsiftError(f"{where} {text}: expected key=value.")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return key, parse_yaml(value, where)
    except GradsiftError:
        raise GradsiftError(f"{where} {text}: the value is neither JSON nor YAML.") from None


def require_known(values: Iterable[str], known: Iterable[str], where: str = "settings") -> None:
    """Refuse names that are no setting; those of before are told their new name."""
    known = list(known)
    for name in values:
        if name in known:
            continue
        if name in RENAMED or name in RENAMED_KEYWORDS:
            raise GradsiftError(f"{where}: {name!r} {_now_called(name)}.")
        hint = nearest(name, known)
        raise GradsiftError(f"{where}: unknown key {name!r}{'; ' * bool(hint)}{hint}.")


def _now_called(name: str) -> str:
    new, words = RENAMED.get(name) or (RENAMED_KEYWORDS[name], {})
    return f"is now called {new!r}{values_renamed(words)}"


def values_renamed(words: Mapping[str, str]) -> str:
    """Return " (old is new, …)" for the values that were renamed with a setting."""
    pairs = ", ".join(f"{old} is {word}" for old, word in words.items())
    return f" ({pairs})" if pairs else ""


def renamed_value(setting_name: str, value: str) -> str | None:
    """Return what a value of before is called today."""
    return next((words[value] for new, words in RENAMED.values()
                 if new == setting_name and value in words), None)  # fmt: skip


def nearest(name: str, known: Iterable[str], few: int = FEW) -> str:
    """Return "did you mean …" for a misspelt name, else all that is known if that is little."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"did you mean {' or '.join(close)}"
    return f"known are {', '.join(known)}" if len(known) <= few else ""


def misspelt(names: Iterable[str], known: Iterable[str]) -> str:
    """Return names that are not known, each with what it is like."""
    known, shown = list(known), []
    for name in names:
        hint = nearest(name, known)
        shown.append(f"{name} ({hint})" if hint else name)
    return ", ".join(shown)


def of_type(hint: Any, value: object, what: str) -> Any:
    """Return a value that is of an annotated type, strictly.

    Raises:
        GradsiftError: If it is not; `what` names the setting.
    """
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        messages = (item["msg"].removeprefix("Input should be ") for item in error.errors())
        expected = " or ".join(dict.fromkeys(messages))
        shown = short(repr(value), LONGEST_VALUE)
        raise GradsiftError(f"{what} is {shown}, expected {expected}.") from None


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that an earlier gradsift saved under the names they have now."""
    found = {}
    for name, value in values.items():
        new, words = RENAMED.get(name, (name, {}))
        found[new] = words.get(value, value) if isinstance(value, str) else value
    return found


def _one_line(error: ValidationError) -> str:
    messages: dict[str, list[str]] = {}
    inputs = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        allowed = re.findall(r"'([^']+)'", message) if item["type"] == "literal_error" else []
        close = difflib.get_close_matches(str(item["input"]), allowed, n=1)
        message += f" (did you mean {close[0]}?)" if close else ""
        missing = item["type"] == "missing"
        messages.setdefault(name, []).append("" if missing else message)
        inputs.setdefault(name, item["input"])
    lines = []
    for name, found in messages.items():
        # A value may be refused as each of several types.
        text = " or ".join(dict.fromkeys(found)).replace(" or Input should be ", " or ")
        if not name:  # Of several settings together.
            lines.append(text)
        elif not text:
            lines.append(f"`{name}` is missing")
        else:
            cut = short(repr(inputs[name]), LONGEST_VALUE)
            lines.append(f"`{name}` is {cut}: {text}")
    return "; ".join(lines) + "."
