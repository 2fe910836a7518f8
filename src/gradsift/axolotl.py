"""A plugin for axolotl that records the training of its configuration.

Loaded by axolotl itself, from its configuration: `plugins: [gradsift.axolotl.RecordPlugin]`.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel
from transformers import Trainer, TrainerCallback

from gradsift.commands.record import RecordCallback
from gradsift.config import LoopConfig
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError

EXPECTED = "`gradsift:` with `out` (the run folder) and `data` (the rows that are trained on)"


class RecordArgs(BaseModel):
    """What the configuration gets besides axolotl's own keys.

    Attributes:
        gradsift: `out`, `data`, how the rows are read (as for `load_pool`), and how gradients are
            recorded (as for `record`).
    """

    gradsift: dict[str, Any] | None = None


class RecordPlugin(BasePlugin):
    """Gives axolotl's trainer a RecordCallback."""

    def get_input_args(self) -> str:
        """Return where the keys are declared that the configuration may have."""
        return f"{__name__}.{RecordArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
        """Return the callback, with the pool read.

        Raises:
            GradsiftError: If something is missing or unknown, or the rows cannot be read.
        """
        settings = dict(cfg.gradsift or {})
        if not {"out", "data"} <= settings.keys():
            raise GradsiftError(
                f"plugin gradsift.axolotl.RecordPlugin: expected {EXPECTED} in the configuration, "
                f"found {sorted(settings) or 'nothing'}."
            )
        out, data = settings.pop("out"), settings.pop("data")
        how = {key: settings.pop(key) for key in list(settings) if key in LoopConfig.model_fields}
        return [RecordCallback(out=out, pool=load_pool(data, **settings), **how)]
