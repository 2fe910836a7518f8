"""Values of keys: each function returns one as it is meant, or raises GradsiftError."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gradsift.errors import GradsiftError


def number(value: Any) -> int | float:
    """Return a number, also one that YAML takes for text (1e-4)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            _require(False, "a number")
    _require(isinstance(value, int | float) and not isinstance(value, bool), "a number")
    _require(abs(value) <= sys.float_info.max, "a finite number")
    return value


def integer(value: Any) -> int:
    """Return a whole number."""
    value = number(value)
    _require(value == int(value), "a whole number")
    return int(value)


def ratio(value: Any) -> int | float:
    """Return a share of all steps; below 1, for that is how trl tells one from a count."""
    value = number(value)
    _require(0 <= value < 1, "a share from 0 to below 1; a number of steps is warmup_steps")
    return value


def flag(value: Any) -> bool:
    """Return true or false."""
    _require(isinstance(value, bool), "true or false")
    return value


def text(value: Any) -> str:
    """Return a name."""
    _require(isinstance(value, str), "text")
    return value


def names(value: Any) -> list[str]:
    """Return names, from a list or with commas between them."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    _require(isinstance(value, list) and all(isinstance(name, str) for name in value), "names")
    return value


def one_of(*words: Any) -> Callable[[Any], Any]:
    """Return a function that returns one of some words."""

    def read(value: Any) -> Any:
        fits = any(word == value and type(word) is type(value) for word in words)
        shown = (str(word).lower() if isinstance(word, bool) else str(word) for word in words)
        _require(fits, f"one of {', '.join(shown)}")
        return value

    return read


def mapping(value: Any) -> dict[str, Any]:
    """Return names with what they stand for."""
    _require(isinstance(value, dict), "names and values")
    return value


def texts(value: Any) -> dict[str, str]:
    """Return names with the text that each stands for."""
    fits = isinstance(value, dict) and all(isinstance(part, str) for pair in value.items()
                                           for part in pair)  # fmt: skip
    _require(fits, "names, each with a text")
    return value


def lists(value: Any) -> dict[str, list[str]]:
    """Return names with a list of texts for each; one text is a list of it."""
    _require(isinstance(value, dict), "names, each with a list of texts")
    in_lists = {key: [words] if isinstance(words, str) else words for key, words in value.items()}
    for key, words in in_lists.items():
        _require(
            isinstance(key, str)
            and isinstance(words, list)
            and all(isinstance(word, str) for word in words),
            "names, each with a list of texts",
        )
    return in_lists


def anything(value: Any) -> Any:
    """Return what it is: the library that takes it checks it."""
    return value


def _require(fits: bool, expected: str) -> None:
    if not fits:
        raise GradsiftError(f"expected {expected}")
