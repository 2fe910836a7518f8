"""Every use of the two weights is seen, by whichever code; nothing is left behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradsift.gradients.tracking import Interception


class Odd(nn.Module):
    """Uses its table in a function of its own, twice, and its head without a module."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 3))
        self.other = nn.Embedding(7, 3)
        self.head = nn.Parameter(torch.randn(7, 3))

    def forward(self, tokens, fail=False):
        x = 2 * F.embedding(tokens, self.table, padding_idx=1) + self.other(tokens)
        x = x + torch.nn.functional.embedding(input=tokens * 0, weight=self.table)
        if fail:
            raise RuntimeError("stop")
        return F.linear(torch.tanh(x), weight=self.head)


def layer_with(weight):
    layer = nn.Module()
    layer.weight = weight
    return layer


def watched():
    model, seen = Odd(), []
    interception = Interception(
        model,
        layer_with(model.table),
        layer_with(model.head),
        lambda tokens, output, padding_idx: seen.append(("table", tokens.tolist(), padding_idx)),
        lambda x, z: seen.append(("head", tuple(x.shape), tuple(z.shape))),
    )
    return model, seen, interception


def test_all_uses_of_the_two_weights_and_no_others():
    model, seen, interception = watched()
    handles = interception.attach()
    model(torch.tensor([[1, 2]]))
    assert seen == [
        ("table", [[1, 2]], 1),
        ("table", [[0, 0]], None),
        ("head", (1, 2, 3), (1, 2, 7)),
    ]
    for handle in handles:
        handle.remove()
    model(torch.tensor([[1, 2]]))
    assert len(seen) == 3


def test_an_error_in_the_forward_pass_ends_it_too():
    model, seen, interception = watched()
    interception.attach()
    with pytest.raises(RuntimeError, match="stop"):
        model(torch.tensor([[1, 2]]), fail=True)
    n_seen = len(seen)
    F.linear(torch.randn(1, 3), model.head)
    assert len(seen) == n_seen
