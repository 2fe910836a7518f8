"""What a model's files could make transformers run or fetch from elsewhere: refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import find_adapter_config_file

from gradsift.errors import GradsiftError
from gradsift.wording import short

INDEX = "model.safetensors.index.json"
_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


def require_plain_model(name: str, path: str, revision: str | None) -> None:
    """Refuse a model whose weights are not its own, or not in safetensors.

    Raises:
        GradsiftError: If it is an adapter, which names another model, or if its index names other
            files than safetensors beside it.
    """
    if find_adapter_config_file(path, revision=revision) is not None:
        raise GradsiftError(
            f"{name!r} holds adapters (adapter_config.json), whose weights are trained over those "
            "of another model, which that file names: merge them into it, and give the result."
        )
    index = Path(path) / INDEX
    if not index.is_file():
        return
    content = json.loads(index.read_text(encoding="utf-8"))
    files = content.get("weight_map") if isinstance(content, dict) else None
    for file in files.values() if isinstance(files, dict) else ():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or Path(file).suffix != ".safetensors"
        ):
            raise GradsiftError(
                f"{index}: names {short(repr(file), 80)}, which is no safetensors file beside it."
            )


def require_no_kernels(name: str, config: PretrainedConfig) -> None:
    """Refuse a configuration by which transformers would fetch kernels from the hub, and run them.

    Raises:
        GradsiftError: Naming the kernels.
    """
    for asked in _implementations(config):
        if "/" in asked:
            raise GradsiftError(
                f"{name!r}: its config.json asks for the kernels {short(repr(asked), 80)}, which "
                "are code from the hub. Read that code, then give `trust_remote_code`."
            )


def _implementations(config: PretrainedConfig) -> Iterator[str]:
    inside = [one for one in vars(config).values() if isinstance(one, PretrainedConfig)]
    for one in (config, *inside):
        for name in _IMPLEMENTATIONS:
            value = getattr(one, name, None)
            yield from map(str, value.values() if isinstance(value, dict) else [value])
