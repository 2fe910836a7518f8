"""Find the modules of a causal LM whose gradients are recorded, and give it our fused head."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from gradsift.errors import GradsiftError
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel, WatchedLayer, is_sharded
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import RecordingMethod
from gradsift.training.adapters import (
    require_rows_of_their_own_tokens,
    watched_embedding,
    watched_head,
)

SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def add_fused_head(model: nn.Module) -> FusedHead:
    """Let a causal LM be called as `model(..., response_tokens=tokens)` for `{"log_probs": [N]}`.

    Without that argument the forward pass is what it was. Where the model does not compute its
    logits from the backbone's last hidden state, the result is another one than the model's own;
    the self-check finds out.
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
        head = watched_head(base.get_output_embeddings(), type(base).__name__)
        return {"log_probs": _log_probs(fused, hidden, head, response_tokens)}

    base.forward = forward
    return fused


def _log_probs(
    fused: FusedHead,
    hidden_BTD: torch.Tensor,
    head: nn.Linear | WatchedLayer,
    tokens: ResponseTokens,
) -> torch.Tensor:
    if isinstance(head, WatchedLayer) or not is_sharded(head.weight):
        return fused(hidden_BTD, head, tokens)
    # While a module is called its weight is whole, and what it brings is added up over processes.
    head.forward = lambda hidden_BTD: fused(hidden_BTD, head, tokens)
    try:
        return head(hidden_BTD)
    finally:
        del head.forward


def track(model: nn.Module, fused: FusedHead | None = None) -> TrackedModel:
    """Find embedding, backbone and head of a causal LM, also inside a PEFT wrapper."""
    require_rows_of_their_own_tokens(model)
    base = base_model(model)
    name = type(base).__name__
    if getattr(base.config, "is_encoder_decoder", False):
        raise GradsiftError(f"{name} is an encoder-decoder model: gradsift records causal LMs.")
    embedding = watched_embedding(base.get_input_embeddings(), name)
    head = watched_head(base.get_output_embeddings(), name)
    return TrackedModel(
        outer=model,
        backbone=_backbone(base),
        embedding=embedding,
        head=head,
        transform=head_transform(base.config.get_text_config()),
        fused=fused,
    )


def require_fusable(head: nn.Linear | WatchedLayer) -> None:
    """Refuse a head in whose place the fused head must not multiply.

    Before training an adapter adds nothing, so no comparison would find that it is left out.
    """
    reason = getattr(head, "needs_module", None)
    if reason is not None:
        raise GradsiftError(
            f"{reason}, which would be left out: this method multiplies by the weight alone."
        )


def require_method(model: TrackedModel, method: RecordingMethod) -> None:
    """Refuse a recording method that misses what a wrapped or quantised layer does."""
    if method.startswith(("fused", "hidden")):
        require_fusable(model.head)
    if not method.endswith("intercepted"):
        return
    layers = {"embedding": model.embedding}
    if method == "intercepted":
        layers["head"] = model.head
    for name, layer in layers.items():
        if isinstance(layer, WatchedLayer):
            raise GradsiftError(
                f"the {name} is wrapped by an adapter or quantised: its weight is not used by a "
                "plain function that could be intercepted."
            )


@contextmanager
def head_is_called(head: nn.Linear | WatchedLayer) -> Generator[None, None, None]:
    """Refuse a forward pass that multiplies by a head's weight where only its module will do."""
    reason = getattr(head, "needs_module", None)
    if reason is None:
        yield
        return
    calls: list[None] = []
    handle = head.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield
    except GradsiftError:
        if calls:
            raise  # Else there is more to say.
    finally:
        handle.remove()
    if not calls:
        raise GradsiftError(
            f"{reason}, and the training loop multiplies by its weight without calling it (trl's "
            "fused head does), which leaves out the rest. Leave lm_head out, or call the model's "
            "own forward pass."
        )


def can_be_fused(model: nn.Module) -> bool:
    """Return whether the fused head may stand in for a causal LM's own."""
    base = base_model(model)
    try:
        head = watched_head(base.get_output_embeddings(), type(base).__name__)
    except GradsiftError:
        return False
    return getattr(head, "needs_module", None) is None


@contextmanager
def without_dropout(model: nn.Module) -> Generator[None, None, None]:
    """Set every dropout probability of a model to 0 inside a `with` block.

    Both kinds are found: dropout modules, and probabilities that a module hands to a function.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            is_rate = "drop" in name or (name == "p" and "Dropout" in type(module).__name__)
            if is_rate and isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def _backbone(base: PreTrainedModel) -> nn.Module:
    # Where a model is its own base model, its parts name the backbone `model`.
    return base.base_model if base.base_model is not base else getattr(base, "model", base)


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_transform(config: PretrainedConfig) -> HeadTransform:
    """Read from a model's configuration what happens to the logits after the head.

    The self-check compares it with the model's own forward pass.
    """
    scales = [getattr(config, name, None) for name in SCALES]
    scale = next((scale for scale in scales if scale is not None), None)
    divisor = getattr(config, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return HeadTransform(
        scale=1.0 if scale is None else float(scale),
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
    )
