"""How the trainer saves and resumes: nothing is pickled, and a write that fails is one error.

It overrides private methods of transformers' trainer; `tests/training/test_trl_canary.py` pins
them.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from trl import SFTTrainer

from gradsift.errors import GradsiftError
from gradsift.files import writing
from gradsift.training.checkpoint import keep_newest
from gradsift.training.state_files import NotPlainError, load_state, save_state
from gradsift.wording import first_line

OPTIMIZER = "optimizer.safetensors"
SCHEDULER = "scheduler.safetensors"
SCALER = "scaler.safetensors"


class SavingTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints are safetensors and JSON.

    Optimizer and scheduler are saved in transformers' own way (pickled; read with weights_only,
    which builds tensors and plain values alone) under FSDP and DeepSpeed, which write parts of
    their own kind, and where an optimizer's state holds other things than tensors and plain values.
    So are checkpoints read that an earlier gradsift wrote.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights and tokenizer; of LoRA, the adapters."""
        with writing(Path(output_dir or self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # A pickle that nobody reads.
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: trl's own says nothing of how gradsift trains."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        with writing(folder / f"checkpoint-{self.state.global_step}"):
            if self.is_world_process_zero():
                keep_newest(folder)
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.saves_in_parts:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if not self.args.should_save:
            return
        try:
            save_state(Path(output_dir, SCHEDULER), self.lr_scheduler.state_dict())
            save_state(Path(output_dir, OPTIMIZER), self.optimizer.state_dict())
        except NotPlainError:
            Path(output_dir, SCHEDULER).unlink(missing_ok=True)
            super()._save_optimizer_and_scheduler(output_dir)

    @property
    def saves_in_parts(self) -> bool:
        """Whether checkpoints are of transformers' own kind, with a part for each process."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.device.type == "xla"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with _reading(checkpoint):
            if self.saves_in_parts:
                super()._load_optimizer_and_scheduler(checkpoint)
            elif Path(checkpoint, OPTIMIZER).is_file():
                self.optimizer.load_state_dict(load_state(Path(checkpoint, OPTIMIZER)))
                self.lr_scheduler.load_state_dict(load_state(Path(checkpoint, SCHEDULER)))
            else:
                for name in ("optimizer.pt", "scheduler.pt"):
                    if not Path(checkpoint, name).is_file():  # transformers would begin anew.
                        raise FileNotFoundError(f"{name} is missing")
                super()._load_optimizer_and_scheduler(checkpoint)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            save_state(Path(output_dir, SCALER), scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with _reading(checkpoint):
            if Path(checkpoint, SCALER).is_file():
                self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint, SCALER)))
            else:
                super()._load_scaler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        state = {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        }
        if (device := self._device_generator()) is not None:
            state["device"] = device.get_rng_state()
        # A process may come here before the first one has made the folder.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_state(self._rng_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with _reading(checkpoint):
            if not self._rng_file(checkpoint).is_file():
                super()._load_rng_state(checkpoint)
                return
            state = load_state(self._rng_file(checkpoint))
            random.setstate(state["python"])
            np.random.set_state(state["numpy"])
            torch.random.set_rng_state(state["cpu"])
            device = self._device_generator()
            if device is not None and "device" in state:
                device.set_rng_state(state["device"])

    def _rng_file(self, folder: str) -> Path:
        return Path(folder, f"rng_state_{self.args.process_index}.safetensors")

    def _device_generator(self) -> Any:
        # Of the device that this process uses: torch.cuda, torch.npu, ...
        device = self.args.device
        return None if device.type == "cpu" else torch.get_device_module(device)

    def take_up(self, checkpoint: Path) -> None:
        """Load weights and history of a training that has come to its end."""
        self._load_from_checkpoint(str(checkpoint))
        with _reading(str(checkpoint)):
            self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)


@contextmanager
def _reading(checkpoint: str) -> Generator[None, None, None]:
    try:
        yield
    except (
        *(OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError),
        *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    ) as error:
        raise GradsiftError(
            f"{checkpoint}: this checkpoint cannot be resumed from ({first_line(error)}). Remove "
            "it: training then resumes from the one before, or begins anew."
        ) from error
