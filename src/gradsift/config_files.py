"""Settings from YAML files and the command line put together; saved into a run folder, and read."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gradsift.config import RunConfig
from gradsift.data.containers.sources import absolute
from gradsift.errors import GradsiftError
from gradsift.schema import RENAMED, fields_of, migrated, require_known, validated
from gradsift.store.manifest import MANIFEST_NAME
from gradsift.trainer_configs.translate import translate

CONFIG_NAME = "config.yaml"
PATHS = ("data", "model", "dataset_info", "anchor", "target", "keep", "drop")

# Settings of trl's SFTConfig that may name a file or folder.
SFT_PATHS = ("chat_template_path", "deepspeed", "fsdp_config", "accelerator_config")

logger = logging.getLogger(__name__)


def run_config(values: Mapping[str, Any], where: str = "settings") -> RunConfig:
    """Check the settings of a run; paths become usable from any working directory.

    What does not exist as a path (a hub id, a name in dataset_info) stays as it is.
    """
    config = validated(RunConfig, values, where)
    paths: dict[str, Any] = {"out": str(Path(config.out).resolve())}
    for key in PATHS:
        value = getattr(config, key)
        is_name = key == "data" and config.dataset_info is not None
        # The embedded model keeps its name beside a folder that is called so too.
        if value is not None and not is_name and (key, value) != ("model", "demo"):
            several = isinstance(value, tuple)
            paths[key] = tuple(map(absolute, value)) if several else absolute(value)
    paths["sft"] = with_absolute_files(config.sft)
    return config.model_copy(update=paths)


def with_absolute_files(sft: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for SFTConfig whose files are found from any working directory."""
    return {
        key: absolute(value) if key in SFT_PATHS and isinstance(value, str) else value
        for key, value in sft.items()
    }


def resolve(
    given: Mapping[str, Any],
    config_file: Path | None = None,
    trainer_config: Path | None = None,
    *,
    unneeded: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Put YAML files and the command line together; the command line wins, also inside `sft`.

    Args:
        given: What the command line says.
        config_file: Settings of gradsift's own.
        trainer_config: Of axolotl, LLaMA-Factory or trl; what the other two say wins.
        unneeded: Stands in for settings that nobody says, where they are of no consequence.

    Raises:
        GradsiftError: For settings that cannot be, and for what a trainer's configuration says and
            gradsift does not do.
    """
    given = {key: value for key, value in given.items() if value is not None}
    values = {} if config_file is None else read_yaml(config_file)
    if old := values.keys() & RENAMED.keys():
        names = ", ".join(f"{name} is now {RENAMED[name][0]}" for name in sorted(old))
        logger.warning(f"{config_file}: names of an earlier gradsift are read as today's: {names}")
    values = migrated(values)
    require_known(values, RunConfig.model_fields, str(config_file))
    if config_file is not None and (config_file.parent / MANIFEST_NAME).exists():
        # A run of before this setting dropped them.
        values.setdefault("duplicate_ids", "drop")
    values = _over(values, given)
    if trainer_config is not None:
        values = {key: value for key, value in values.items() if value is not None}
        theirs = read_yaml(trainer_config)
        if theirs.keys() <= fields_of(RunConfig).keys() and theirs.keys() & {"data", "model"}:
            raise GradsiftError(
                f"{trainer_config}: these are settings of gradsift's own: use `config`."
            )
        translation = translate(theirs, str(trainer_config), values)
        for line in translation.notes:
            logger.info(line)
        values = _over(translation.settings, values)
    files = [str(file) for file in (config_file, trainer_config) if file is not None]
    return run_config({**(unneeded or {}), **values}, " and ".join(files) or "settings")


def _over(beneath: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = {**beneath, **above}
    for key in ("sft", "lora"):
        if isinstance(beneath.get(key), dict) and isinstance(above.get(key), dict):
            values[key] = {**beneath[key], **above[key]}
    if above.get("lora") is True:
        values["lora"] = beneath.get("lora") or True
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; the message names file and line where it is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except OSError as error:
        raise GradsiftError(f"{path}: cannot be read ({error.strerror}).") from None
    except _KeyTwiceError as error:
        raise GradsiftError(f"{path}: {error}") from None
    except RecursionError:
        raise GradsiftError(f"{path}: not settings: nested too deeply.") from None
    except yaml.composer.ComposerError as error:
        if "single document" not in str(error):
            raise GradsiftError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        line = error.problem_mark.line + 1
        raise GradsiftError(
            f"{path}: a second YAML document begins in line {line} (---): put the settings of both "
            "into one, or into files of their own."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GradsiftError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise GradsiftError(
            f"{path}: found {type(content).__name__}, expected settings as `key: value` lines."
        )
    return {str(key): value for key, value in content.items()}


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
