"""The loss whose gradients are recorded, from a model's own logits: the plain reference.

Shapes: B rows, T positions, V vocabulary, N positions that may predict a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gradsift.gradients.backends import at_least_float32
from gradsift.terms import IGNORED_LABEL


def summed_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the sum of the response tokens' negative log-likelihoods, in at least float32."""
    logits_NV = at_least_float32(logits_BTV[:, :-1].flatten(0, 1))
    return F.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum")


def mean_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean of the response tokens' negative log-likelihoods, as `summed_loss`."""
    return summed_loss(logits_BTV, labels_BT) / (labels_BT[:, 1:] != IGNORED_LABEL).sum()
