"""What a model does to the LM head's output before the softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.backends import widest


@dataclass(frozen=True)
class HeadTransform:
    """Scale, then soft-cap: `cap · tanh(scale · z / cap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits for the head's raw output `z` (any shape)."""
        z = z if self.scale == 1 else z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def derivative(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Return d logits / d z, given the logits themselves."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())


def transform_deviation(
    z_BTV: torch.Tensor, logits_BTV: torch.Tensor, transform: HeadTransform
) -> torch.Tensor:
    """Return how far a transform is from what a model did at the last position, 0-d.

    In multiples of what is allowed: at most 1 where it is that transform.
    """
    z_V, logits_V = (widest(t.flatten(0, -2)[-1]) for t in (z_BTV, logits_BTV))
    tolerance = 1e-2 if logits_BTV.dtype in (torch.bfloat16, torch.float16) else 1e-4
    allowed_V = tolerance * logits_V.abs() + tolerance / 10
    return ((transform.forward(z_V) - logits_V).abs() / allowed_V).amax()


def transform_between(
    z_BTV: torch.Tensor, logits_BTV: torch.Tensor, expected: HeadTransform
) -> HeadTransform:
    """Return what a model did to the head's output: what is expected, or nothing.

    Some models scale the head's input instead of its output, as the same setting would have it.
    Waits for the device.
    """
    for transform in (expected, HeadTransform()):
        deviation = float(transform_deviation(z_BTV, logits_BTV, transform))
        if not deviation > 1:
            return transform
    z_V, logits_V = (widest(t.flatten(0, -2)[-1]) for t in (z_BTV, logits_BTV))
    ratio = float((logits_V * z_V).sum() / (z_V * z_V).sum())
    raise GradsiftError(
        "the model changes the logits after the head in a way that is not known here: they are "
        f"about {ratio:.4g} times the head's output, the configuration says {expected}."
    )
