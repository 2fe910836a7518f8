"""What a training reports to TensorBoard, wandb or Trackio: each training a run of its own.

Only where the user asks for it in the same call: what a run folder says of it does not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from gradsift.files import require_no_link

LOGS = "logs"
# As TensorBoardCallback has it.
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"


class _WandbRun(WandbCallback):
    """Ends the run that it began: otherwise the next arm would be written into the same one."""

    _is_own = False

    def on_train_begin(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        self._is_own = self._wandb is not None and self._wandb.run is None
        super().on_train_begin(args, *others, **kwargs)

    def on_train_end(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        super().on_train_end(args, *others, **kwargs)
        if self._is_own:
            self._wandb.finish()


def reports_to(sft: Mapping[str, object]) -> list[str]:
    """Return where the user's settings have a training reported to, in the order of their words."""
    said = sft.get("report_to")
    names = [said] if isinstance(said, str) else list(said or ())
    return [name for name in dict.fromkeys(names) if name != "none"]


def run_name(sft: Mapping[str, object], run: str, title: str) -> str:
    """Return what a training is called: after the user's `run_name`, else the run folder."""
    return f"{sft.get('run_name') or run}: {title}"


def report_callbacks(sft: Mapping[str, object], name: str, folder: Path) -> list[TrainerCallback]:
    """Return what reports a training.

    Args:
        sft: The user's settings.
        name: Of the training, from `run_name`.
        folder: TensorBoard's files go into `logs` in it, unless the environment names a folder.
    """
    made: dict[str, TrainerCallback] = {}
    for where in reports_to(sft):
        if where == "wandb":
            made[where] = _WandbRun()
        elif where == "trackio":
            made[where] = TrackioCallback()
        else:
            made[where] = TensorBoardCallback()
            elsewhere = os.environ.get(TENSORBOARD_FOLDER)
            if elsewhere:
                place = Path(elsewhere).expanduser() / re.sub(r"[^\w.=-]+", "_", name)
            else:
                place = folder / LOGS
                require_no_link(place)
            made[where].logging_dir = str(place)
    return list(made.values())
