"""A model without its dropout, for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Generator[None, None, None]:
    """Set every dropout probability of a model to 0 inside a `with` block.

    Both kinds are found: dropout modules, and probabilities that a module hands to a function.

    Args:
        model: The model, in whatever mode it is.

    Yields:
        Nothing.
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
