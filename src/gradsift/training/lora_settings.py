"""The user's settings for peft's LoraConfig: what they may be, and whether they fit a model.

peft itself leaves out a name that no module has, as long as another one is found.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.terms import LM_HEAD

ALL_LINEAR = "all-linear"
# What gradsift decides itself: the values that say so, and why another is refused.
RESERVED_LORA: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "adapters are LoRA's"),
    "task_type": (("CAUSAL_LM",), "causal language models only"),
    "inference_mode": ((False,), "the adapters are trained"),
    "base_model_name_or_path": ((), "the model is said by `model`"),
    "revision": ((), "the model's revision is said by `revision`"),
    "auto_mapping": ((), "the model's class is the one that transformers chooses"),
    "peft_version": ((), "it is the one that is installed"),
    "runtime_config": ((), "adapters are kept where the model is"),
}
DEFAULTS = {"task_type": "CAUSAL_LM", "target_modules": ALL_LINEAR}
# peft takes what its annotation does not say, and says itself what it takes.
CHECKED_BY_PEFT = ("init_lora_weights", "layer_replication")
N_SHOWN = 8

_HINTS = get_type_hints(LoraConfig) | {"lora_alpha": int | float}


def read_lora(lora: Mapping[str, object]) -> LoraConfig:
    """Build peft's configuration.

    Args:
        lora: The user's settings.

    Returns:
        The configuration.

    Raises:
        ValueError: For a key that LoraConfig does not know or that gradsift sets itself, a value of
            another type, or an adapter of the head.
    """
    unknown = sorted(lora.keys() - LoraConfig.__dataclass_fields__.keys())
    if unknown:
        raise GradsiftError(f"lora settings that peft's LoraConfig does not know: {unknown}.")
    reasons = [
        f"{key}: {why}"
        for key, (same, why) in RESERVED_LORA.items()
        if lora.get(key) is not None and lora[key] not in same
    ]
    if reasons:
        raise GradsiftError(f"lora settings that gradsift decides itself: {'; '.join(reasons)}.")
    values = {key: _read(key, value) for key, value in lora.items() if key not in RESERVED_LORA}
    targets = values.get("target_modules")
    if targets == [ALL_LINEAR]:
        values["target_modules"] = ALL_LINEAR
    elif isinstance(targets, list) and LM_HEAD in targets:
        raise GradsiftError(
            f"lora setting target_modules has {LM_HEAD!r}: trl trains no adapter of the head. "
            f"Leave it out, or train the head itself: modules_to_save: [{LM_HEAD}]."
        )
    with _errors_of_peft(lora):
        return LoraConfig(**{**DEFAULTS, **values})


@contextmanager
def adapting(
    model: nn.Module, lora: Mapping[str, object] | None, *, weights: str = ""
) -> Generator[None, None, None]:
    """Require that settings fit a model to which peft's adapters are added inside the context.

    Args:
        model: As it was loaded.
        lora: The user's settings; None for full-parameter training.
        weights: As what the model's weights are held (`quantized.weights_of`).

    Yields:
        Nothing.

    Raises:
        ValueError: For a name that no module has, or whatever peft refuses.
    """
    if lora is None:
        yield
        return
    config = read_lora(lora)
    if config.use_dora and weights.startswith("int8"):
        raise GradsiftError(
            "lora setting use_dora: peft's DoRA does not compute over weights in 8 bits; take it "
            "out, or `load_in` 4bit."
        )
    _require_names(model, config, lora)
    with _errors_of_peft(lora):
        yield
    _require_used(model, config)


def _read(key: str, value: object) -> object:
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    hint = _HINTS[key]
    kinds = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    if isinstance(value, str) and list[str] in kinds and str not in kinds:
        value = [value]
    # SelectionConfig with settings of their own are peft's classes.
    plain = all(get_args(kind) or kind in (int, float, bool, str, dict, type(None))
                for kind in kinds)  # fmt: skip
    if value is None or not plain or key in CHECKED_BY_PEFT:
        return value
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        expected = " or ".join(
            dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors())
        )
        raise GradsiftError(f"lora setting {key} is {value!r}, expected {expected}.") from None


@contextmanager
def _errors_of_peft(lora: Mapping[str, object]) -> Generator[None, None, None]:
    """Tell in one line what peft says; errors from elsewhere are left alone.

    Yields:
        Nothing.

    Raises:
        ValueError: In place of what peft raises.
    """
    try:
        yield
    # peft raises all kinds of errors for values that it does not take.
    except Exception as error:
        if not _is_of_peft(error):
            raise
        said = ", ".join(f"{key}: {value!r}" for key, value in lora.items()) or "none said"
        what = " ".join(str(error).split())
        raise GradsiftError(f"lora settings ({said}): peft refuses: {what}") from error


def _is_of_peft(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None:
        # Called by peft, or by the initializer that a dataclass of peft's is given.
        if str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == "peft":
            return True
        trace = trace.tb_next
    return False


def _require_names(model: nn.Module, config: LoraConfig, lora: Mapping[str, object]) -> None:
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def is_name(wanted: str, name: str) -> bool:
        return name == wanted or name.endswith(f".{wanted}")

    def is_pattern(wanted: str, name: str) -> bool:
        return re.match(rf"(.*\.)?({wanted})$", name) is not None

    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        value = getattr(config, key)
        if key == "exclude_modules" and isinstance(value, str):
            _require_found(key, [value], modules, lambda said, name: bool(re.fullmatch(said, name)))
        elif value and not isinstance(value, str):
            _require_found(key, value, modules, is_name)
    _require_found(
        "target_parameters",
        config.target_parameters or (),
        parameters,
        is_name,
        "of the model's parameters",
        n_parts=2,
    )
    for key in ("rank_pattern", "alpha_pattern"):
        _require_found(key, getattr(config, key) or (), modules, is_pattern)
    if config.trainable_token_indices is not None:
        _require_tokens(model, config.trainable_token_indices, modules, is_name)


def _require_found(
    key: str,
    wanted: Iterable[str],
    names: list[str],
    fits: Callable[[str, str], bool],
    whose: str = "of the model's modules",
    n_parts: int = 1,
) -> None:
    try:
        missing = [said for said in sorted(wanted) if not any(fits(said, name) for name in names)]
    except re.error as error:
        raise GradsiftError(f"lora setting {key}: not a regular expression ({error}).") from None
    if not missing:
        return
    last = list(dict.fromkeys(".".join(name.split(".")[-n_parts:]) for name in names))
    known = [name for name in last if not name.isdigit()]
    near = [
        name
        for said in missing
        for name in difflib.get_close_matches(".".join(said.split(".")[-n_parts:]), known, 2)
    ]
    hint = f"close to it: {', '.join(dict.fromkeys(near))}" if near else (
        f"there are {', '.join(known[:N_SHOWN])}{' …' * (len(known) > N_SHOWN)}")  # fmt: skip
    raise GradsiftError(f"lora setting {key}: none {whose} is {' or '.join(missing)}; {hint}.")


def _require_tokens(
    model: nn.Module,
    indices: list[int] | dict[str, list[int]],
    modules: list[str],
    fits: Callable[[str, str], bool],
) -> None:
    key = "trainable_token_indices"
    n_tokens = model.get_input_embeddings().num_embeddings
    lists = indices.values() if isinstance(indices, dict) else [indices]
    if isinstance(indices, dict):
        _require_found(key, indices, modules, fits)
    odd = [index for some in lists for index in some if not 0 <= index < n_tokens]
    if odd:
        raise GradsiftError(
            f"lora setting {key} has {odd[0]}, expected ids of tokens, from 0 to {n_tokens - 1}."
        )


def _require_used(model: nn.Module, config: LoraConfig) -> None:
    # What a name or pattern fits may still not be adapted.
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    whose = "of the adapted modules"
    for key in ("rank_pattern", "alpha_pattern"):
        _require_found(
            key,
            getattr(config, key) or (),
            adapted,
            lambda wanted, name: re.match(rf"(.*\.)?({wanted})$", name) is not None,
            whose,
        )
    layers = config.layers_to_transform
    _require_found(
        "layers_to_transform",
        [str(layer) for layer in ([layers] if isinstance(layers, int) else layers or ())],
        adapted,
        lambda wanted, name: wanted in name.split("."),
        whose,
    )
