"""A configuration of axolotl, LLaMA-Factory or trl → settings, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradsift.errors import GradsiftError
from gradsift.trainer_configs.axolotl import AXOLOTL
from gradsift.trainer_configs.keys import EMPTY, OneOf, Reading, Tool
from gradsift.trainer_configs.llamafactory import LLAMAFACTORY
from gradsift.trainer_configs.trl import TRL

TOOLS = (AXOLOTL, LLAMAFACTORY, TRL)
# Settings that hold settings.
NESTED = ("sft", "lora")


@dataclass(frozen=True)
class Translation:
    """What a configuration says.

    Attributes:
        settings: For RunConfig; `sft` and `lora` as mappings.
        notes: Which keys are not honoured and why, and what is done otherwise.
    """

    tool: str
    settings: dict[str, Any]
    notes: tuple[str, ...]


def translate(
    content: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None
) -> Translation:
    """Read a configuration of another trainer, and refuse all keys of it that cannot be honoured.

    `settings` is what the command line and `config` say, by setting; these win, and the keys that
    would become them are not read. `where` is the file, for messages.
    """
    tool = tool_of(content, where)
    file = {key: value for key, value in content.items() if value not in EMPTY}
    unsaid = {key: value for key, value in tool.defaults.items() if key not in file}
    reading = Reading(unsaid | file, frozenset(file), _flattened(settings or {}))
    reading.read(tool.keys)
    for key, why in tool.nulls.items():
        to = getattr(tool.keys[key], "to", "")
        if key in content and content[key] is None and not reading.is_taken(to):
            reading.refused[f"{key}: null"] = why
    try:
        tool.join(reading)
    except GradsiftError as error:
        raise GradsiftError(f"{where}: {error}") from None
    _require_honoured(reading, tool, where)
    return Translation(tool.name, _nested(reading.settings), _notes(reading, tool, unsaid, where))


def tool_of(content: Mapping[str, Any], where: str) -> Tool:
    """Tell whose configuration it is, by its keys."""
    # One of its own keys must be there; of several trainers it is the one that knows most keys.
    fits = [tool for tool in TOOLS if content.keys() & set(tool.marks.split())]
    known = {tool.name: len(content.keys() & tool.keys.keys()) for tool in fits}
    best = [tool for tool in fits if known[tool.name] == max(known.values())]
    if len(best) == 1:
        return best[0]
    looked_for = "; ".join(f"{tool.name}: {', '.join(tool.marks.split())}" for tool in TOOLS)
    which = "several trainers" if best else "no known trainer"
    raise GradsiftError(
        f"{where}: the keys fit {which}; looked for {looked_for}. Found: "
        f"{', '.join(content) or 'none'}. Settings of gradsift's own go to `config`."
    )


def _flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    taken = {}
    for name, value in settings.items():
        if name in NESTED and isinstance(value, Mapping):
            taken |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif (name, value) != ("lora", True):
            taken[name] = value
        else:
            # That adapters are wanted does not say which.
            taken["lora."] = True
    return taken


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name, value in settings.items():
        outer, dot, inner = name.partition(".")
        if dot:
            whole.setdefault(outer, {})[inner] = value
        else:
            whole[name] = value
    return whole


def _require_honoured(reading: Reading, tool: Tool, where: str) -> None:
    parts = []
    if reading.refused:
        reasons = "; ".join(f"{key} ({why})" for key, why in reading.refused.items())
        parts.append(f"{tool.name} settings that gradsift does not do: {reasons}.")
    if reading.unknown:
        parts.append(
            f"Keys that are not known as {tool.name}'s: {', '.join(reading.unknown)}; correct "
            "them or take them out."
        )
    if parts:
        raise GradsiftError(f"{where}: {' '.join(parts)}")


def _notes(reading: Reading, tool: Tool, unsaid: Mapping[str, Any], where: str) -> tuple[str, ...]:
    by_reason: dict[str, list[str]] = {}
    for key, why in reading.decided.items():
        by_reason.setdefault(why, []).append(key)
    groups = "; ".join(f"{', '.join(keys)} ({why})" for why, keys in by_reason.items())
    remarks = "; ".join(f"{key}: {how}" for key, how in reading.remarks.items())
    overridden = [key for key in reading.overridden if key not in reading.decided]
    defaults = ", ".join(f"{key} {value}" for key, value in _at_work(reading, tool, unsaid).items())
    lines = {
        f"read as a configuration of {tool.name}; gradsift decides, or it is of no consequence "
        "for what is recorded: ": groups,
        "done otherwise than by " + tool.name + ": ": remarks,
        "said otherwise by `config` or the command line: ": ", ".join(overridden),
        f"not said there, so as {tool.name} does: ": defaults,
    }
    return tuple(f"{where}: {title}{text}" for title, text in lines.items() if text)


def _at_work(reading: Reading, tool: Tool, unsaid: Mapping[str, Any]) -> dict[str, Any]:
    # The defaults that became settings.
    no_adapter = not any(name.startswith("lora.") for name in reading.settings)
    at_work = {}
    for name, value in unsaid.items():
        if name not in reading.values:
            continue
        key = tool.keys[name]
        to = next(iter(key.values[value])) if isinstance(key, OneOf) else getattr(key, "to", "")
        if not reading.is_taken(to) and not (no_adapter and to.startswith("lora")):
            at_work[name] = value
    return at_work
