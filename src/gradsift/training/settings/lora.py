"""The user's settings for peft's LoraConfig: what they may be, and whether they fit a model.

peft itself leaves out a name that no module has, as long as another one is found.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Literal, get_args, get_origin, get_type_hints

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.schema import misspelt, of_type
from gradsift.terms import LM_HEAD
from gradsift.training.quantized import weights_of
from gradsift.training.settings.known import (
    HEAD_IS_NOT_ADAPTED,
    INIT_FROM_DATA,
    LORA_PASSED,
    RESERVED_LORA,
    refused_of_lora,
    unknown_fields,
)
from gradsift.wording import few, one_line

ALL_LINEAR = "all-linear"
DEFAULTS = {"task_type": "CAUSAL_LM", "target_modules": ALL_LINEAR}
# peft takes what its annotation does not say, and says itself what it takes.
CHECKED_BY_PEFT = ("init_lora_weights", "layer_replication")
N_SHOWN = 8

_HINTS = get_type_hints(LoraConfig) | {"lora_alpha": int | float}


def lora_config(lora: Mapping[str, object] | None) -> LoraConfig | None:
    """Build peft's configuration, or None for full-parameter training."""
    if lora is None:
        return None
    unknown = unknown_fields(lora, LoraConfig.__dataclass_fields__, RESERVED_LORA)
    if unknown:
        raise GradsiftError(
            "lora settings that peft's LoraConfig does not know: "
            f"{misspelt(unknown, LoraConfig.__dataclass_fields__)}."
        )
    untried = unknown_fields(lora, LORA_PASSED, RESERVED_LORA)
    if untried:
        raise GradsiftError(
            "lora settings of a newer peft, which gradsift does not know yet: "
            f"{', '.join(untried)}. Take them out: what they do to a recording was not tried."
        )
    reasons = [f"{key}: {reason}" for key, reason in refused_of_lora(lora).items()]
    if reasons:
        raise GradsiftError(f"lora settings that gradsift decides itself: {'; '.join(reasons)}.")
    values = {key: _read(key, value) for key, value in lora.items() if key not in RESERVED_LORA}
    targets, start = values.get("target_modules"), values.get("init_lora_weights")
    if targets == [ALL_LINEAR]:
        values["target_modules"] = ALL_LINEAR
    elif targets == LM_HEAD or (isinstance(targets, list) and LM_HEAD in targets):
        raise GradsiftError(f"lora setting target_modules has {LM_HEAD!r}: {HEAD_IS_NOT_ADAPTED}")
    if isinstance(start, str) and start.lower().startswith(INIT_FROM_DATA):
        raise GradsiftError(
            f"lora setting init_lora_weights is {start!r}: such adapters are started from data, by "
            "code before the training. Take it out, or pissa, olora, orthogonal, gaussian."
        )
    if values.get("loftq_config") and start != "loftq":
        raise GradsiftError(
            "lora setting loftq_config has no effect without init_lora_weights: loftq; take it out."
        )
    for key in ("layers_to_transform", "layers_pattern"):
        if values.get(key) is not None and not isinstance(values.get("target_modules"), list):
            raise GradsiftError(
                f"lora setting {key} needs target_modules as a list of names, such as "
                "target_modules: [q_proj, v_proj]: peft takes no layers of all-linear or of a "
                "pattern."
            )
    with _errors_of_peft(lora):
        return LoraConfig(**{**DEFAULTS, **values})


@contextmanager
def adapting(model: nn.Module, lora: Mapping[str, object] | None) -> Generator[None, None, None]:
    """Require that settings fit a model to which peft's adapters are added inside the context."""
    config = lora_config(lora)
    if config is None:
        yield
        return
    if config.use_dora and weights_of(model).startswith("int8"):
        raise GradsiftError(
            "lora setting use_dora: peft's DoRA does not compute over weights in 8 bits; take it "
            "out, or `load_in: 4bit`."
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
    # Settings that have settings of their own are classes of peft's.
    plain = all(get_args(kind) or kind in (int, float, bool, str, dict, type(None))
                for kind in kinds)  # fmt: skip
    if value is None or not plain or key in CHECKED_BY_PEFT:
        return value
    value = of_type(hint, value, f"lora setting {key}")
    if key == "lora_alpha" and not value > 0:
        raise GradsiftError(f"lora setting {key} is {value!r}, expected more than 0.")
    return value


@contextmanager
def _errors_of_peft(lora: Mapping[str, object]) -> Generator[None, None, None]:
    """Raise what peft raises as one line; errors from elsewhere are left alone."""
    try:
        yield
    # peft raises all kinds of errors for values that it does not take.
    except Exception as error:
        if not _is_of_peft(error):
            raise
        values = ", ".join(f"{key}: {value!r}" for key, value in lora.items()) or "all defaults"
        reason = one_line(error)
        raise GradsiftError(f"lora settings ({values}): peft refuses: {reason}") from error


def _is_of_peft(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None:
        # Called by peft, or by the initializer that a dataclass of peft's is given.
        if str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == "peft":
            return True
        trace = trace.tb_next
    return False


def _is_name(key: str, name: str) -> bool:
    return name == key or name.endswith(f".{key}")


def _is_pattern(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _require_names(model: nn.Module, config: LoraConfig, lora: Mapping[str, object]) -> None:
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        value = getattr(config, key)
        if key == "exclude_modules" and isinstance(value, str):
            _require_found(key, [value], modules, lambda key, name: bool(re.fullmatch(key, name)))
        elif value and not isinstance(value, str):
            _require_found(key, value, modules)
    _require_found(
        "target_parameters",
        config.target_parameters or (),
        parameters,
        whose="of the model's parameters",
        n_parts=2,
    )
    for key in ("rank_pattern", "alpha_pattern"):
        _require_found(key, getattr(config, key) or (), modules, _is_pattern)
    if config.ensure_weight_tying and not _ties(model, config):
        raise GradsiftError(
            "lora setting ensure_weight_tying has no effect: "
            + (
                "no module that it ties (embedding or head) is adapted or trained"
                if getattr(model.config.get_text_config(), "tie_word_embeddings", False)
                else "the model's embedding and head are not tied"
            )
            + "; take it out."
        )
    if config.trainable_token_indices is not None:
        _require_tokens(model, config.trainable_token_indices, modules)


def _require_found(
    setting: str,
    keys: Iterable[str],
    names: list[str],
    fits: Callable[[str, str], bool] = _is_name,
    whose: str = "of the model's modules",
    n_parts: int = 1,
) -> None:
    """Require that each key of a setting fits a name; what is close to it has as many parts."""
    try:
        missing = [key for key in sorted(keys) if not any(fits(key, name) for name in names)]
    except re.error as error:
        raise GradsiftError(
            f"lora setting {setting}: not a regular expression ({error})."
        ) from None
    if not missing:
        return

    def last_parts(name: str) -> str:
        return ".".join(name.split(".")[-n_parts:])

    known = [name for name in dict.fromkeys(map(last_parts, names)) if not name.isdigit()]
    close = [
        name for key in missing for name in difflib.get_close_matches(last_parts(key), known, 2)
    ]
    if close:
        hint = f"close to it: {', '.join(dict.fromkeys(close))}"
    else:
        hint = f"there are {few(known, N_SHOWN)}"
    raise GradsiftError(f"lora setting {setting}: none {whose} is {' or '.join(missing)}; {hint}.")


def _require_tokens(
    model: nn.Module, indices: list[int] | dict[str, list[int]], modules: list[str]
) -> None:
    setting = "trainable_token_indices"
    n_tokens = model.get_input_embeddings().num_embeddings
    if isinstance(indices, dict):
        _require_found(setting, indices, modules)
        indices = [index for of_module in indices.values() for index in of_module]
    unknown = [index for index in indices if not 0 <= index < n_tokens]
    if unknown:
        raise GradsiftError(
            f"lora setting {setting} has {unknown[0]}, expected ids of tokens, from 0 to "
            f"{n_tokens - 1}."
        )


def _ties(model: nn.Module, config: LoraConfig) -> bool:
    """Return whether embedding and head are one, and settings adapt or train it."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return False
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    modules = model.named_modules(remove_duplicate=False)
    tied = [name for name, module in modules if any(module is end for end in ends)]
    # A pattern that fits none of its modules is refused elsewhere, by peft.
    targets = config.target_modules
    named = [*(config.modules_to_save or ()), *(() if isinstance(targets, str) else targets or ())]
    return (
        config.trainable_token_indices is not None
        or any(_is_name(key, name) for key in named for name in tied)
        or (isinstance(targets, str) and any(re.fullmatch(targets, name) for name in tied))
    )


def _require_used(model: nn.Module, config: LoraConfig) -> None:
    # What a name or pattern fits may still not be adapted.
    layers = {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    adapted = list(layers)
    # peft finds out itself how weights lie, and takes it back with a warning.
    if config.fan_in_fan_out and not any(
        type(one.get_base_layer()).__name__ == "Conv1D" for one in layers.values()
    ):
        raise GradsiftError(
            "lora setting fan_in_fan_out has no effect: no adapted module is a Conv1D (GPT-2's); "
            "take it out."
        )
    whose = "of the adapted modules"
    for key in ("rank_pattern", "alpha_pattern"):
        _require_found(key, getattr(config, key) or (), adapted, _is_pattern, whose)
    chosen = config.layers_to_transform
    _require_found(
        "layers_to_transform",
        [str(layer) for layer in ([chosen] if isinstance(chosen, int) else chosen or ())],
        adapted,
        lambda layer, name: layer in name.split("."),
        whose,
    )
