"""What determines a capture, besides the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CaptureSettings:
    """How a pool is captured.

    Attributes:
        max_length: Tokens after which an instance is truncated.
        truncation: keep_start, keep_end, or drop.
        sft: The user's settings for trl's SFTConfig.
        lora: Settings for peft's LoraConfig; None trains all parameters.
        seed: Of the data order and everything drawn.
        sketch_size: Numbers of a gradient sketch, a power of two.
        signal: full records both layers; head the LM head only, which needs no backward pass.
        when: during the preliminary epoch, or after it, in a scoring pass.
        preliminary: Fraction of the pool that the preliminary epoch trains on; 0 trains nothing.
        recording: A way of recording, or auto.
        save_steps: Optimizer updates between two parts of the store; None makes about eight.
        batching: How rows are put into micro-batches (`training.batches`), or auto.
    """

    max_length: int = 1024
    truncation: str = "keep_start"
    sft: Mapping[str, object] = field(default_factory=dict)
    lora: Mapping[str, object] | None = None
    seed: int = 0
    sketch_size: int = 1024
    signal: str = "full"
    when: str = "during"
    preliminary: float = 1.0
    recording: str = "auto"
    save_steps: int | None = None
    batching: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: If signal, when and preliminary do not fit together.
        """
        if self.when == "during" and self.signal == "head":
            raise ValueError("signal head is recorded without backward: it needs when: after.")
        if self.when == "during" and self.preliminary < 1:
            raise ValueError(
                f"preliminary is {self.preliminary}: the rest of the pool is not seen during such "
                "an epoch. Use when: after."
            )

    @property
    def backward(self) -> bool:
        """Whether recording needs a backward pass."""
        return self.signal == "full"
