"""See every use of two weights, whichever module or function makes it.

A module's hooks see what the module takes and gives; where the module scales or normalises inside,
or the weight is used without its module, that is not what the weight's gradient is made of. The
functions `F.embedding` and `F.linear` are. Slower by a Python call for every torch function of the
forward pass, so it is used only where hooks are not exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


def is_plain(embedding: nn.Embedding) -> bool:
    """Return whether an embedding gives what it looks up, so that its hooks see the table's use."""
    return type(embedding).forward is nn.Embedding.forward and "forward" not in vars(embedding)


class Interception:
    """Watches a model's forward passes for uses of its table and its head."""

    def __init__(
        self,
        outer: nn.Module,
        table: nn.Module,
        head: nn.Module,
        on_table_use: Callable[[torch.Tensor, torch.Tensor, int | None], None],
        on_head_use: Callable[[torch.Tensor, torch.Tensor], None],
    ):
        """Nothing is attached yet.

        Args:
            outer: The module whose forward passes are watched.
            table: The embedding.
            head: The head; its weight may be the same one.
            on_table_use: Called with tokens, output and padding index.
            on_head_use: Called with input and output.
        """
        self._outer = outer
        self._mode = _Mode(table, head, on_table_use, on_head_use)

    def attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch from now on.

        Returns:
            Handles that end it.
        """
        return [
            self._outer.register_forward_pre_hook(lambda module, inputs: self.begin()),
            self._outer.register_forward_hook(self._end, always_call=True),
        ]

    def begin(self) -> None:
        """Watch until the forward pass ends; called by itself only if one is under way already."""
        self._mode.__enter__()

    def _end(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self._mode.__exit__(None, None, None)


class _Mode(TorchFunctionMode):
    def __init__(
        self,
        table: nn.Module,
        head: nn.Module,
        on_table_use: Callable[[torch.Tensor, torch.Tensor, int | None], None],
        on_head_use: Callable[[torch.Tensor, torch.Tensor], None],
    ):
        super().__init__()
        # What stands in for a layer is watched by its module, and computes its weight when asked.
        self._table, self._head = (m if isinstance(m, nn.Module) else None for m in (table, head))
        self._on_table_use, self._on_head_use = on_table_use, on_head_use

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
