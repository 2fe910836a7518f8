"""What the command line said → arguments of the Python functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def given_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the command line says about settings, with `--sft key=value` as a mapping.

    Args:
        arguments: Of a command, by name.

    Returns:
        Without those that are no settings; None means not said.
    """
    other = {"config", "trainer_config", "dry_run", "json_", "run_folder"}
    given = {k: v for k, v in arguments.items() if k not in other and not callable(v)}
    if given.get("sft"):
        given["sft"] = _key_values(given["sft"])
    if given.get("set_"):
        given["set_"] = _key_values(given["set_"], "--set")
    if given.get("quota"):
        given["quota"] = _quotas(given["quota"])
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}


def one_file(option: str, files: Sequence[Path] | None) -> Path | None:
    """Return the file that an option names; typer would take the last of several in silence.

    Args:
        option: As it is written.
        files: What it was given.

    Returns:
        The file, or None where none is named.

    Raises:
        ValueError: For several.
    """
    if files and len(files) > 1:
        names = ", ".join(str(file) for file in files)
        raise ValueError(f"{option} is given {len(files)} times ({names}): expected one file.")
    return files[0] if files else None


def said(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the command line names.

    Args:
        arguments: Of a command, by name.

    Returns:
        Those that are not None.
    """
    return {key: value for key, value in given_settings(arguments).items() if value is not None}


def selection_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Take what --set says out of the arguments, and require that it is of the selection.

    Args:
        given: From `said`; loses `set_`.

    Returns:
        SelectionConfig by name.

    Raises:
        ValueError: For another key.
    """
    from gradsift.config import SelectionConfig

    settings = given.pop("set_", {})
    for key in settings:
        if key not in SelectionConfig.model_fields or key in given:
            known = ", ".join(name for name in SelectionConfig.model_fields if name not in given)
            raise ValueError(f"--set {key}: expected one of {known}.")
    return settings


def _quotas(texts: list[str]) -> dict[str, str]:
    values = {}
    for text in texts:
        source, equals, amount = text.rpartition("=")
        if not equals or not source:
            raise ValueError(f"--quota {text}: expected SOURCE=500 or SOURCE=25%")
        values[source] = amount
    return values


def _key_values(texts: list[str], option: str = "--sft") -> dict[str, Any]:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text}: expected key=value")
        # YAML reads 1e-5 as text; JSON reads it as the number that is meant.
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = _yaml_value(f"{option} {text}", value)
    return values


def _yaml_value(text: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise ValueError(f"{text}: the value is neither JSON nor YAML.") from None
