"""What the rows of a micro-batch leave behind, on the device and read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.backends import widest
from gradsift.gradients.statistics import GradientSummaries, GradientSummary
from gradsift.terms import EMBEDDING, LAYERS, LM_HEAD


@dataclass(frozen=True)
class Record:
    """What one row of one step leaves behind; on the CPU.

    Attributes:
        index: The row's index, as given to `begin`.
        step: Optimizer updates made before this gradient was taken.
        loss: Instance loss: mean over the response tokens, in nats.
        el2n: Mean over the response tokens of ‖softmax − one-hot‖₂ (EL2N).
        n_response_tokens: Response tokens that have a loss.
        embedding: Summary of the gradient of the instance loss at the input embedding; None if
            there was no backward pass.
        lm_head: The same at the LM head.
        content_D: Mean of the head's input over the row's tokens, float32.
        finite: Whether every number above is finite.
    """

    index: int
    step: int
    loss: float
    el2n: float
    n_response_tokens: int
    embedding: GradientSummary | None
    lm_head: GradientSummary
    content_D: torch.Tensor
    finite: bool

    @property
    def layers(self) -> tuple[str, ...]:
        """Which of LAYERS it has."""
        return tuple(layer for layer in LAYERS if getattr(self, layer) is not None)


@dataclass(frozen=True)
class Check:
    """Something that must hold of a micro-batch, looked at when its records are read.

    Attributes:
        values: Any shape, on the device; what is not a number passes (the row is not finite).
        limit: The largest that is allowed.
        message: Says what is wrong, given the largest value.
    """

    values: torch.Tensor
    limit: float
    message: Callable[[float], str]


@dataclass(frozen=True)
class Records:
    """What the rows of one micro-batch leave behind; on the device until they are read.

    `dtype` is the lowest precision among the watched tensors; losses and EL2N are float64, content
    is float32.
    """

    indices: tuple[int, ...]
    step: int
    dtype: torch.dtype
    loss_B: torch.Tensor
    el2n_B: torch.Tensor
    n_tokens_B: torch.Tensor
    content_BD: torch.Tensor
    summaries: Mapping[str, GradientSummaries]
    checks: tuple[Check, ...]

    def finite_B(self) -> torch.Tensor:
        """Return whether all numbers of each row are finite; also true without response tokens."""
        numbers = [self.loss_B, self.el2n_B, self.content_BD.sum(1)]
        for summaries in self.summaries.values():
            numbers += summaries.values_BS.unbind(1)
        is_finite_B = torch.stack([number_B.isfinite() for number_B in numbers]).all(0)
        return is_finite_B | (self.n_tokens_B == 0)

    def read(self) -> list[Record]:
        """Return a record for each row that has a response token, if all checks hold.

        Waits for the device.
        """
        checks = [check for check in self.checks if check.values.numel()]
        worst = [widest(check.values).nan_to_num(0).abs().max() for check in checks]
        values = torch.stack(worst).tolist() if worst else []
        for check, value in zip(checks, values, strict=True):
            if value > check.limit:
                raise GradsiftError(check.message(value))
        loss_B, el2n_B = self.loss_B.tolist(), self.el2n_B.tolist()
        n_tokens_B, finite_B = self.n_tokens_B.tolist(), self.finite_B().tolist()
        content_BD = self.content_BD.cpu()
        by_layer = {layer: summaries.cpu() for layer, summaries in self.summaries.items()}
        return [
            Record(
                index=index,
                step=self.step,
                loss=loss_B[row],
                el2n=el2n_B[row],
                n_response_tokens=n_tokens_B[row],
                embedding=by_layer[EMBEDDING][row] if EMBEDDING in by_layer else None,
                lm_head=by_layer[LM_HEAD][row],
                content_D=content_BD[row],
                finite=finite_B[row],
            )
            for row, index in enumerate(self.indices)
            if n_tokens_B[row]
        ]
