"""What a recording is made of: the modules that are watched, and what each row leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.precision import widest
from gradsift.gradients.statistics import GradientSummaries, GradientSummary
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import EMBEDDING, LM_HEAD

RecordingPath = Literal[
    "fused", "fused-intercepted", "hidden", "hidden-intercepted", "hooked", "intercepted"
]


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

    Attributes:
        indices: Of the rows, as given to `begin`.
        step: Optimizer updates made before.
        dtype: The lowest precision among the watched tensors.
        loss_B: Float64; this and the next three as in `Record`.
        error_norm_B: Float64.
        n_tokens_B: Int64.
        content_BD: Float32.
        summaries: By layer.
        checks: What must hold.
    """

    indices: tuple[int, ...]
    step: int
    dtype: torch.dtype
    loss_B: torch.Tensor
    error_norm_B: torch.Tensor
    n_tokens_B: torch.Tensor
    content_BD: torch.Tensor
    summaries: Mapping[str, GradientSummaries]
    checks: tuple[Check, ...]

    def finite_B(self) -> torch.Tensor:
        """Return whether all numbers of each row are finite; also true without response tokens."""
        numbers = [self.loss_B, self.error_norm_B, self.content_BD.sum(1)]
        for summaries in self.summaries.values():
            numbers += summaries.values_BS.unbind(1)
        is_finite_B = torch.stack([number_B.isfinite() for number_B in numbers]).all(0)
        return is_finite_B | (self.n_tokens_B == 0)

    def read(self) -> list[Record]:
        """Return a record for each row that has a response token; waits for the device.

        Returns:
            The records, in the batch's order.

        Raises:
            ValueError: If something does not hold that must.
        """
        checks = [check for check in self.checks if check.values.numel()]
        worst = [widest(check.values).nan_to_num(0).abs().max() for check in checks]
        values = torch.stack(worst).tolist() if worst else []
        for check, value in zip(checks, values, strict=True):
            if value > check.limit:
                raise GradsiftError(check.message(value))
        loss_B, error_B = self.loss_B.tolist(), self.error_norm_B.tolist()
        n_tokens_B, finite_B = self.n_tokens_B.tolist(), self.finite_B().tolist()
        content_BD = self.content_BD.cpu()
        by_layer = {layer: summaries.cpu() for layer, summaries in self.summaries.items()}
        return [
            Record(
                index=index,
                step=self.step,
                loss=loss_B[row],
                el2n=error_B[row],
                n_response_tokens=n_tokens_B[row],
                embedding=by_layer[EMBEDDING][row] if EMBEDDING in by_layer else None,
                lm_head=by_layer[LM_HEAD][row],
                content_D=content_BD[row],
                finite=finite_B[row],
            )
            for row, index in enumerate(self.indices)
            if n_tokens_B[row]
        ]


@dataclass(frozen=True)
class WatchedLayer:
    """A layer that something wraps (an adapter) or whose weight is no plain tensor (quantised).

    It stands in for the plain layer. Its gradient is that of a plain weight whose product is added
    to the module's output, which is the base weight's own where that enters by a product alone.

    Attributes:
        module: What the model calls; its inputs and outputs are watched.
        base: The layer inside, which holds the weight; perhaps the module itself.
        dense: Returns the weight as a plain tensor; may compute it.
        padding_idx: Of an embedding.
        needs_module: Why nobody may multiply by the weight in the module's place; None if one may.
    """

    module: nn.Module
    base: nn.Module
    dense: Callable[[], torch.Tensor]
    padding_idx: int | None = None
    needs_module: str | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight as a plain tensor."""
        return self.dense()

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, or None."""
        return getattr(self.base, "bias", None)

    def register_forward_hook(
        self, hook: Callable[[object, tuple, torch.Tensor], object]
    ) -> torch.utils.hooks.RemovableHandle:
        """Watch the module; the hook is called with this in the module's place.

        Returns:
            A handle that ends it.
        """
        return self.module.register_forward_hook(
            lambda module, inputs, output: hook(self, inputs, output)
        )


@dataclass(frozen=True)
class TrackedModel:
    """The modules whose inputs and outputs are watched.

    Attributes:
        outer: The module that training calls.
        backbone: Its output carries `last_hidden_state` [B, T, D].
        embedding: The input embedding.
        head: The output projection; only its weight and bias are read, and its outputs watched.
        transform: What happens to the head's output before the softmax.
        fused: The head that training calls in its place, if it does.
    """

    outer: nn.Module
    backbone: nn.Module
    embedding: nn.Embedding | WatchedLayer
    head: nn.Linear | WatchedLayer
    transform: HeadTransform
    fused: FusedHead | None = None
