"""Trainings whose weights or optimizer are sharded among processes: FSDP2, DeepSpeed's ZeRO.

A model is whole until training begins, and a part of one is not to be compared with anything:
what is checked and timed before a training in one process is here left out, or done on the way.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.check import CheckResult, tolerance_for
from gradsift.gradients.fused import product_dtype
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel, WatchedLayer, is_plain
from gradsift.terms import IGNORED_LABEL, RecordingMethod
from gradsift.training.layers import without_dropout

FSDP1 = (
    "FSDP1 flattens the parameters, so the head's weight is not to be found: use FSDP2 "
    "(torch.distributed.fsdp.fully_shard; fsdp_version: 2 for accelerate and transformers)."
)
ONE_PROCESS_CHECK = (
    "`gradsift check MODEL` makes it in one process, also on a small sibling of the model; here "
    "the first row's loss is compared with that of the model's own logits"
)


def shards_weights(accelerator: Accelerator) -> bool:
    """Return whether training gives each process a part of every weight: FSDP, ZeRO-3."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    is_zero3 = plugin is not None and plugin.zero_stage == 3
    return is_zero3 or getattr(accelerator.state, "fsdp_plugin", None) is not None


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Return whether DeepSpeed trains; its engine exists only from then on."""
    return getattr(accelerator.state, "deepspeed_plugin", None) is not None


def require_supported(accelerator: Accelerator, *, wants_fsdp: bool, trains: bool) -> None:
    """Refuse kinds of parallelism that are not recorded, before anything is trained."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise GradsiftError(FSDP1)
    if wants_fsdp and plugin is None:
        raise GradsiftError(
            "fsdp is set, but accelerate shards no weights here: it does so in processes with an "
            "accelerator each (torchrun, accelerate launch), and not on CPUs. Leave fsdp out."
        )
    layout = getattr(accelerator, "parallelism_config", None)
    for name in ("tp", "cp", "sp"):
        if layout is not None and getattr(layout, f"{name}_size", 1) > 1:
            raise GradsiftError(
                f"{name}_size is {getattr(layout, f'{name}_size')}: tensor, context and sequence "
                "parallelism split a row among processes, so none sees its gradient. Use FSDP2 or "
                "DeepSpeed, with data parallelism alone."
            )
    if shards_weights(accelerator) and not trains:
        raise GradsiftError(
            "`warmup_fraction: 0` trains nothing, and weights are sharded (FSDP2, ZeRO-3) only "
            "when training begins: score in processes with whole weights (torchrun without FSDP or "
            "DeepSpeed), or train on a part of the pool."
        )


def unchecked(
    model: TrackedModel,
    sketch: SketchSpec,
    methods: Sequence[RecordingMethod],
    device: torch.device,
) -> tuple[Recorder, CheckResult]:
    """Take the first recording method that may be exact, by the model's modules alone."""
    for name, layer in (("embedding", model.embedding), ("head", model.head)):
        if isinstance(layer, WatchedLayer):
            raise GradsiftError(
                f"the {name} is adapted or quantised, and weights are sharded among processes: "
                "that was never compared with anything. Leave embedding and head out of the "
                "adapters and of what is quantised, or use processes with whole weights (DDP)."
            )
    plain = is_plain(model.embedding)
    exact = [method for method in methods if plain or method.endswith("intercepted")]
    if not exact:
        raise GradsiftError(
            f"`recording: {methods[0]}` is not exact here: the embedding ({type(model.embedding)}) "
            "changes what it looks up. Use `recording: auto`."
        )
    recorder = Recorder(model, sketch, method=exact[0], device=device)
    dtype = str(model.head.weight.dtype).removeprefix("torch.")
    return recorder, CheckResult(0, None, None, exact[0], recorder.backend.name, dtype)


def require_same_loss_as_fused(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model whose own logits give another loss than our fused head, on its first row.

    All processes make two forward passes, without gradients and without dropout.
    """
    ids_1T, labels_1T, mask_1T = (
        inputs[name][:1] for name in ("input_ids", "labels", "attention_mask")
    )
    batch = {"input_ids": ids_1T, "attention_mask": mask_1T}
    with torch.no_grad(), without_dropout(model):
        logits_TV = model(**batch).logits[0, :-1]
        tokens = ResponseTokens.of(labels_1T, mask_1T)
        fused_N = model(**batch, response_tokens=tokens)["log_probs"]
    targets_T = labels_1T[0, 1:]
    logits_loss_T = torch.nn.functional.cross_entropy(
        logits_TV.float(), targets_T, ignore_index=IGNORED_LABEL, reduction="none"
    )
    fused_loss_T = -tokens.put(fused_N)[0, :-1]
    error_T = (logits_loss_T - fused_loss_T)[targets_T != IGNORED_LABEL].abs()
    error = float(error_T.mean()) if len(error_T) else 0.0
    if error > tolerance_for(product_dtype(logits_TV)):
        raise GradsiftError(
            f"the losses of the first row's tokens differ by {error:.1e} nats from those of the "
            "model's own logits: the model does something after its last layer that the fused head "
            "does not. Use `recording: hooked`."
        )


@contextmanager
def plain_backward(accelerator: Accelerator, model: nn.Module) -> Generator[None, None, None]:
    """Let backward passes inside a `with` block change nothing but the watched tensors.

    DeepSpeed's engine would update the weights after them.
    """
    if not uses_deepspeed(accelerator):
        yield
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    accelerator.backward = lambda loss, **_: loss.backward()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        del accelerator.backward
        for parameter in trained:
            parameter.requires_grad_(True)
