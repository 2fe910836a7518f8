import pytest
from pydantic import ValidationError

from gradsift.config import SelectionConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("head",)}, "layers"),
        ({"layers": ()}, "expected embedding, lm_head or both"),
        *(({"similarity_threshold": x}, "similarity_threshold") for x in (1.0, -0.1, float("nan"))),
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


def test_nothing_may_be_taken_off():
    assert SelectionConfig(detrend=("none",)).detrend == SelectionConfig(detrend=()).detrend == ()
    assert len(SelectionConfig().detrend) == 3
