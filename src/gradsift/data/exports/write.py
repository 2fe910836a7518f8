"""Write selected rows for trainers, each by its own module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gradsift.config import RunConfig
from gradsift.data.example import Chat, Example
from gradsift.data.exports.axolotl import write_axolotl
from gradsift.data.exports.llamafactory import write_llamafactory
from gradsift.data.exports.openai import write_openai
from gradsift.data.exports.rows import NO_WEIGHTS, Exported, ExportRow, Setup
from gradsift.data.exports.trl import write_trl
from gradsift.errors import GradsiftError

WRITERS: dict[str, Callable[[Sequence[ExportRow], Path, Setup], Exported]] = {
    "trl": write_trl,
    "llamafactory": write_llamafactory,
    "axolotl": write_axolotl,
    "openai": write_openai,
}


def require_form(export: Sequence[str], examples: Iterable[Example], config: RunConfig) -> None:
    """Refuse a trainer whose form cannot say what was captured, before anything is computed."""
    examples = list(examples)
    chats = any(isinstance(example, Chat) for example in examples)
    if "openai" in export and examples and not chats:
        raise GradsiftError(
            "`export` openai: its form can say none of the rows: it takes conversations only, and "
            "every row is plain text. Take it out, or export for another trainer."
        )
    path = config.sft.get("chat_template_path")
    if "llamafactory" in export and chats and path is not None:
        raise GradsiftError(
            f"`export` llamafactory: rows are rendered by the template of sft's "
            f"chat_template_path ({path}), for which its configuration has no place: it would "
            "train on another text. Put the template into the model's folder, or export for trl "
            "or axolotl."
        )


def write_export(trainer: str, rows: Sequence[ExportRow], folder: Path, setup: Setup) -> Exported:
    """Write rows for a trainer, a key of WRITERS, into a folder.

    Raises:
        GradsiftError: If its form can say none of them, or not what was captured.
    """
    require_form([trainer], [row.example for row in rows], setup.config)
    exported = WRITERS[trainer](rows, folder, setup)
    # axolotl takes shares of sources, and says so itself.
    if trainer != "axolotl" and any(row.weight is not None for row in rows):
        return replace(exported, notes=(*exported.notes, NO_WEIGHTS))
    return exported
