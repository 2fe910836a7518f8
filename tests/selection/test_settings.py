import pytest
from pydantic import ValidationError

from gradsift.selection.settings import Settings
from gradsift.selection.strategies.task import Need


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "best"}, "expected one of grads, random"),
        ({"side": "left"}, "side"),
        ({"layers": ("head",)}, "layers"),
        ({"layers": ()}, "expected embedding, lm_head or both"),
        ({"near_threshold": 1.0}, "near_threshold"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": float("nan")}, "beta"),
        ({"gamma": float("inf")}, "gamma"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "nothing to maximise"),
        ({"seed": -1}, "seed"),
        ({"signal_statistics": ("norm",)}, "expected one or more of max, min"),
        ({"signal_statistics": ()}, "expected one or more of max, min"),
        ({"adjust": ("width",)}, "adjust"),
        ({"stratgy": "grads"}, "stratgy"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**change)


def test_nothing_may_be_adjusted():
    assert Settings(adjust=("none",)).adjust == Settings(adjust=()).adjust == ()
    assert len(Settings().adjust) == 3


def test_needs_are_those_of_strategy_and_side():
    assert Settings().needs == frozenset()
    assert Settings(side="grounded").needs == {Need.LOSSES}
    assert Settings(side="grounded", strategy="spice").needs == {Need.LOSSES, Need.SKETCHES}
