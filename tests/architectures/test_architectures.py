"""Every registered causal-LM type is recorded as expected.json says; a difference is a finding."""

import json

import pytest

from architectures.exactness import EXPECTED, PAGE, examine, page, quiet
from architectures.zoo import CAUSAL_TYPES

FOUND = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("model_type", CAUSAL_TYPES)
def test_is_recorded_as_expected(model_type):
    quiet()
    found, _ = examine(model_type)
    assert found == FOUND[model_type]


def test_nothing_is_expected_that_is_not_registered():
    assert set(FOUND) == set(CAUSAL_TYPES)


def test_what_is_refused_has_a_reason():
    assert not [name for name, entry in FOUND.items() if entry.get("reason") == "unknown"]


def test_the_page_says_what_is_expected():
    assert PAGE.read_text() == page(FOUND)
