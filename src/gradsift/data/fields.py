"""Take a field out of a record, or say as a RowError what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gradsift.data.example import RowError


def require(record: Mapping[str, Any], name: str) -> Any:
    """Return a field that must be there and not null.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field.
    """
    if record.get(name) is None:
        raise RowError("missing_field", f"no field {name!r}; found {sorted(record)}")
    return record[name]


def require_text(record: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field or wrong_type.
    """
    value = require(record, name)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected text")
    return value


def require_list(record: Mapping[str, Any], name: str) -> list[Any]:
    """Return a field that must be a list.

    Args:
        record: Fields by name.
        name: Of the field.

    Returns:
        Its value.

    Raises:
        RowError: missing_field or wrong_type.
    """
    value = require(record, name)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{name} is {type_name(value)}, expected a list")
    return value


def optional_text(record: Mapping[str, Any], name: str | None) -> str | None:
    """Return a field that must be text if it has a name, is there and is not null."""
    return None if name is None or record.get(name) is None else require_text(record, name)


def tool_schemas(record: Mapping[str, Any], name: str | None) -> list[Any] | None:
    """Return tool schemas, a list or JSON text of one.

    Args:
        record: Fields by name.
        name: Of the field; None where the rows have none.

    Returns:
        The schemas, or None where there are none.

    Raises:
        RowError: wrong_type.
    """
    schemas = None if name is None else record.get(name)
    if isinstance(schemas, str) and schemas.strip():
        try:
            schemas = json.loads(schemas)
        except (ValueError, RecursionError):
            raise RowError("wrong_type", f"{name} is text but not JSON") from None
    if not schemas:
        return None
    if not isinstance(schemas, list):
        raise RowError("wrong_type", f"{name} is {type_name(schemas)}, expected a list")
    return schemas


def type_name(value: object) -> str:
    """Return what a user calls the type of a value."""
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)
