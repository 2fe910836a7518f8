"""A loop's forward pass, differentiated by the response tokens' loss alone.

What a loop adds to its loss does not show in the model's own; so a forward pass is run again as it
was, with the random numbers that it had.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.check import require_same_loss
from gradsift.gradients.instance_loss import summed_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens

Batch = tuple[torch.Tensor, torch.Tensor, ResponseTokens]


@dataclass(frozen=True)
class RepeatableForward:
    """What it takes to run a forward pass again.

    Attributes:
        args: Positional arguments of the model's call; tensors are copies.
        random_state: Of the CPU, and of the batch's device if that is another.
        autocast: Its dtype around the call, or None.
        versions: Of the parameters, which count their changes.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: Batch
    random_state: tuple[torch.Tensor, torch.Tensor | None]
    autocast: torch.dtype | None
    versions: tuple[int, ...]

    @classmethod
    def from_call(
        cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Batch
    ) -> RepeatableForward:
        """Remember a call that is about to be made."""
        device = batch[0].device
        state = None
        if device.type != "cpu":
            state = torch.get_device_module(device).get_rng_state(device)
        autocast = torch.is_autocast_enabled(device.type)
        return cls(
            tuple(copied(value) for value in args),
            {name: copied(value) for name, value in kwargs.items()},
            batch,
            (torch.get_rng_state(), state),
            torch.get_autocast_dtype(device.type) if autocast else None,
            _versions(model),
        )

    def weights_changed(self, model: nn.Module) -> bool:
        """Return whether a parameter was changed since."""
        return self.versions != _versions(model)

    def repeat(self, recorder: Recorder, indices: Sequence[int]) -> Records:
        """Run it again, and record what the response tokens' loss brings.

        Random generators are afterwards as before.
        """
        device = self.batch[0].device
        devices = [] if device.type == "cpu" else [device]
        autocast = {"dtype": self.autocast, "enabled": self.autocast is not None}
        with (
            torch.random.fork_rng(devices, device_type=device.type),
            torch.enable_grad(),
            torch.autocast(device.type, **autocast),
            without_reentrant_checkpointing(recorder.model.outer),
        ):
            torch.set_rng_state(self.random_state[0])
            if devices:
                torch.get_device_module(device).set_rng_state(self.random_state[1], device)
            return forward_and_backward(recorder, indices, self.args, self.kwargs, self.batch)


def require_plain_loss(
    forward: RepeatableForward, records: Records, recorder: Recorder, sketch: SketchSpec
) -> None:
    """Refuse a backward pass of a loop that brought more than the response tokens' loss does.

    The self-check cannot see what a loop adds to its loss. The recorder is attached, and rests: no
    micro-batch is open.
    """
    model = recorder.model
    if forward.weights_changed(model.outer):
        warnings.warn(
            "the weights changed before what the loop's loss brought could be compared with the "
            "response tokens' own (an optimizer inside the backward pass, or one that is not "
            "torch's): terms beyond the mean negative log-likelihood of the response tokens would "
            "go unnoticed.",
            stacklevel=2,
        )
        return
    twin = Recorder(model, sketch, method=recorder.method, backend=recorder.backend)
    require_same_loss(records, forward.repeat(twin, records.indices))


def copied(value: Any) -> Any:
    """Return a copy of a tensor, which its owner may fill anew; anything else as it is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _versions(model: nn.Module) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in model.parameters())


def forward_and_backward(
    recorder: Recorder,
    indices: Sequence[int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    batch: Batch,
) -> Records:
    """Record the negative log-likelihood of a micro-batch's response tokens, whatever the loop's.

    Parameters and their gradients stay as they are: it is differentiated as far as the watched
    tensors only.
    """
    with recorder:
        recorder.begin(indices, 0, *batch)
        output = recorder.model.outer(*args, **kwargs)
        recorder.differentiate(lambda: _response_loss(output, batch[1]))
        return recorder.finish()


def _response_loss(output: Any, labels_BT: torch.Tensor) -> torch.Tensor:
    logits = getattr(output, "logits", None)
    if logits is None:
        raise GradsiftError("the loop's forward pass gives no logits, so the head is not called.")
    return summed_loss(logits, labels_BT)


@contextmanager
def without_reentrant_checkpointing(model: nn.Module) -> Generator[None, None, None]:
    """Keep all activations inside a `with` block if checkpoints are reentrant.

    Those cannot be differentiated with respect to chosen tensors.
    """
    changed = [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) is True and _is_reentrant(module)
    ]
    for module in changed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in changed:
            module.gradient_checkpointing = True


def _is_reentrant(module: nn.Module) -> bool:
    # transformers binds the keywords of torch's function to the module.
    function = getattr(module, "_gradient_checkpointing_func", None)
    return getattr(function, "keywords", {}).get("use_reentrant") is not False  # torch's default.
