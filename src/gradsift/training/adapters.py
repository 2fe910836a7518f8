"""Adapters over the two layers that are recorded: what computes them, and whose gradient it is.

Shapes: V vocabulary, D width.
"""

from __future__ import annotations

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.tracking import WatchedLayer
from gradsift.training.quantized import (
    dense_weight,
    multiplies_as_dense,
    n_parameters,
    quantization_of,
)

VIRTUAL_TOKENS = (
    PeftType.PROMPT_TUNING,
    PeftType.P_TUNING,
    PeftType.MULTITASK_PROMPT_TUNING,
    PeftType.CPT,
)


def require_rows_of_their_own_tokens(model: nn.Module) -> None:
    """Refuse adapters that put tokens of their own into a row."""
    kind = getattr(getattr(model, "active_peft_config", None), "peft_type", None)
    if kind in VIRTUAL_TOKENS:
        name = kind.value.lower().replace("_", " ")
        raise GradsiftError(
            f"{name} puts virtual tokens before a row's own, so that the positions of the "
            "embedding and of the head are no longer those of the labels: it is not recorded. LoRA "
            "and prefix tuning are."
        )


def watched_embedding(module: nn.Module, model_name: str) -> nn.Embedding | WatchedLayer:
    """Return what is to be watched of an input embedding.

    Recorded is the gradient at the output of the base table, as if that were trained, whatever
    adapters add to it.
    """
    module = _chosen_copy(module)
    tokens = _token_adapter(module)
    if tokens is not None:
        table = tokens.get_base_layer()
        if tokens._get_embed_scale() is not None:
            raise GradsiftError(
                f"{model_name}: the embedding scales its output, and peft's "
                "trainable_token_indices replaces the module that does: it is not recorded. Use "
                "modules_to_save instead."
            )
        return WatchedLayer(module, table, lambda: table.weight, padding_idx=table.padding_idx)
    if isinstance(module, BaseTunerLayer):
        # What they add does not change the gradient that comes to the table's own output.
        module = module.get_base_layer()
    if not isinstance(module, nn.Embedding):
        raise GradsiftError(
            f"{model_name}: the input embedding is a {type(module).__name__}, which is not "
            "supported; a plain embedding table is."
        )
    if quantization_of(module) is None:
        return module
    dense = dense_weight(module)
    if dense.shape != (module.num_embeddings, module.embedding_dim):
        raise GradsiftError(
            f"{model_name}: the input embedding is quantised ({quantization_of(module)}), and not "
            "as one table."
        )
    shape_only = dense.new_zeros(1).expand(dense.shape)
    return WatchedLayer(module, module, lambda: shape_only, padding_idx=module.padding_idx)


def watched_head(module: nn.Module, model_name: str) -> nn.Linear | WatchedLayer:
    """Return what is to be watched of an output head.

    Recorded is the gradient of the base weight, as if that were trained. Adapters that only add to
    the base layer's output leave it what it is at their sum.
    """
    module = _chosen_copy(module)
    base, adapter = module, None
    tokens = _token_adapter(module)
    if tokens is not None:
        base, adapter = tokens.get_base_layer(), "trainable_token_indices"
    elif isinstance(module, BaseTunerLayer):
        base, adapter = module.get_base_layer(), _additive_adapter(module, model_name)
    if not isinstance(base, nn.Linear):
        raise GradsiftError(
            f"{model_name}: the output head is a {type(base).__name__}, which is not supported; "
            "one linear layer is."
        )
    if adapter is None and quantization_of(base) is None:
        return module
    if not hasattr(base, "weight"):  # What has none says here what to do.
        dense_weight(base)
    needs_module = None
    if adapter is not None:
        needs_module = f"the head is adapted (peft: {adapter} on lm_head)"
    elif not multiplies_as_dense(base):
        needs_module = f"the head is quantised ({quantization_of(base)})"
    return WatchedLayer(module, base, lambda: dense_weight(base), needs_module=needs_module)


def _additive_adapter(module: BaseTunerLayer, model_name: str) -> str:
    """Return the name of an adapter that only adds to a head's output; refuse others."""
    if not isinstance(module, LoraLayer):
        kind = type(module).__module__.split(".")[2]
        raise GradsiftError(
            f"{model_name}: the head is adapted by {kind}, which changes more than what is added "
            "to its output: it is not recorded. Leave lm_head out of peft's target_modules."
        )
    if any(name in module.lora_variant for name in module.active_adapters):
        raise GradsiftError(
            f"{model_name}: the head is adapted by a variant of LoRA (use_dora and the like), "
            "which changes more than what is added to its output: it is not recorded. Leave "
            "lm_head out of peft's target_modules, or the variant out of its settings."
        )
    return "LoRA"


def _chosen_copy(module: nn.Module) -> nn.Module:
    """Return the copy that peft's modules_to_save trains, where it does."""
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    if module.disable_adapters or not module.active_adapters:
        return module.original_module
    return module.modules_to_save[module.active_adapters[0]]


def _token_adapter(module: nn.Module) -> TrainableTokensLayer | None:
    if isinstance(module, TrainableTokensWrapper):
        return module.token_adapter
    return module if isinstance(module, TrainableTokensLayer) else None


def adapters_of(model: nn.Module) -> str:
    """Say what is trained of a model, such as "LoRA on 7 kinds of layers"."""
    if not isinstance(model, PeftModel):
        return "all parameters"
    kind = str(model.active_peft_config.peft_type.value)
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)
    }
    kind = "LoRA" if kind == "LORA" else kind.lower().replace("_", " ")
    return f"{kind} on {len(names)} kinds of layers" if names else kind


def training_of(model: nn.Module, *, counted: bool = True) -> str:
    """Say what is trained of a model, such as "LoRA (r 8) on 7 kinds of layers, lm_head whole: …".

    The parameters are not counted where they are not all here.
    """
    parts = [adapters_of(model)]
    ranks = {
        module.r[name]
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name in module.active_adapters
        if name in module.r
    }
    if ranks:
        rank = "r " + " and ".join(map(str, sorted(ranks)))
        parts = [parts[0].replace("LoRA", f"LoRA ({rank})", 1)]
    for name, module in model.named_modules():
        short = name.rpartition(".")[2]
        if isinstance(module, ModulesToSaveWrapper):
            parts.append(f"{short} whole")
        elif isinstance(module, TrainableTokensWrapper):
            n = len(next(iter(module.token_adapter.token_indices.values())))
            parts.append(f"{n} tokens of {short}")
    text = ", ".join(parts)
    if not counted:
        return text
    return f"{text}: {_many(n_trained(model))} of {_many(n_parameters(model))} parameters"


def _many(n: int) -> str:
    return f"{n:,}" if n < 1e6 else f"{n / 1e6:,.1f} M"


def n_trained(model: nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def cast_trained(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold everything that is trained in one dtype."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
