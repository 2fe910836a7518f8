"""Training loops that are not ours: what stands around a model, and whether it can be recorded."""

from __future__ import annotations

import sys
from collections.abc import Generator

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from gradsift.errors import GradsiftError
from gradsift.training.sharding import FSDP1

NEFTUNE = (
    "NEFTune adds noise to the embeddings, which would be in the recorded gradients: set "
    "neftune_noise_alpha=None in the loop that is recorded."
)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel, DeepSpeed's engine or a compiled module."""
    while True:
        if isinstance(model, FullyShardedDataParallel):
            raise GradsiftError(FSDP1)
        devices = getattr(model, "device_ids", None) or ()
        if isinstance(model, nn.DataParallel) and len(devices) > 1:
            raise GradsiftError(
                f"nn.DataParallel over {len(devices)} devices copies the model in every step, so "
                "nothing can be watched: use DistributedDataParallel (torchrun, accelerate "
                "launch), or one device."
            )
        inner = extract_model_from_parallel(model, keep_torch_compile=False)
        if inner is model:
            return model
        model = inner


def trainer_around(model: nn.Module) -> Trainer | None:
    """Return the trainer that is calling a model just now, if one of transformers does.

    Whoever records gives a model; which rows a trainer packs, cuts or weighs, and how many updates
    it has made, only the trainer knows.
    """
    for caller in _callers():
        if isinstance(caller, Trainer) and unwrapped(caller.model) is model:
            return caller
    return None


def trainer_with(callback: TrainerCallback) -> Trainer | None:
    """Return the trainer that is calling a callback of its own just now, if one is."""
    for caller in _callers():
        if isinstance(caller, Trainer) and callback in caller.callback_handler.callbacks:
            return caller
    return None


def engine_around(model: nn.Module) -> nn.Module | None:
    """Return DeepSpeed's engine that is calling a model just now, if one does.

    Its optimizer holds other tensors than the model, and may update a part of them at a time; how
    often it has, only the engine knows.
    """
    for caller in _callers():
        if is_engine(caller) and unwrapped(caller) is model:
            return caller
    return None


def is_engine(model: object) -> bool:
    """Return whether something is DeepSpeed's engine around a model."""
    return isinstance(model, nn.Module) and hasattr(model, "global_steps")


def _callers() -> Generator[object, None, None]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals.get("self")
        frame = frame.f_back


def require_recordable(trainer: Trainer) -> None:
    """Refuse a trainer that does not fine-tune on each row's own response."""
    kind, args = type(trainer), trainer.args
    packages = [base.__module__.split(".")[0] for base in kind.__mro__]
    if "trl" in packages and not isinstance(trainer, SFTTrainer):
        raise GradsiftError(
            f"{kind.__name__} does not train on the likelihood of responses alone, which is what "
            "is recorded: use trl's SFTTrainer, or a loop of supervised fine-tuning."
        )
    if getattr(trainer, "aux_loss_enabled", False):
        raise GradsiftError(
            "the auxiliary loss of the mixture of experts couples the rows of a batch: set "
            "router_aux_loss_coef=0 in the loop that is recorded."
        )
    strategy = getattr(args, "packing_strategy", None)
    if getattr(args, "packing", False) and strategy == "wrapped":
        raise GradsiftError(
            "packing_strategy is 'wrapped': it cuts rows anywhere and lets those of a block see "
            "each other, so no row has a gradient of its own. Set packing_strategy='bfd', which "
            "keeps them apart."
        )
    if getattr(args, "neftune_noise_alpha", None):
        raise GradsiftError(NEFTUNE)
    if getattr(args, "label_smoothing_factor", 0):
        raise GradsiftError(
            "label_smoothing_factor is set, and the instance loss is the plain negative "
            "log-likelihood: set it to 0 in the loop that is recorded."
        )
