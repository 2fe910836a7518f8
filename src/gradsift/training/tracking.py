"""Find the modules of a causal LM whose gradients are recorded, and give it our fused head."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from gradsift.gradients.fused import FusedHead
from gradsift.gradients.records import TrackedModel
from gradsift.gradients.sharding import is_sharded
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def add_fused_head(model: nn.Module) -> FusedHead:
    """Let a causal LM be called as `model(..., response_tokens=tokens)` for `{"log_probs": [N]}`.

    Without that argument the forward pass is what it was. Where the model does not compute its
    logits from the backbone's last hidden state, the result is another one than the model's own;
    the self-check finds out.

    Args:
        model: The model that training calls, perhaps inside a PEFT wrapper; its forward is
            replaced.

    Returns:
        The head.
    """
    base = base_model(model)
    original = base.forward
    fused = FusedHead(head_transform(base.config.get_text_config()))

    # The signature stays: transformers reads it.
    @functools.wraps(type(base).forward)
    def forward(*args, response_tokens: ResponseTokens | None = None, **kwargs):
        if response_tokens is None:
            return original(*args, **kwargs)
        hidden = _backbone(base)(*args, **kwargs).last_hidden_state
        head = base.get_output_embeddings()
        return {"log_probs": _log_probs(fused, hidden, head, response_tokens)}

    base.forward = forward
    return fused


def _log_probs(
    fused: FusedHead, hidden_BTD: torch.Tensor, head: nn.Linear, tokens: ResponseTokens
) -> torch.Tensor:
    if not is_sharded(head.weight):
        return fused(hidden_BTD, head, tokens)
    # While a module is called its weight is whole, and what it brings is added up over processes.
    head.forward = lambda hidden_BTD: fused(hidden_BTD, head, tokens)
    try:
        return head(hidden_BTD)
    finally:
        del head.forward


def track(model: nn.Module, fused: FusedHead | None = None) -> TrackedModel:
    """Find embedding, backbone and head of a causal LM, also inside a PEFT wrapper.

    Args:
        model: The model that training calls.
        fused: The head that training calls in its place, if it does.

    Returns:
        The modules to watch.

    Raises:
        ValueError: If the model has another kind of embedding or head than is recorded here.
    """
    base = base_model(model)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    name = type(base).__name__
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(f"{name}: the input embedding is a {type(embedding).__name__}, which is "
                         "not supported; a plain embedding table is.")  # fmt: skip
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{name}: the output head is a {type(head).__name__}, which is not "
                         "supported; one linear layer is.")  # fmt: skip
    return TrackedModel(
        outer=model,
        backbone=_backbone(base),
        embedding=embedding,
        head=head,
        transform=head_transform(base.config.get_text_config()),
        fused=fused,
    )


def _backbone(base: PreTrainedModel) -> nn.Module:
    # Where a model is its own base model, its parts name the backbone `model`.
    return base.base_model if base.base_model is not base else getattr(base, "model", base)


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_transform(config: PretrainedConfig) -> HeadTransform:
    """Read from a model's configuration what happens to the logits after the head.

    The self-check compares it with the model's own forward pass.

    Args:
        config: The text configuration.

    Returns:
        Scale and soft-cap.
    """
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    divisor = getattr(config, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return HeadTransform(
        scale=1.0 if scale is None else float(scale),
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
    )
