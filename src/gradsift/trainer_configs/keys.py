"""What a key of another trainer's configuration can end in: the words the tables are written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gradsift.errors import GradsiftError
from gradsift.wording import short
from gradsift.yaml_files import parse_yaml

# What counts as not said.
EMPTY = (None, "", [], {})
TABLES_FILE = Path(__file__).with_name("keys.yaml")


@dataclass(frozen=True)
class Setting:
    """The key becomes one setting.

    Attributes:
        to: A field of RunConfig, or `sft.` or `lora.` and a key of trl's SFTConfig or of peft's
            LoraConfig.
        read: Reads the value; raises GradsiftError with what was expected.
        remark: What is done otherwise than by the other trainer, to be told when the key is said.
    """

    to: str
    read: Callable[[Any], Any] = lambda value: value
    remark: str = ""


@dataclass(frozen=True)
class OneOf:
    """Some values can be honoured; each becomes the settings beside it, and all others are refused.

    Attributes:
        values: The value → settings by name; none where it says what is done anyway.
        otherwise: Why another value is refused, and what to do.
    """

    values: Mapping[Any, Mapping[str, Any]]
    otherwise: str


@dataclass(frozen=True)
class Joint:
    """The key is honoured, but what it becomes depends on other keys: the tool's `join` reads it.

    Attributes:
        to: What it becomes, in words.
        read: Reads the value; raises GradsiftError with what was expected.
    """

    to: str
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Decided:
    """gradsift decides this itself, or it is of no consequence for what is recorded: a note."""

    why: str


@dataclass(frozen=True)
class Refused:
    """It would change what is trained in a way that gradsift does not do.

    Attributes:
        why: The reason, and what to do.
        off: Values that say that it is not wanted; they are what happens anyway.
    """

    why: str
    off: tuple[Any, ...] = (False, 0)


Key = Setting | OneOf | Joint | Decided | Refused


@dataclass
class Reading:
    """A configuration while it is read.

    Attributes:
        values: By key: the file's, and the tool's defaults where it says nothing.
        given: Keys that the file itself says.
        taken: Settings that the command line or `config` says, which win, with their values; those
            inside `sft` and `lora` as `sft.key` and `lora.key`.
        settings: What the keys became so far, by name.
        decided: What gradsift decides or what is of no consequence, key → why.
        remarks: What is done otherwise, key → how.
        overridden: Keys that the command line or `config` says otherwise.
        refused: What cannot be honoured, key → why.
    """

    values: dict[str, Any]
    given: frozenset[str]
    taken: Mapping[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    decided: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    overridden: list[str] = field(default_factory=list)

    def is_taken(self, name: str) -> bool:
        """Return whether the command line or `config` says a setting."""
        return name in self.taken or name.partition(".")[0] in self.taken

    def set(self, name: str, value: Any) -> None:
        """Set a setting, unless the command line or `config` says it."""
        if not self.is_taken(name):
            self.settings[name] = value

    def refuse(self, key: str, why: str) -> None:
        """Refuse a key, and name its value with it."""
        value = self.values.get(key)
        self.refused[key if value is None else f"{key}: {short(_shown(value), 60)}"] = why

    def read(self, keys: Mapping[str, Key]) -> None:
        """Read each key for itself; those of kind Joint are left to the tool."""
        for name, value in list(self.values.items()):
            key = keys.get(name)
            if name in self.given and key is not None and self._is_overridden(key):
                self.overridden.append(name)
            if key is None:
                self.unknown.append(name)
            elif isinstance(key, Decided):
                self.decided[name] = key.why
            elif isinstance(key, Refused):
                if value not in key.off:
                    self.refuse(name, key.why)
            elif isinstance(key, OneOf):
                self._one_of(name, value, key)
            elif isinstance(key, Joint) or not self.is_taken(key.to):
                self._value(name, value, key)

    def _is_overridden(self, key: Key) -> bool:
        if isinstance(key, OneOf):
            becomes = [name for settings in key.values.values() for name in settings]
        else:
            becomes = getattr(key, "to", "").split(", ")
        return bool(becomes) and all(self.is_taken(name) for name in becomes)

    def _value(self, name: str, value: Any, key: Setting | Joint) -> None:
        try:
            value = key.read(value)
        except GradsiftError as error:
            self.refuse(name, str(error))
            del self.values[name]
            return
        if isinstance(key, Joint):
            self.values[name] = value
            return
        self._become(name, {key.to: value})
        if key.remark and name in self.given:
            self.remarks[name] = key.remark

    def _one_of(self, name: str, value: Any, key: OneOf) -> None:
        becomes = {setting for settings in key.values.values() for setting in settings}
        if any(self.is_taken(setting) for setting in becomes):
            return
        fits = [known for known in key.values if known == value and type(known) is type(value)]
        if not fits:
            self.refuse(name, key.otherwise)
            return
        self._become(name, key.values[fits[0]])

    def _become(self, name: str, settings: Mapping[str, Any]) -> None:
        for to, value in settings.items():
            if self.settings.setdefault(to, value) != value:
                self.refuse(name, f"another key says {self.settings[to]}; take one out")


@dataclass(frozen=True)
class Tool:
    """A trainer whose configurations are read.

    Attributes:
        name: As it calls itself.
        marks: Keys of which its files have at least one, with spaces between them.
        keys: Each key it documents → what becomes of it.
        defaults: What it does where a file says nothing and gradsift would do otherwise.
        join: Reads the keys that belong together.
        nulls: Keys of which null says something, and why that is refused.
    """

    name: str
    marks: str
    keys: Mapping[str, Key]
    defaults: Mapping[str, Any]
    join: Callable[[Reading], None]
    nulls: Mapping[str, str] = field(default_factory=dict)


def table(name: str, becomes: Mapping[str, Key]) -> dict[str, Key]:
    """Return a table of keys: those that become settings, and those that keys.yaml has for it."""
    kinds = {"decided": Decided, "refused": Refused}
    return dict(becomes) | {
        key: kinds[kind](group["why"])
        for kind, groups in _tables()[name].items()
        for group in groups
        for key in group["keys"].split()
    }


def each(names: str, key: Key) -> dict[str, Key]:
    """Let several keys, with spaces between them, end alike."""
    return dict.fromkeys(names.split(), key)


def same(names: str, prefix: str, read: Callable[[Any], Any]) -> dict[str, Key]:
    """Let several keys become the settings of the same names, inside `sft.` or `lora.`."""
    return {name: Setting(prefix + name, read) for name in names.split()}


@cache
def _tables() -> dict[str, Any]:
    return yaml.safe_load(TABLES_FILE.read_text(encoding="utf-8"))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # 'true' is text; without its quotes it would look like what was expected.
    is_odd_text = isinstance(value, str) and not isinstance(_as_yaml(value), str)
    return repr(value) if is_odd_text else str(value)


def _as_yaml(value: str) -> Any:
    try:
        return parse_yaml(value, "text")
    except GradsiftError:
        return value
