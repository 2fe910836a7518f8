"""What a setting is, whatever its name."""

import inspect

import pytest

from gradsift import config, schema
from gradsift.errors import GradsiftError


def test_a_function_takes_settings_with_names_types_and_defaults():
    @schema.takes(config.SelectionConfig, without=("strategy",))
    def verb(run, *, score="mine", **settings):
        """Do it."""

    parameters = inspect.signature(verb).parameters
    assert "settings" not in parameters
    assert "strategy" not in parameters
    assert parameters["score"].default == "mine"
    assert (parameters["alpha"].default, parameters["alpha"].annotation) == (1.0, "float")
    assert parameters["keep"].annotation == "str | Path | None"
    assert verb.__doc__.startswith("Do it.")
    assert "alpha: Weight of the gradient score." in verb.__doc__


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a=1", ("a", 1)),
        ("a=1e-4", ("a", 1e-4)),
        ("a=b=c", ("a", "b=c")),
        ("a=[1, x]", ("a", [1, "x"])),
        ("a=true", ("a", True)),
        ("a=null", ("a", None)),
    ],
)
def test_key_and_value(text, pair):
    assert schema.parse_pair(text, "x") == pair


@pytest.mark.parametrize("text", ["a", "a=", "a=[1"])
def test_no_key_and_value(text):
    with pytest.raises(GradsiftError, match=r"expected key=value|neither JSON nor YAML"):
        schema.parse_pair(text, "x")


def test_names_of_before_are_told_and_read():
    old = {"side": "grounded", "adjust": [], "near_threshold": 0.5, "when": "after"}
    with pytest.raises(GradsiftError, match="'side' is now called 'score'"):
        schema.validated(config.SelectionConfig, old)
    assert schema.migrated({**old, "alpha": 2}) == {
        "score": "prompt-gain",
        "detrend": [],
        "similarity_threshold": 0.5,
        "record_at": "after",
        "alpha": 2,
    }
