"""The settings of a run: one flat model for the command line, YAML files and the run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gradsift.data.source import absolute
from gradsift.selection.settings import Settings
from gradsift.trainer_configs.translate import translate

CONFIG_NAME = "config.yaml"


class RunConfig(Settings):
    """Every setting of `gradsift run`, named as its options with underscores for dashes.

    Those of the selection are inherited.
    """

    data: str
    model: str
    out: str
    budget: str | int | float | None = None

    format: str | None = None
    id_column: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    system_column: str | None = None
    source_column: str | None = None
    dataset_info: str | None = None
    split: str | None = None
    train_on: Literal["all", "last"] = "all"
    chat_template: str | None = None

    max_length: int = Field(1024, ge=2)
    truncation: Literal["keep_start", "keep_end", "drop"] = "keep_start"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    load_in: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    sft: dict[str, Any] = Field(default_factory=dict)
    lora: dict[str, Any] | bool = False
    signal: Literal["full", "head"] | None = None
    when: Literal["during", "after"] | None = None
    preliminary: float = Field(1.0, ge=0, le=1)
    batching: Literal["auto", "packed", "by_length", "random"] = "auto"
    recording: Literal["auto", "fused", "fused-intercepted", "hooked", "intercepted"] = "auto"
    save_steps: int | None = Field(None, ge=1)
    sketch_size: Literal[64, 128, 256, 512, 1024, 2048] = 1024

    anchor: str | None = None
    target: str | None = None
    keep: str | None = None
    drop: str | None = None
    weights: bool = False
    name: str | None = None

    @model_validator(mode="after")
    def _signal_fits(self) -> RunConfig:
        if self.when == "during" and (self.signal == "head" or self.preliminary < 1):
            raise ValueError(
                "`when: during` records the whole epoch, both layers; `signal: head` and "
                "`preliminary` below 1 need `when: after`"
            )
        return self

    @model_validator(mode="after")
    def _adapters_over_quantised_weights(self) -> RunConfig:
        if self.load_in is None or self.lora_settings() is not None:
            return self
        if "lora" in self.model_fields_set:
            raise ValueError(
                f"`load_in: {self.load_in}` quantises the weights, over which only adapters are "
                "trained: drop --full (lora: false), or take load_in out"
            )
        raise ValueError(
            f"`load_in: {self.load_in}` quantises the weights, over which only adapters are "
            "trained: add --lora (lora: true in a configuration file)"
        )

    @field_validator("budget", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("expected 50%, 500 or 20000tok")
        return value

    def with_absolute_paths(self) -> RunConfig:
        """Return the same settings, usable from any working directory.

        What does not exist as a path (a hub id, a name in dataset_info) stays as it is.
        """
        paths = {"out": str(Path(self.out).resolve())}
        paths_too = ("model", "dataset_info", "anchor", "target", "keep", "drop")
        for key in (*paths_too, *(() if self.dataset_info else ("data",))):
            value = getattr(self, key)
            # The embedded model keeps its name beside a folder that is called so too.
            if value is not None and (key, value) != ("model", "demo"):
                paths[key] = absolute(value)
        return self.model_copy(update=paths)

    def selection_settings(self) -> Settings:
        """Return the settings of the selection alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})

    def resolved_when(self) -> str:
        """Return when the signal is taken: after the epoch if that is asked for or implied."""
        implied = "after" if self.signal == "head" or self.preliminary < 1 else "during"
        return self.when or implied

    def resolved_signal(self) -> str:
        """Return what is recorded; afterwards, if nothing is said, what needs no backward pass."""
        return self.signal or ("head" if self.resolved_when() == "after" else "full")

    def lora_settings(self) -> dict[str, Any] | None:
        """Return the settings for LoRA, or None for full-parameter training."""
        if isinstance(self.lora, dict):
            return self.lora
        return {} if self.lora else None


def resolve(
    given: dict[str, Any],
    config_file: Path | None,
    trainer_config: Path | None = None,
    *,
    tell: Callable[[str], None] = lambda line: None,
    unneeded: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Put YAML files and the command line together; the command line wins, also inside `sft`.

    Args:
        given: What the command line says; None means not said.
        config_file: A YAML file, or None.
        trainer_config: A configuration of axolotl, LLaMA-Factory or trl; what the other two say
            wins.
        tell: Called with a line worth reading about the trainer's configuration.
        unneeded: Stands in for settings that nobody says, where they are of no consequence.

    Returns:
        The settings, with the paths of data and run folder made absolute.

    Raises:
        ValueError: For an unknown key, a value that does not fit or a setting that is missing; for
            what a trainer's configuration says and gradsift does not do.
    """
    values = {} if config_file is None else read_yaml(config_file)
    said = {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("sft"), dict) and "sft" in said:
        said["sft"] = values["sft"] | said["sft"]
    values |= said
    if trainer_config is not None:
        ours = {key: value for key, value in values.items() if value is not None}
        theirs = read_yaml(trainer_config)
        if theirs.keys() <= RunConfig.model_fields.keys() and theirs.keys() & {"data", "model"}:
            raise ValueError(
                f"{trainer_config}: these are settings of gradsift's own: use --config."
            )
        translation = translate(theirs, str(trainer_config), ours)
        for line in translation.notes:
            tell(line)
        values = _over(translation.settings, ours)
    files = [str(file) for file in (config_file, trainer_config) if file is not None]
    values = {**(unneeded or {}), **values}
    return validated(values, " and ".join(files) or "settings")


def _over(beneath: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    values = {**beneath, **ours}
    for key in ("sft", "lora"):
        if isinstance(ours.get(key), dict):
            values[key] = {**beneath.get(key, {}), **ours[key]}
    if ours.get("lora") is True:
        values["lora"] = beneath.get("lora", True)
    return values


def validated_settings(values: dict[str, Any]) -> Settings:
    """Check the settings of a selection.

    Args:
        values: By name.

    Returns:
        The settings.

    Raises:
        ValueError: For an unknown key or a value that does not fit.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"settings: {_one_line(error, Settings.model_fields)}") from None


def validated(values: dict[str, Any], where: str = "settings") -> RunConfig:
    """Check settings.

    Args:
        values: By name.
        where: They come from, for the message.

    Returns:
        The settings, with absolute paths.

    Raises:
        ValueError: For an unknown key, a value that does not fit or a setting that is missing.
    """
    try:
        return RunConfig.model_validate(values).with_absolute_paths()
    except ValidationError as error:
        of_selection = Settings.model_fields
        fields = [name for name in RunConfig.model_fields if name not in of_selection]
        raise ValueError(f"{where}: {_one_line(error, [*fields, *of_selection])}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: The file.

    Returns:
        Its keys and values.

    Raises:
        ValueError: If it cannot be read, or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except _KeyTwiceError as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not settings: nested too deeply.") from None
    except yaml.composer.ComposerError as error:
        if "single document" not in str(error):
            raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        line = error.problem_mark.line + 1
        raise ValueError(
            f"{path}: a second YAML document begins in line {line} (---): put the settings of both "
            "into one, or into files of their own."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: found {type(content).__name__}, expected settings as `key: value` lines."
        )
    return {str(key): value for key, value in content.items()}


def save(config: RunConfig, folder: Path) -> None:
    """Write the resolved settings into a run folder; `gradsift run --config` takes them.

    Args:
        config: The settings.
        folder: The run folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    temporary = folder / f".{CONFIG_NAME}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / CONFIG_NAME)


class _KeyTwiceError(ValueError):
    """A mapping has a key twice: YAML forbids that, and PyYAML takes the last one."""


class _SafeLoader(yaml.SafeLoader):
    """The safe loader, as people mean it.

    1e-4 is a number (YAML 1.1 wants 1.0e-4), what looks like a date or number and cannot be one is
    text, and a key that a mapping has twice is a mistake.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[object, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _KeyTwiceError(
                    f"{key_node.value} is said twice, in line {lines[key]} and in line {line}: "
                    "take one out."
                )
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):
            if not isinstance(node, yaml.ScalarNode):
                raise
            self.recursive_objects.pop(node, None)
            return node.value


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _one_line(error: ValidationError, fields: Iterable[str]) -> str:
    known = ", ".join(fields)
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}; known are {known}")
        elif item["type"] == "missing":
            lines.append(f"{key!r} is missing: give it on the command line or in the file")
        elif not item["loc"]:  # Of several settings together.
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key} is {item['input']!r}: {item['msg']}")
    return "; ".join(lines) + "."
