"""A weight of which each process holds a part, as a whole."""

from __future__ import annotations

import torch


def whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a tensor as it is, or gathered from all processes; they all must ask for it.

    Args:
        tensor: A plain tensor, or one that FSDP2 keeps as a DTensor; None stays None.

    Returns:
        The whole; a gradient flows back to the shards.
    """
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
