"""What a capture of a large model would take on each GPU, from its configuration alone.

Planned, not measured: the model is built on the `meta` device, where a tensor has a shape and no
memory, and bytes are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from gradsift.config import PlanConfig
from gradsift.errors import GradsiftError
from gradsift.gradients.backends import TRITON
from gradsift.gradients.sketch import SketchSpec
from gradsift.training.model import DTYPES
from gradsift.wording import first_line, in_line, joined, short

GB = 1e9
# Of a GPU's memory: the rest is the driver's, the allocator's gaps, and what is not counted here.
USABLE = 0.9
# Bytes of a weight in 4 and 8 bits: blocks of 64 with a float32 scale each; 8 bits a row's scale.
QUANTISED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
TRAINED_BYTES = 4
TRAININGS = ("full", "LoRA", "QLoRA")
LAYOUTS = ("one GPU", "DDP", "FSDP2 / ZeRO-3")


@dataclass(frozen=True)
class Shapes:
    """What of a model counts.

    Attributes:
        architecture: Its class.
        n_parameters: All; a tied weight counts once.
        n_linear: Of them, in linear layers other than the head.
        n_adapter: Parameters of a rank-1 adapter at each of those layers.
        n_largest: Of the largest layer of the backbone.
        n_layers: Of the backbone.
        n_columns: V.
        width: D.
        inner: Width of the widest linear layer of the backbone.
    """

    architecture: str
    n_parameters: int
    n_linear: int
    n_adapter: int
    n_largest: int
    n_layers: int
    n_columns: int
    width: int
    inner: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Shapes:
        """Build a causal LM without memory, and count."""
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            raise GradsiftError(
                f"no causal LM can be built from this configuration: {first_line(error)}"
            ) from error
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
            raise GradsiftError(
                f"{type(model).__name__}: no plain embedding table and linear head, so it cannot "
                "be recorded."
            )
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
        layers = max(lists, key=_n_parameters, default=[model])
        return cls(
            architecture=type(model).__name__,
            n_parameters=_n_parameters(model),
            n_linear=sum(m.weight.numel() for m in linear),
            n_adapter=sum(m.in_features + m.out_features for m in linear),
            n_largest=max(_n_parameters(layer) for layer in layers),
            n_layers=len(layers),
            n_columns=head.weight.shape[0],
            width=head.weight.shape[1],
            inner=max((max(m.weight.shape) for m in linear), default=head.weight.shape[1]),
        )


def _n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Placement:
    """One way of training, on each of its GPUs.

    Attributes:
        training: One of TRAININGS.
        layout: One of LAYOUTS.
        gigabytes: By what takes it.
        fits: Whether the sum is at most USABLE of a GPU's memory.
    """

    training: str
    layout: str
    gigabytes: Mapping[str, float]
    fits: bool

    @property
    def total(self) -> float:
        """All of it, in GB."""
        return sum(self.gigabytes.values())


@dataclass(frozen=True)
class MemoryPlan:
    """What fits where: a placement for each training and layout."""

    model: str
    shapes: Shapes
    config: PlanConfig
    placements: tuple[Placement, ...]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        n_fit, plan = sum(one.fits for one in self.placements), self.config
        return in_line(
            f"MemoryPlan({short(self.model, 80)}, {self.shapes.n_parameters / GB:.1f} G "
            f"parameters: {n_fit} of {len(self.placements)} ways fit into "
            f"{plan.gpu_memory:g} GB a GPU)"
        )

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "model": self.model,
            "architecture": self.shapes.architecture,
            "n_parameters": self.shapes.n_parameters,
            "measured": False,
            "placements": [{**vars(p), "total": p.total} for p in self.placements],
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        plan, shapes = self.config, self.shapes
        names = list(self.placements[0].gigabytes)
        lines = [
            f"{self.model} ({shapes.architecture}, {shapes.n_parameters / GB:.1f} G parameters)",
            f"GB on each GPU of {plan.gpu_memory:g} GB; micro-batches of {plan.batch_size} × "
            f"{plan.max_length} tokens, gradient checkpointing, {plan.gpus} GPUs but for one. "
            "Planned from the configuration, not measured.",
            "",
            f"{'':22}" + "".join(f"{name:>13}" for name in [*names, "all"]),
        ]
        for placement in self.placements:
            values = [*placement.gigabytes.values(), placement.total]
            lines.append(
                f"{placement.training + ', ' + placement.layout:22}"
                + "".join(f"{value:13.1f}" for value in values)
                + ("   fits" if placement.fits else "   does not fit")
            )
        return joined(lines)


def plan_memory(config: PretrainedConfig, plan: PlanConfig) -> MemoryPlan:
    """Count what each way of training takes, with recording."""
    trainings = TRAININGS if plan.lora is None else ("LoRA",) if plan.lora else ("full",)
    if plan.load_in is not None:
        if plan.lora is False:
            raise GradsiftError(
                "`lora: false` trains all parameters, `load_in` freezes them: give one."
            )
        trainings = ("QLoRA",)
    shapes, weight_bytes = Shapes.from_config(config), DTYPES[plan.dtype].itemsize
    quantised_bytes = QUANTISED[plan.load_in or "4bit"]
    placements = tuple(
        _placement(
            shapes,
            plan,
            training,
            layout,
            weight_bytes=weight_bytes,
            linear_bytes=quantised_bytes if training == "QLoRA" else weight_bytes,
        )
        for training in trainings
        for layout in LAYOUTS
    )
    return MemoryPlan(plan.model, shapes, plan, placements)


def _placement(
    shapes: Shapes,
    plan: PlanConfig,
    training: str,
    layout: str,
    *,
    weight_bytes: int,
    linear_bytes: float,
) -> Placement:
    is_sharded = layout == LAYOUTS[2]
    parts = plan.gpus if is_sharded else 1
    adapter = plan.lora_rank * shapes.n_adapter
    trained = shapes.n_parameters if training == "full" else adapter
    # A weight that is trained, its gradient and each of AdamW's two moments: float32 in adapters
    # (peft), and where mixed precision meets sharded weights (accelerate's FSDP2, DeepSpeed).
    trained_bytes = weight_bytes if training == "full" and not is_sharded else TRAINED_BYTES
    if training == "full":
        weights = trained * trained_bytes
    else:
        weights = shapes.n_linear * linear_bytes + adapter * trained_bytes
        weights += (shapes.n_parameters - shapes.n_linear) * weight_bytes
    gradients, moments = trained * trained_bytes, 2 * trained * trained_bytes
    if layout == "DDP":
        gradients *= 2  # Its buckets.
    head = shapes.n_columns * shapes.width
    gathered = 0
    if is_sharded:
        # A layer in use and the next one on its way, the embedding and the head; of what is
        # trained, a layer's and the head's gradients until they are added up.
        gathered = 2 * shapes.n_largest * linear_bytes + 2 * head * weight_bytes
        gathered += shapes.n_largest * TRAINED_BYTES if training == "full" else 0
    taken = {
        "weights": weights / parts,
        "gradients": gradients / parts,
        "optimizer": moments / parts,
        "gathered": gathered,
        "activations": _activations(shapes, plan),
        "recorder": _recorder(shapes, plan, trains_head=training == "full", head=head),
    }
    gigabytes = {name: n_bytes / GB for name, n_bytes in taken.items()}
    fits = sum(gigabytes.values()) <= USABLE * plan.gpu_memory
    return Placement(training, layout, gigabytes, fits)


def _activations(shapes: Shapes, plan: PlanConfig) -> float:
    # With checkpointing: each layer's input, and one layer's own inside while it is computed again
    # (about 16 of the width and 4 of the widest linear layer a token; attention that keeps no
    # scores). Autocast: 2 bytes.
    tokens = plan.batch_size * plan.max_length
    return 2 * tokens * (shapes.n_layers * shapes.width + 16 * shapes.width + 4 * shapes.inner)


def _recorder(shapes: Shapes, plan: PlanConfig, *, trains_head: bool, head: int) -> float:
    # A chunk of logits; the head's gradient in float32, made in the forward pass; hidden states and
    # their gradient, and the embedding's, in float32; the sketches of both layers.
    tokens = plan.batch_size * plan.max_length
    sketches = 2 * 4 * (shapes.width * SketchSpec().size + shapes.n_columns)
    return (
        TRITON.logits_bytes
        + (4 * head if trains_head else 0)
        + 3 * 4 * tokens * shapes.width
        + sketches
    )
