"""Is recording exact on a model? Two rows against autograd, in the trainer's configuration."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradsift.config import CheckConfig
from gradsift.data.tokenization import Instance
from gradsift.gradients.check import CheckResult
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import WatchedLayer
from gradsift.schema import takes, validated
from gradsift.terms import IGNORED_LABEL, LAYERS
from gradsift.training.adapters import adapters_of, n_trained
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.layers import base_model, track
from gradsift.training.model import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    require_adapters,
    source_of,
    without_progress_bars,
)
from gradsift.training.quantized import n_parameters, weight_of, weights_of
from gradsift.training.settings.trainer import TrainerSettings, require_settings
from gradsift.wording import in_line, joined, short

# Any text will do; four of different lengths, so that the two that are compared are padded.
TEXTS = (
    ("What is a gradient?", "The direction in which a function grows fastest, and how fast."),
    ("Name three metals.", "Iron, copper and tin."),
    ("Why is the sky blue?", "Air scatters short wavelengths of sunlight more than long ones."),
    ("Is seven a prime number?", "Yes: only one and seven divide it."),
)


@dataclass(frozen=True)
class ModelCheck:
    """What the self-check found on a model.

    Attributes:
        model: As the user named it.
        architecture: Its class.
        n_parameters: Of the model, adapters included.
        weights: As what its weights are held: a dtype, or a quantisation.
        head: As what the head's is.
        trained: What is trained.
        n_trained: Parameters that are.
        check: The outcome.
    """

    model: str
    architecture: str
    n_parameters: int
    weights: str
    head: str
    trained: str
    n_trained: int
    check: CheckResult

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return in_line(
            f"ModelCheck({short(self.model, 80)}, {self.architecture}, {self.n_parameters} "
            f"parameters: {self.check.sentence()})"
        )

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "n_parameters": self.n_parameters,
            "weights": self.weights,
            "head": self.head,
            "trained": self.trained,
            "n_trained": self.n_trained,
            **asdict(self.check),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [
            f"{self.model} ({self.architecture}, {self.n_parameters / 1e6:.0f} M parameters)",
            f"weights: {self.weights}" + (f", head {self.head}" * (self.head != self.weights)),
            f"trained: {self.trained}, {self.n_trained / 1e6:.1f} M of "
            f"{self.n_parameters / 1e6:.0f} M parameters",
            "recorded: gradients at the embedding and the LM head"
            + (", as if both were trained" * (self.n_trained < self.n_parameters)),
            f"recording is {'exact' if not self.check.warning else 'that of training'} here: "
            f"{self.check.sentence()}",
        ]
        if self.check.warning:
            lines.append(f"warning: {self.check.warning}")
        for layer in LAYERS:
            errors = {k.split()[1]: e for k, e in self.check.errors.items() if k.startswith(layer)}
            name, worst = max(errors.items(), key=lambda item: item[1])
            lines.append(f"  {layer:10} worst relative error {worst:.1e}, of {name}")
        lines += [f"  not {method}: {why}" for method, why in self.check.tried.items()]
        return joined(lines)


@takes(CheckConfig, without=("save_steps",))
def check(model: str | Path, **settings: Any) -> ModelCheck:
    """Compare two recorded rows with autograd on a model, in the trainer's own configuration.

    Args:
        model: A hub id, a folder with safetensors, or "demo".
        **settings: Which weights, how they would be trained and recorded; see Settings.

    Returns:
        Which method of recording is exact, and the worst relative errors.

    Raises:
        GradsiftError: If none is; says which layer, and by what ratio.
    """
    config = validated(CheckConfig, {"model": model, **settings})
    trainer_settings = TrainerSettings(config.sft, config.lora_settings(), config.seed)
    with without_progress_bars():
        return _check(source_of(config), trainer_settings, config.recording)


def _check(source: ModelSource, settings: TrainerSettings, recording: str) -> ModelCheck:
    config = load_config(source)
    require_adapters(source, config, has_adapters=settings.lora is not None)
    require_settings(settings)
    tokenizer = load_tokenizer(source, settings.sft)
    instances = []
    for i, (prompt, response) in enumerate(TEXTS):
        start = tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
        end = tokenizer(response, add_special_tokens=False)["input_ids"]
        labels = [IGNORED_LABEL] * len(start) + end
        instances.append(Instance(str(i), start + end, labels))
    model = load_model(source)
    with tempfile.TemporaryDirectory() as folder:
        epoch = PreliminaryEpoch(model, tokenizer, instances, settings, SketchSpec(), Path(folder))
        check = epoch.check(method=recording)
    model = epoch.trainer.model
    base, head = base_model(model), track(model).head
    return ModelCheck(
        source.name,
        type(base).__name__,
        n_parameters(model),
        weights_of(model),
        weight_of(head.base if isinstance(head, WatchedLayer) else head),
        adapters_of(model),
        n_trained(model),
        check,
    )
