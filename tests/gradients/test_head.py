import pytest
import torch
import torch.nn.functional as F

from gradsift.gradients import head as head_module
from gradsift.gradients.head import HeadBackprops, HeadTransform


@pytest.mark.parametrize("keep_bytes", [0, 2**40])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "transform", [HeadTransform(), HeadTransform(0.25), HeadTransform(2.0, 3.0)]
)
def test_backprops_and_loss_are_autograds(monkeypatch, transform, bias, keep_bytes):
    monkeypatch.setattr(head_module, "BLOCK_ROWS", 7)
    monkeypatch.setattr(head_module, "KEEP_LOGITS_BYTES", keep_bytes)
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(30, generator=generator, dtype=torch.float64) if bias else None
    targets_T = torch.tensor([0, 29, 7, 13, 13])

    backprops = HeadBackprops(x_TD, weight_VD, bias_V, targets_T, transform)
    z_TV = (x_TD @ weight_VD.T + (0 if bias_V is None else bias_V)).requires_grad_(True)
    logits = z_TV * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    loss = F.cross_entropy(logits, targets_T)
    (want_TV,) = torch.autograd.grad(loss, z_TV)

    torch.testing.assert_close(backprops.loss, loss.detach(), rtol=1e-12, atol=0)
    got_TV = torch.cat(list(backprops.blocks()), dim=1)
    torch.testing.assert_close(got_TV, want_TV, rtol=1e-10, atol=1e-14)


def test_large_logits_do_not_overflow():
    x_TD, weight_VD = torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0], [0.5]])
    backprops = HeadBackprops(x_TD, weight_VD, None, torch.tensor([1]), HeadTransform())
    assert float(backprops.loss) == pytest.approx(2e4)
    assert torch.equal(torch.cat(list(backprops.blocks()), 1), torch.tensor([[1.0, -1.0, 0.0]]))
