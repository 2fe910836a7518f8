"""What a hook saw of the head, against the closed form."""

import pytest
import torch

from gradsift.gradients.head import HeadBackprops, HeadTransform
from gradsift.gradients.head_part import _scale_of, transform_between

Z = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([1, 5, 10])


@pytest.mark.parametrize("used", [HeadTransform(), HeadTransform(0.5), HeadTransform(1.0, 2.0)])
def test_the_transform_is_told_from_the_logits(used):
    assert transform_between(Z, used.forward(Z), used) == used
    assert transform_between(Z, Z, used) in (used, HeadTransform())


def test_an_unknown_transform_is_refused_with_its_ratio():
    with pytest.raises(ValueError, match=r"about 1\.5 times the head's output"):
        transform_between(Z, 1.5 * Z, HeadTransform(0.5))


def test_the_factor_of_the_loss_is_found():
    closed = HeadBackprops.from_outputs(Z[0], TARGETS, HeadTransform())
    delta = torch.cat(list(closed.blocks()), dim=1)
    assert float(_scale_of(-0.37 * delta, closed)) == pytest.approx(-0.37)


@pytest.mark.parametrize("kind", ["weights", "smoothing", "another target"])
def test_another_loss_is_refused(kind):
    closed = HeadBackprops.from_outputs(Z[0], TARGETS, HeadTransform())
    delta = torch.cat(list(closed.blocks()), dim=1)
    if kind == "weights":
        delta[0] *= 1.01
    elif kind == "smoothing":
        delta += 0.01 * (torch.nn.functional.one_hot(TARGETS, 11) - 1 / 11)
    else:
        delta[1, 5], delta[1, 4] = delta[1, 4].clone(), delta[1, 5].clone()
    with pytest.raises(ValueError, match="not the mean negative log-likelihood"):
        _scale_of(delta, closed)
