"""What a recording is made of: the modules that are watched, and what each row leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gradsift.gradients.fused import FusedHead
from gradsift.gradients.head import HeadTransform
from gradsift.gradients.statistics import GradientSummary

RecordingPath = Literal["fused", "fused-intercepted", "hooked", "intercepted"]


@dataclass(frozen=True)
class SketchSpec:
    """Size and seed of the gradient sketches: `rank`² numbers for each layer."""

    rank: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """What one row of one step leaves behind.

    Attributes:
        index: The row's index, as given to `begin`.
        step: Optimizer updates made before this gradient was taken.
        loss: Instance loss: mean over the response tokens, in nats.
        error_norm: Mean over the response tokens of ‖softmax − one-hot‖₂ (EL2N).
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
    error_norm: float
    n_response_tokens: int
    embedding: GradientSummary | None
    lm_head: GradientSummary
    content_D: torch.Tensor
    finite: bool


@dataclass(frozen=True)
class TrackedModel:
    """The modules whose inputs and outputs are watched.

    Attributes:
        outer: The module that training calls.
        backbone: Its output carries `last_hidden_state` [B, T, D].
        embedding: The input embedding.
        head: The output projection; only its weight and bias are read.
        transform: What happens to the head's output before the softmax.
        fused: The head that training calls in its place, if it does.
    """

    outer: nn.Module
    backbone: nn.Module
    embedding: nn.Embedding
    head: nn.Linear
    transform: HeadTransform
    fused: FusedHead | None = None
