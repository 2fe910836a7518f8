"""Write selected rows for trainers, each by its own module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gradsift.data.exports.axolotl import write_axolotl
from gradsift.data.exports.llamafactory import write_llamafactory
from gradsift.data.exports.openai import write_openai
from gradsift.data.exports.rows import Exported, ExportRow, Setup
from gradsift.data.exports.trl import write_trl

WRITERS: dict[str, Callable[[Sequence[ExportRow], Path, Setup], Exported]] = {
    "trl": write_trl,
    "llamafactory": write_llamafactory,
    "axolotl": write_axolotl,
    "openai": write_openai,
}


def write_export(trainer: str, rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows for a trainer, a key of WRITERS, into a folder.

    Raises:
        GradsiftError: If its form can say none of them.
    """
    return WRITERS[trainer](rows, folder, setup)
