"""Settings from YAML files and the command line put together; saved into a run folder, and read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsift.config import RunConfig, with_preset
from gradsift.data.containers.sources import absolute
from gradsift.errors import GradsiftError
from gradsift.schema import RENAMED, fields_of, migrated, require_known, validated
from gradsift.store.manifest import MANIFEST_NAME
from gradsift.trainer_configs.translate import translate
from gradsift.training.settings.known import PATHS as SFT_PATHS
from gradsift.yaml_files import read_yaml_file

CONFIG_NAME = "config.yaml"
PATHS = ("data", "model", "dataset_info", "anchor", "target", "keep", "drop")

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
    if values.pop("trust_remote_code", False) and "trust_remote_code" not in given:
        warn_of_code(config_file)
    require_known(values, RunConfig.model_fields, str(config_file))
    if config_file is not None and (config_file.parent / MANIFEST_NAME).exists():
        # A run of before this setting dropped them.
        values.setdefault("duplicate_ids", "drop")
    _tell_names(config_file, {k: v for k, v in values.items() if k not in given})
    # A preset on the command line wins over single settings in the file.
    beneath = with_preset({"preset": given.get("preset")}).keys() - {"preset"} - given.keys()
    if replaced := sorted(beneath & values.keys()):
        logger.info(f"`preset` {given['preset']} replaces, of {config_file}: {', '.join(replaced)}")
    values = _over(with_preset(values), with_preset(given))
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
        _tell_names(
            trainer_config, {k: v for k, v in translation.settings.items() if k not in values}
        )
        values = _over(translation.settings, values)
    files = [str(file) for file in (config_file, trainer_config) if file is not None]
    return run_config({**(unneeded or {}), **values}, " and ".join(files) or "settings")


def _tell_names(path: Path | None, values: Mapping[str, Any]) -> None:
    """Say which models, files and folders a file names, before any of them is used."""
    said = named(values)
    if said:
        logger.info(f"{path} names: {said}")


def named(values: Mapping[str, Any]) -> str:
    """Return the models, files and folders that settings name, as `setting 'value', ...`."""
    sft = values.get("sft") if isinstance(values.get("sft"), dict) else {}
    places = [(key, values.get(key)) for key in (*PATHS, "revision", "out")]
    places += [(f"sft.{key}", sft.get(key)) for key in SFT_PATHS]
    return ", ".join(
        f"{key} {value!r}" for key, value in places if isinstance(value, str | list | tuple)
    )


def warn_of_code(path: Path | None) -> None:
    """Say that a file asks for code to be run, which it cannot."""
    logger.warning(
        f"{path} asks for code of the model to be run: a file cannot say so. Read that code, then "
        "give `trust_remote_code`."
    )


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
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise GradsiftError(
            f"{path}: found {type(content).__name__}, expected settings as `key: value` lines."
        )
    return {str(key): value for key, value in content.items()}
