"""Losses with and without the prompt, against one row at a time and plain arithmetic."""

import numpy as np
import pytest
import torch

from gradsift.data.tokenization import Instance
from gradsift.evaluation.losses import text_losses
from gradsift.terms import IGNORED_LABEL
from tiny import random_instances, tiny_gpt2, tiny_llama


def slow_losses(model, instance):
    """Response, alone and text, from probabilities in float64, one row in its own batch."""

    def token_losses(ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        probabilities = torch.softmax(logits, dim=-1)
        return [-torch.log(probabilities[t, ids[t + 1]]).item() for t in range(len(ids) - 1)]

    answered = [t for t, label in enumerate(instance.labels) if label != IGNORED_LABEL]
    whole = token_losses(instance.input_ids)
    alone = token_losses([instance.input_ids[t] for t in answered])
    response = [whole[t - 1] for t in answered[1:]]
    return np.mean(response), np.mean(alone), np.mean(whole)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_losses_are_those_of_each_row_alone(make, size):
    model = make().eval()
    instances = random_instances(7, seed=2, n_prompt=3)
    found = []
    for start in range(0, 7, size):
        found += text_losses(model, instances[start : start + size])
    for instance, row in zip(instances, found, strict=True):
        expected = slow_losses(model, instance)
        np.testing.assert_allclose((row.response, row.alone, row.text), expected, rtol=1e-5)


def test_a_response_of_one_token_has_no_loss_alone():
    instance = Instance("one", [5, 6, 7, 8], [IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 8])
    (found,) = text_losses(tiny_llama().eval(), [instance])
    assert np.isnan(found.alone)
    assert np.isfinite([found.response, found.text]).all()


def test_turns_of_a_response_are_put_together():
    ids = [5, 6, 7, 8, 9, 10, 11]
    labels = [IGNORED_LABEL, 6, 7, IGNORED_LABEL, IGNORED_LABEL, 10, 11]
    model = tiny_llama().eval()
    (found,) = text_losses(model, [Instance("turns", ids, labels)])
    expected = slow_losses(model, Instance("turns", ids, labels))
    np.testing.assert_allclose((found.response, found.alone, found.text), expected, rtol=1e-5)
