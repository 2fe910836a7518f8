import pytest
from pydantic import ValidationError

from gradsift.config import SelectionConfig
from gradsift.selection.strategies.base import Need


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "best"}, "expected one of grads, random"),
        ({"score": "left"}, "score"),
        ({"layers": ("head",)}, "layers"),
        ({"layers": ()}, "expected embedding, lm_head or both"),
        ({"similarity_threshold": 1.0}, "similarity_threshold"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": float("nan")}, "beta"),
        ({"gamma": float("inf")}, "gamma"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "nothing to maximise"),
        ({"seed": -1}, "seed"),
        ({"signal_statistics": ("norm",)}, "expected one or more of max, min"),
        ({"signal_statistics": ()}, "expected one or more of max, min"),
        ({"detrend": ("width",)}, "detrend"),
        ({"stratgy": "grads"}, "stratgy"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        SelectionConfig(**change)


def test_nothing_may_be_adjusted():
    assert SelectionConfig(detrend=("none",)).detrend == SelectionConfig(detrend=()).detrend == ()
    assert len(SelectionConfig().detrend) == 3


def test_needs_are_those_of_strategy_and_side():
    assert SelectionConfig().needs == frozenset()
    assert SelectionConfig(score="prompt-gain").needs == {Need.LOSSES}
    assert SelectionConfig(score="prompt-gain", strategy="spice").needs == {
        Need.LOSSES,
        Need.SKETCHES,
    }
