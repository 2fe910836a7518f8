"""The layers that are watched, and their weights: wrapped, quantised, sharded among processes.

A module's hooks see what the module takes and gives; where the module scales or normalises inside,
or the weight is used without its module, that is not what the weight's gradient is made of. The
functions `F.embedding` and `F.linear` are, and can be intercepted. That is slower by a Python call
for every torch function of the forward pass, so it is used only where hooks are not exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradsift.errors import GradsiftError
from gradsift.gradients.transform import HeadTransform

if TYPE_CHECKING:
    from gradsift.gradients.fused import FusedHead


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
    ) -> RemovableHandle:
        """Watch the module; the hook is called with this in the module's place."""
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


def is_plain(embedding: nn.Embedding) -> bool:
    """Return whether an embedding gives what it looks up, so that its hooks see the table's use."""
    return type(embedding).forward is nn.Embedding.forward and "forward" not in vars(embedding)


class Interception(TorchFunctionMode):
    """Watches a model's forward passes for every use of its table and its head, by whichever code.

    `on_table_use` is called with tokens, output and padding index, `on_head_use` with input and
    output.
    """

    def __init__(
        self,
        outer: nn.Module,
        table: nn.Module,
        head: nn.Module,
        on_table_use: Callable[[torch.Tensor, torch.Tensor, int | None], None],
        on_head_use: Callable[[torch.Tensor, torch.Tensor], None],
    ):
        super().__init__()
        self._outer = outer
        # What stands in for a layer is watched by its module, and computes its weight when asked.
        self._table, self._head = (m if isinstance(m, nn.Module) else None for m in (table, head))
        self._on_table_use, self._on_head_use = on_table_use, on_head_use

    def attach(self) -> list[RemovableHandle]:
        """Watch from now on, until the handles are removed."""
        return [
            self._outer.register_forward_pre_hook(lambda module, inputs: self.begin()),
            self._outer.register_forward_hook(self._end, always_call=True),
        ]

    def begin(self) -> None:
        """Watch until the forward pass ends; called by itself only if one is under way already."""
        self.__enter__()

    def _end(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.embedding:
            tokens, weight, padding_idx = _arguments(
                args, kwargs, ("input", "weight", "padding_idx")
            )
            # FSDP2 puts another tensor there while the module is used.
            if self._table is not None and weight is self._table.weight:
                self._on_table_use(tokens, output, padding_idx)
        elif func is F.linear and self._head is not None:
            x, weight = _arguments(args, kwargs, ("input", "weight"))
            if weight is self._head.weight:
                self._on_head_use(x, output)
        return output


def _arguments(args: tuple, kwargs: dict[str, object], names: tuple[str, ...]) -> list:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


# Weights of which each process holds a part: FSDP2's DTensors, DeepSpeed's ZeRO-3 parameters.


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether this process holds a part of a tensor only; FSDP2's are whole while in use."""
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def has_sharded_weights(model: nn.Module) -> bool:
    """Return whether some of a model's parameters are sharded, also where they are whole in use."""
    return reshards_weights(model) or any(is_sharded(p) for p in model.parameters())


def reshards_weights(model: nn.Module) -> bool:
    """Return whether a model's weights, whole while they are used, are sharded again (FSDP2)."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shape_of(tensor: torch.Tensor) -> torch.Size:
    """Return the shape of the whole; ZeRO-3 leaves a parameter empty while it is not used."""
    return getattr(tensor, "ds_shape", tensor.shape)


def whole(
    tensor: torch.Tensor | None, *, dtype: torch.dtype, device: torch.device, is_resharded: bool
) -> torch.Tensor | None:
    """Return a tensor as it is, or gathered from all processes, which all must ask; no graph.

    Parts, which may be kept elsewhere, are sent in this dtype from this device; a plain tensor that
    stays keeps its own. `is_resharded` says whether it may be sharded again before it is used, see
    `reshards_weights`.
    """
    if tensor is None:
        return None
    if hasattr(tensor, "full_tensor"):
        return tensor.detach().to(device, dtype).full_tensor()
    if hasattr(tensor, "ds_id"):
        return _from_partitions(tensor, dtype, device)
    return tensor.detach().to(dtype, copy=True) if is_resharded else tensor.detach()


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
