"""Results go to stdout, for people or as JSON; progress goes to stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gradsift.stages.listener import Listener


def progress() -> Listener:
    """Return a listener that tells on stderr what happens."""
    from gradsift.progress import stderr_listener

    return stderr_listener()


def show(result: Any, as_json: bool) -> None:
    """Print a result.

    Args:
        result: With `summary()` and `text()`.
        as_json: Whether for a program.
    """
    from gradsift.progress import is_first_process

    if is_first_process():
        typer.echo(json.dumps(result.summary(), ensure_ascii=False) if as_json else result.text())
