"""How to select: every parameter of a selection but its budget."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gradsift.selection.signal import Side
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.selection.strategies.task import Need
from gradsift.terms import LAYERS, STATISTICS

Covariate = Literal["response_length", "prompt_length", "step"]
COVARIATES: tuple[Covariate, ...] = ("response_length", "prompt_length", "step")


class Settings(BaseModel):
    """The parameters of a selection; see `Objective` for the coefficients.

    Attributes:
        strategy: A name in STRATEGIES.
        side: What makes a good gradient, see `gradient_score`.
        layers: Layers whose statistics make the signal; None for all there are.
        signal_statistics: Statistics that make the signal, see `combined_signal`.
        adjust: What is taken off the signal first, see `adjusted`; empty, or "none", for nothing.
        alpha: Weight of the gradient score.
        beta: Weight of content diversity.
        gamma: Weight of similarity reduction.
        near_threshold: Cosine above which two instances count as near-duplicates.
        quota: Most rows of a source: source → rows, or a percentage of its rows; "*" for every
            source that is not named.
        seed: Of whatever a strategy draws, and of the random subset that losses are compared with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str = "grads"
    side: Side = "consistent"
    layers: tuple[Literal["embedding", "lm_head"], ...] | None = None
    signal_statistics: tuple[str, ...] = ("l2_norm",)
    adjust: tuple[Covariate, ...] = COVARIATES
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False)
    beta: float = Field(1.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False)
    near_threshold: float = Field(0.8, ge=0, lt=1)
    quota: dict[str, str | int] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)

    @property
    def needs(self) -> frozenset[Need]:
        """What the selection needs beyond the statistics and the neighbour graph."""
        extra = {Need.LOSSES} if self.side == "grounded" else set()
        return frozenset({*STRATEGIES[self.strategy].needs, *extra})

    @field_validator("layers", "signal_statistics", "adjust", mode="before")
    @classmethod
    def _several_in_words(cls, value: object) -> object:
        return tuple(re.split(r"[+, ]+", value)) if isinstance(value, str) else value

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, name: str) -> str:
        if name not in STRATEGIES:
            raise ValueError(f"expected one of {', '.join(STRATEGIES)}")
        return name

    @field_validator("adjust", mode="before")
    @classmethod
    def _none_is_nothing(cls, names: object) -> object:
        return () if names in (["none"], ("none",)) else names

    @field_validator("signal_statistics")
    @classmethod
    def _known_statistics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or not set(names) <= set(STATISTICS):
            raise ValueError(f"expected one or more of {', '.join(STATISTICS)}")
        return names

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not names:
            raise ValueError(f"expected {', '.join(LAYERS)} or both")
        return names

    @model_validator(mode="after")
    def _something_to_maximise(self) -> Settings:
        if not (self.alpha or self.beta or self.gamma):
            raise ValueError(
                "alpha, beta and gamma are all 0: there is nothing to maximise. Give one of them "
                "a value above 0, or use the strategy random"
            )
        return self
