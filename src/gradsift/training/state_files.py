"""Nested state (of optimizers, schedulers, random generators) in one safetensors file each.

Tensors are stored as tensors, named by their path; what they are nested in, and everything else,
is JSON in the file's metadata. Reading such a file runs nothing, unlike unpickling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

_STATE = "state"


class NotPlainError(TypeError):
    """A state holds something else than tensors, arrays, numbers, texts, and nests of them."""


def save_state(path: Path, state: Any) -> None:
    """Write a state.

    Raises:
        NotPlainError: If it cannot be written so.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _Packing(tensors).packed(state, "")
    save_file(tensors, path, metadata={_STATE: json.dumps(tree)})


def load_state(path: Path) -> Any:
    """Read a state that `save_state` wrote, on the CPU."""
    with safe_open(path, framework="pt") as file:
        # Copied: what is mapped from a file would change with it.
        names = file.offset_keys()
        tensors = {name: file.get_tensor(name).clone() for name in names}
        return _unpacked(json.loads(file.metadata()[_STATE]), tensors)


class _Packing:
    def __init__(self, tensors: dict[str, torch.Tensor]):
        self._tensors = tensors
        self._names: dict[tuple, str] = {}
        self._storages: set[int] = set()

    def packed(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, dict):
            pairs = [[_key(k), self.packed(v, f"{path}/{k}")] for k, v in value.items()]
            return {"dict": pairs}
        if type(value) in (list, tuple):
            items = [self.packed(item, f"{path}/{i}") for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if type(value) is np.ndarray and value.dtype != object:
            return {"array": self._name(torch.from_numpy(value), path)}
        # Subclasses (of sharded or quantised tensors) hold more than their numbers.
        is_plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if is_plain and value.layout == torch.strided:
            return {"tensor": self._name(value.detach(), path)}
        raise NotPlainError(f"{path.lstrip('/')} is a {type(value).__name__}")

    def _name(self, tensor: torch.Tensor, path: str) -> str:
        # Of a tensor that is in the state several times (bitsandbytes' tables) there is one copy.
        storage = tensor.untyped_storage().data_ptr()
        place = (storage, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())
        if storage and place in self._names:
            return self._names[place]
        self._names[place] = path
        seen = storage in self._storages
        self._storages.add(storage)
        # safetensors takes no two tensors of one storage.
        self._tensors[path] = tensor.clone() if seen else tensor.contiguous()
        return path


def _key(key: Any) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return key
    raise NotPlainError(f"a key is a {type(key).__name__}")


def _unpacked(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in value}
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in value)
    return {"tensor": lambda t: t, "array": lambda t: t.numpy()}[kind](tensors[value])
