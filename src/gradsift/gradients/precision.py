"""Which floating-point precision sums are kept in."""

from __future__ import annotations

import functools

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return float64 as it is, anything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def widest(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, or in float32 on devices that have no float64."""
    return tensor.double() if has_float64(tensor.device) else tensor.float()


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64: Apple's and some of Intel's do not."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"
