"""The fused head as training calls it: values, gradients through autograd, what it tells."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradients.backends import BACKENDS, backend_named
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import dense_summary
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

V, D, B, T = 30, 4, 3, 6
LABELS = torch.tensor(
    [[-100, 3, 29, 0, -100, 7], [-100] * T, [5, 1, -100, -100, 2, -100]]
)  # The second row has no response, the first token of the third has nothing before it.
TOKENS = ResponseTokens.compact(LABELS)
SKETCH = TensorSketch.seeded(V, D, size=8, seed=0, device=torch.device("cpu"))


def make(bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(B, T, D, generator=generator).to(dtype).requires_grad_(True)
    return head, hidden


def reference(head, hidden, transform):
    """Log-likelihoods of the response tokens, in their order."""
    logits = transform.forward(F.linear(hidden, head.weight, head.bias))[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), LABELS[:, 1:], reduction="none")
    return -losses[LABELS[:, 1:] != -100]


def fused_head(transform, name="blockwise", listening=True):
    fused, heard = FusedHead(transform), []
    fused.backend = BACKENDS[name]
    if listening:
        fused.sketch = SKETCH
        fused.on_forward = lambda hidden, rows, log_probs: heard.append((hidden, rows, log_probs))
    return fused, heard


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transform", [HeadTransform(), HeadTransform(0.5, 3.0)])
@pytest.mark.parametrize("name", ["blockwise", "blockwise, twice", "batched", "batched, narrow"])
def test_values_and_gradients(name, transform, bias, listening):
    head, hidden = make(bias)
    inputs = [hidden, *head.parameters()]
    want = reference(head, hidden, transform)
    want_gradients = torch.autograd.grad(-2.5 * want.sum(), inputs)
    fused, _ = fused_head(transform, name, listening)
    got = fused(hidden, head, TOKENS)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    got_gradients = torch.autograd.grad(-2.5 * got.sum(), inputs)
    for got_one, want_one in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(got_one, want_one, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["triton", "triton, narrow"])
def test_values_and_gradients_by_kernels(name, dtype):
    backend_named(name, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    head, hidden = make(dtype=dtype)
    inputs = [hidden, *head.parameters()]
    want = reference(head.double(), hidden.double(), HeadTransform(0.5, 3.0))
    want_gradients = torch.autograd.grad(-2.5 * want.sum(), inputs)
    head.to(dtype)
    fused, _ = fused_head(HeadTransform(0.5, 3.0), name)
    got = fused(hidden, head, TOKENS)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    got_gradients = torch.autograd.grad(-2.5 * got.sum(), [hidden, *head.parameters()])
    for got_one, want_one in zip(got_gradients, want_gradients, strict=True):
        assert got_one.dtype == dtype
        off = (got_one.double() - want_one.double()).norm() / want_one.double().norm()
        assert off < tolerance


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("differentiated", [True, False])
def test_rows_are_summarised(differentiated, frozen):
    head, hidden = make()
    fused, heard = fused_head(HeadTransform(2.0))
    with torch.set_grad_enabled(differentiated):
        head.requires_grad_(not frozen)
        fused(hidden, head, TOKENS)
    head.requires_grad_(True)
    ((_, rows, log_probs),) = heard
    assert log_probs.requires_grad == differentiated
    assert rows.n_tokens_B.tolist() == [4, 0, 2]
    for i, tokens in ((0, slice(0, 4)), (2, slice(4, 6))):
        loss = -reference(head, hidden, fused.transform)[tokens].mean()
        (gradient,) = torch.autograd.grad(loss, [head.weight])
        want = dense_summary(gradient, SKETCH)
        torch.testing.assert_close(rows.loss_B[i], loss.detach())
        got = rows.summaries.values_BS[i]
        torch.testing.assert_close(got, want.values_S, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(rows.summaries.sketch_BK[i], want.sketch_K)


def test_unequal_token_weights_give_no_numbers():
    """They cannot be served, and waiting for the device to say so would slow every step."""
    head, hidden = make()
    log_probs = fused_head(HeadTransform())[0](hidden, head, TOKENS)
    (log_probs * torch.arange(6)).sum().backward()
    assert hidden.grad[0, 0].isnan().all()
    assert head.weight.grad.isnan().all()


def test_a_batch_without_responses_has_zero_gradients():
    head, hidden = make()
    tokens = ResponseTokens.compact(torch.full((B, T), -100))
    fused_head(HeadTransform())[0](hidden, head, tokens).sum().backward()
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_in_autocast_the_product_is_bfloat16_and_the_sums_are_not():
    head, hidden = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fused_head(HeadTransform())[0](hidden, head, TOKENS)
        want = reference(head, hidden, HeadTransform())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=2e-2, atol=2e-2)
    got.sum().backward()
    assert head.weight.grad.dtype == torch.float32
