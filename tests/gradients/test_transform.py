"""What a model does after the head is told from its logits."""

import pytest
import torch

from gradsift.gradients.transform import HeadTransform, transform_between

Z = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("used", [HeadTransform(), HeadTransform(0.5), HeadTransform(1.0, 2.0)])
def test_the_transform_is_told_from_the_logits(used):
    assert transform_between(Z, used.forward(Z), used) == used
    assert transform_between(Z, Z, used) in (used, HeadTransform())


def test_an_unknown_transform_is_refused_with_its_ratio():
    with pytest.raises(ValueError, match=r"about 1\.5 times the head's output"):
        transform_between(Z, 1.5 * Z, HeadTransform(0.5))


@pytest.mark.parametrize("transform", [HeadTransform(0.5), HeadTransform(2.0, 3.0)])
def test_the_derivative_is_autograds(transform):
    z = Z.clone().requires_grad_(True)
    logits = transform.forward(z)
    (want,) = torch.autograd.grad(logits.sum(), z)
    got = transform.derivative(logits.detach())
    torch.testing.assert_close(got * torch.ones_like(Z), want)
