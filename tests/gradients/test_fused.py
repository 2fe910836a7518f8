"""The fused head against autograd on logits that are at hand: values, gradients, summaries."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradsift.gradients import head as head_module
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.head import HeadTransform
from gradsift.gradients.statistics import Projection, dense_summary

V, D, B, T = 30, 4, 3, 6
LABELS = torch.tensor(
    [[-100, 3, 29, 0, -100, 7], [-100] * T, [5, 1, -100, -100, 2, -100]]
)  # The second row has no response, the first token of the third has nothing before it.


def make(bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(B, T, D, generator=generator).to(dtype).requires_grad_(True)
    return head, hidden


def reference(head, hidden, transform):
    logits = transform.forward(F.linear(hidden, head.weight, head.bias))[:, :-1]
    return -F.cross_entropy(logits.transpose(1, 2), LABELS[:, 1:], reduction="none")


def listen(fused, projection):
    heard = []
    fused.projection = projection
    fused.listener = lambda hidden, rows, log_probs: heard.append((hidden, rows, log_probs))
    return heard


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(head_module, "BLOCK_ROWS", 7)


@pytest.mark.parametrize("keep_bytes", [0, 2**40])
@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transform", [HeadTransform(), HeadTransform(0.5, 3.0)])
def test_values_and_gradients(monkeypatch, transform, bias, listening, keep_bytes):
    monkeypatch.setattr(head_module, "KEEP_LOGITS_BYTES", keep_bytes)
    head, hidden = make(bias)
    inputs = [hidden, *head.parameters()]
    want = reference(head, hidden, transform)
    want_gradients = torch.autograd.grad(-2.5 * want.sum(), inputs)
    fused = FusedHead(transform)
    if listening:
        listen(fused, Projection.seeded(V, D, rank=2, seed=0, device=torch.device("cpu")))
    got = fused(hidden, head, LABELS)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    got_gradients = torch.autograd.grad(-2.5 * got.sum(), inputs)
    for got_one, want_one in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(got_one, want_one, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("differentiated", [True, False])
def test_rows_are_summarised(differentiated, frozen):
    head, hidden = make()
    projection = Projection.seeded(V, D, rank=2, seed=0, device=torch.device("cpu"))
    fused = FusedHead(HeadTransform(2.0))
    heard = listen(fused, projection)
    with torch.set_grad_enabled(differentiated):
        head.requires_grad_(not frozen)
        fused(hidden, head, LABELS)
    head.requires_grad_(True)
    ((_, rows, log_probs),) = heard
    assert rows[1] is None
    assert log_probs.requires_grad == differentiated
    for i in (0, 2):
        loss = -reference(head, hidden, fused.transform)[i].sum() / (LABELS[i, 1:] >= 0).sum()
        (gradient,) = torch.autograd.grad(loss, [head.weight])
        want = dense_summary(gradient, projection)
        assert rows[i].n_response_tokens == int((LABELS[i, 1:] >= 0).sum())
        torch.testing.assert_close(rows[i].loss, loss.detach())
        torch.testing.assert_close(rows[i].summary.values_S, want.values_S, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(rows[i].summary.sketch_K2, want.sketch_K2)


def test_unequal_token_weights_are_refused():
    head, hidden = make()
    log_probs = FusedHead(HeadTransform())(hidden, head, LABELS)
    with pytest.raises(ValueError, match="weighs response tokens between"):
        (log_probs * torch.arange(T - 1)).sum().backward()


def test_a_batch_without_responses_has_zero_gradients():
    head, hidden = make()
    FusedHead(HeadTransform())(hidden, head, torch.full((B, T), -100)).sum().backward()
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_in_autocast_the_product_is_bfloat16_and_the_sums_are_not():
    head, hidden = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = FusedHead(HeadTransform())(hidden, head, LABELS)
        want = reference(head, hidden, HeadTransform())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=2e-2, atol=2e-2)
    got.sum().backward()
    assert head.weight.grad.dtype == torch.float32
