"""Weights of which each process holds a part: FSDP2's DTensors, DeepSpeed's ZeRO-3 parameters."""

from __future__ import annotations

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule

from gradsift.errors import GradsiftError


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether this process holds a part of a tensor only; FSDP2's are whole while in use."""
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def is_divided(model: nn.Module) -> bool:
    """Return whether some of a model's parameters are divided among processes, also if in use."""
    return frees_weights(model) or any(is_sharded(p) for p in model.parameters())


def frees_weights(model: nn.Module) -> bool:
    """Return whether a model's weights, whole while they are used, may be freed afterwards."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shape_of(tensor: torch.Tensor) -> torch.Size:
    """Return the shape of the whole; ZeRO-3 leaves a parameter empty while it is not used."""
    return getattr(tensor, "ds_shape", tensor.shape)


def whole(
    tensor: torch.Tensor | None, *, dtype: torch.dtype, device: torch.device, is_freed: bool
) -> torch.Tensor | None:
    """Return a tensor as it is, or gathered from all processes; they all must ask for it.

    Args:
        tensor: A plain tensor, or one of which each process holds a part; None stays None.
        dtype: In which parts are sent; a plain tensor that stays keeps its own.
        device: Where parts are sent from; they may be kept elsewhere.
        is_freed: Whether a plain tensor may be freed before it was used here, see `frees_weights`.

    Returns:
        The whole, without a graph, for as long as it is needed.
    """
    if tensor is None:
        return None
    if hasattr(tensor, "full_tensor"):
        return tensor.detach().to(device, dtype).full_tensor()
    if hasattr(tensor, "ds_id"):
        return _from_partitions(tensor, dtype, device)
    return tensor.detach().to(dtype, copy=True) if is_freed else tensor.detach()


def _from_partitions(
    parameter: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    # From the partitions themselves: DeepSpeed's own gathering would free the parameter afterwards,
    # although the model may be about to use it, and refuses one that is on its way already.
    part = parameter.ds_tensor
    if not part.numel():
        raise GradsiftError(
            "DeepSpeed keeps the head's weight on NVMe (offload_param), where it cannot be read: "
            "set offload_param's device to cpu or none."
        )
    group = getattr(parameter, "ds_process_group", None)
    part = part.detach().to(device, dtype).flatten().contiguous()
    parts = part.new_empty(part.numel() * torch.distributed.get_world_size(group))
    torch.distributed.all_gather(list(parts.split(part.numel())), part, group=group)
    return parts[: parameter.ds_numel].view(parameter.ds_shape)
