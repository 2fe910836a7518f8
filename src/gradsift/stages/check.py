"""Is recording exact on a model? Two rows against autograd, in the trainer's configuration."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from gradsift.data.instances import Instance
from gradsift.gradients.check import CheckResult
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import IGNORED_LABEL
from gradsift.terms import LAYERS
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.model import ModelSource, load_model, load_tokenizer
from gradsift.training.sft_settings import SFTSettings
from gradsift.training.tracking import base_model

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
        n_parameters: Of the model.
        check: The outcome.
    """

    model: str
    architecture: str
    n_parameters: int
    check: CheckResult

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "n_parameters": self.n_parameters,
            **asdict(self.check),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [
            f"{self.model} ({self.architecture}, {self.n_parameters / 1e6:.0f} M parameters)",
            f"recording is exact here: {self.check.sentence()}",
        ]
        for layer in LAYERS:
            errors = {k.split()[1]: e for k, e in self.check.errors.items() if k.startswith(layer)}
            name, worst = max(errors.items(), key=lambda item: item[1])
            lines.append(f"  {layer:10} worst relative error {worst:.1e}, of {name}")
        lines += [f"  not {path}: {why}" for path, why in self.check.tried.items()]
        return "\n".join(lines)


def check_model(
    source: ModelSource, settings: SFTSettings, *, recording: str = "auto"
) -> ModelCheck:
    """Load a model and compare two recorded rows with autograd.

    Args:
        source: Which model.
        settings: How it would be trained.
        recording: A way of recording, or "auto".

    Returns:
        What was found.

    Raises:
        ValueError: If no way of recording is exact on it; says which layer, and by what ratio.
    """
    tokenizer = load_tokenizer(source)
    instances = []
    for i, (prompt, response) in enumerate(TEXTS):
        start = tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
        end = tokenizer(response, add_special_tokens=False)["input_ids"]
        labels = [IGNORED_LABEL] * len(start) + end
        instances.append(Instance(str(i), start + end, labels))
    with tempfile.TemporaryDirectory() as folder:
        epoch = PreliminaryEpoch(
            load_model(source), tokenizer, instances, settings, SketchSpec(), Path(folder)
        )
        check = epoch.check(wanted=recording)
    model = epoch.trainer.model
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCheck(source.name, type(base_model(model)).__name__, n_parameters, check)
