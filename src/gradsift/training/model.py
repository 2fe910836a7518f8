"""Load a causal LM with its tokenizer, and tell what identifies them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from gradsift.config import Dtype, ModelConfig
from gradsift.data.demo_data import demo_model_path
from gradsift.errors import GradsiftError
from gradsift.schema import takes, validated
from gradsift.seals import sha256_of, short_sha256
from gradsift.training.plain_models import require_no_kernels, require_plain_model
from gradsift.training.quantized import (
    NEEDS_ADAPTERS,
    is_quantized,
    keep_numbers_in_evaluation,
    method_of,
    quantization_for,
    require_bitsandbytes,
    require_readable,
)
from gradsift.training.settings.tokenizer import set_up_tokenizer
from gradsift.wording import first_line

DEMO_MODEL = "demo"
# What loading raises for files that are not what they should be.
_UNREADABLE = (OSError, LookupError, ImportError, ValueError, TypeError, AttributeError)
_UNREADABLE += (RecursionError, UnpicklingError, SafetensorError)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}


@dataclass(frozen=True)
class ModelSource:
    """Which model to load.

    Attributes:
        name: As the user gave it: a hub id, a folder, or "demo".
        path: What transformers is to load.
        load_in: To what the weights are quantised while loading: 4bit, 8bit; None leaves them.
    """

    name: str
    path: str
    revision: str | None
    dtype: Dtype
    trust_remote_code: bool
    load_in: str | None


@contextmanager
def without_progress_bars() -> Generator[None, None, None]:
    """Keep transformers' own bars off stderr, where gradsift shows its progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@takes(ModelConfig, without=("model",))
def find_model(name: str | Path, **settings: Any) -> ModelSource:
    """Return which model a name means, with settings of `ModelConfig`."""
    return source_of(validated(ModelConfig, {"model": name, **settings}))


def source_of(config: ModelConfig) -> ModelSource:
    """Return what is to be loaded; the demo model is converted on first use."""
    name = config.model
    if config.load_in is not None:
        require_bitsandbytes(f"`load_in: {config.load_in}`")
    path = str(demo_model_path()) if name == DEMO_MODEL else name
    return ModelSource(
        name, path, config.revision, config.dtype, config.trust_remote_code, config.load_in
    )


def load_tokenizer(
    source: ModelSource, sft: Mapping[str, object] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, changed as the settings for trl's SFTConfig say."""
    with _loading("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    set_up_tokenizer(tokenizer, sft or {})
    return tokenizer


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's configuration only."""
    with _loading("configuration", source):
        config = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError("its text_config is no configuration.")
    if not source.trust_remote_code:
        require_no_kernels(source.name, config)
    if getattr(config, "is_encoder_decoder", False):
        raise GradsiftError(
            f"{source.name!r} is an encoder-decoder model ({config.model_type}): gradsift records "
            "causal LMs."
        )
    if source.load_in is not None and method_of(config) is not None:
        raise GradsiftError(
            f"{source.name!r} has weights quantised by {method_of(config)} already: leave "
            "`load_in` out, or take the model's unquantised weights."
        )
    require_readable(source.name, config)
    return config


def load_model(source: ModelSource) -> PreTrainedModel:
    """Load a causal LM from safetensors: to the CPU, or quantised to the accelerator."""
    quantised: dict[str, object] = {}
    if source.load_in is not None:
        quantised["quantization_config"] = quantization_for(source.load_in)
    if source.load_in is not None or method_of(load_config(source)) is not None:
        # They are quantised, or unpacked, where they will be used.
        quantised["device_map"] = {"": _own_device()}
    with _loading("model", source):
        require_plain_model(source.name, source.path, source.revision)
        # Only safetensors: the older format is a pickle, which runs code when it is opened.
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=DTYPES[source.dtype],
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            **quantised,
        )
    keep_numbers_in_evaluation(model)
    return model


def require_adapters(source: ModelSource, config: PretrainedConfig, *, has_adapters: bool) -> None:
    """Refuse to train quantised weights themselves."""
    if has_adapters:
        return
    if source.load_in is not None:
        raise GradsiftError(f"`load_in: {source.load_in}`: {NEEDS_ADAPTERS}.")

    method = method_of(config)
    if method is not None:
        raise GradsiftError(f"{source.name!r} has weights quantised by {method}: {NEEDS_ADAPTERS}.")


def on_best_device(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model on the accelerator that is there; quantised ones were loaded onto it."""
    return model if is_quantized(model) else model.to(best_device())


def _own_device() -> torch.device:
    device = best_device()
    # Several processes take one accelerator each.
    if device.type == "cpu":
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def best_device() -> torch.device:
    """Return the accelerator that is there, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def model_fingerprint(source: ModelSource, config: PretrainedConfig) -> str:
    """Return what identifies the weights: the hub's commit, or a hash of a folder's files."""
    folder = Path(source.path)
    if not folder.is_dir():
        return f"commit {config._commit_hash}"
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    digests = (path.name.encode() + bytes.fromhex(sha256_of(path)) for path in files)
    return f"sha256 {short_sha256(digests)}"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what identifies a tokenizer: a hash of its vocabulary and chat template."""
    parts = [
        json.dumps(tokenizer.get_vocab(), sort_keys=True),
        json.dumps(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
    ]
    digest = short_sha256("\n".join(parts))
    return f"sha256 {digest}"


@contextmanager
def _loading(what: str, source: ModelSource) -> Generator[None, None, None]:
    try:
        yield
    except GradsiftError:
        raise
    except _UNREADABLE as error:
        raise GradsiftError(
            f"cannot load the {what} of {source.name!r}: {first_line(error)} Give a folder with "
            f'config.json, model.safetensors and tokenizer files, a hub id, or "{DEMO_MODEL}".'
        ) from error
