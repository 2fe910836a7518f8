"""What the backprops at the head's output tell of a training loss."""

import pytest
import torch
import torch.nn.functional as F

from gradients.backends import BACKENDS, backend_named
from gradsift.gradients.head import HeadOutputs
from gradsift.gradients.head_records import from_backprops, head_records
from gradsift.gradients.micro_batch import HeadCall, MicroBatch
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import dense_summary
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

V, D = 11, 3
LABELS = torch.tensor([[-100, 1, 5, -100, 10], [-100, -100, 2, 7, 7]])
Z = torch.randn(2, 5, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def losses_of(z_BTV, transform=HeadTransform()):  # ruff: ignore[function-call-in-default-argument]
    logits = transform.forward(z_BTV)[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, LABELS[:, 1:], reduction="none")


def backprops(loss_of, dtype=torch.float64):
    z_BTV = Z.to(dtype).requires_grad_(True)
    (delta_BTV,) = torch.autograd.grad(loss_of(z_BTV), z_BTV)
    return z_BTV.detach(), delta_BTV


def seen(z_BTV, delta_BTV, layout="compact", name="blockwise"):
    tokens = getattr(ResponseTokens, layout)(LABELS)
    outputs, backprops = (
        HeadOutputs(tokens, tokens.take(X).to(z_BTV.dtype), values) for values in (z_BTV, delta_BTV)
    )
    sketch = TensorSketch.seeded(V, D, size=8, seed=0, device=torch.device("cpu"))
    return from_backprops(outputs, backprops, tokens, HeadTransform(), BACKENDS[name], sketch)[0]


@pytest.mark.parametrize("layout", ["compact", "every_position"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [1.0, -0.37, 1e-5])
def test_the_weight_of_a_row_is_found(weight, dtype, layout):
    weights = torch.tensor([[weight], [3 * weight]], dtype=torch.float64)
    z, delta = backprops(lambda z: (losses_of(z.float()) * weights).sum(), dtype)
    found = seen(z, delta, layout)
    torch.testing.assert_close(found.weight_B, weights[:, 0], rtol=1e-2, atol=0)
    failed = [c for c in found.checks(0, dtype) if float(c.values.abs().max()) > c.limit]
    if weight > 0:
        assert not failed
    else:
        (check,) = failed
        assert "makes the response of a row less likely" in check.message(1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("layout", ["compact", "every_position"])
def test_rows_are_those_of_autograd_whatever_the_weight(name, layout):
    dtype = torch.float32 if name.startswith("triton") else torch.float64
    backend, transform = backend_named(name, dtype), HeadTransform(0.5, 2.0)
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight.requires_grad_(True)
    losses = losses_of(X @ weight.T, transform)
    z, delta = backprops(lambda z: 0.2 * losses_of(z, transform).sum(), dtype)
    z = (X @ weight.T).detach().to(dtype).requires_grad_(True)
    (delta,) = torch.autograd.grad(0.2 * losses_of(z, transform).sum(), z)
    batch = MicroBatch((0, 1), 0, LABELS, LABELS, getattr(ResponseTokens, layout)(LABELS))
    batch.head_calls.append(HeadCall(X.to(dtype), z.detach(), backprops=delta))
    sketch = TensorSketch.seeded(V, D, size=8, seed=0, device=torch.device("cpu"))
    rows, weight_B = head_records(batch, transform, sketch, backend, backward=True)
    torch.testing.assert_close(weight_B, torch.full((2,), 0.2).double(), rtol=1e-5, atol=0)
    for row, n in enumerate((3, 3)):
        (gradient,) = torch.autograd.grad(losses[row].sum() / n, weight, retain_graph=True)
        want = dense_summary(gradient, sketch)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        got = rows.summaries.values_BS[row]
        torch.testing.assert_close(got, want.values_S, rtol=tolerance, atol=tolerance)
        got = rows.summaries.sketch_BK[row]
        torch.testing.assert_close(got, want.sketch_K, rtol=1e-4, atol=1e-5)
        assert float(rows.loss_B[row]) == pytest.approx(float(losses[row].sum() / n), rel=1e-5)


def smoothed(z):
    logits = z[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, LABELS[:, 1:], label_smoothing=0.1, reduction="sum")


def weighted(z):
    losses = losses_of(z)
    weights = torch.ones_like(losses)
    weights[0, 1] = 1.001
    return (losses * weights).sum()


def other_labels(z):
    return F.cross_entropy(z[:, :-1].flatten(0, 1), (LABELS[:, 1:].flatten() + 1).clamp(min=-99) %
                           V, reduction="sum")  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss_of", [smoothed, weighted, other_labels])
def test_another_loss_is_seen(loss_of, dtype):
    z, delta = backprops(loss_of, dtype)
    checks = seen(z, delta).checks(7, dtype)
    failed = [check for check in checks if float(check.values.abs().max()) > check.limit]
    assert failed
    assert "step 7: the training loss is not the mean negative" in failed[0].message(0.5)


def test_a_token_that_is_nearly_certain_is_no_false_alarm():
    """Its backprops are small, their rounding is not."""
    z = Z.clone()
    z[0, 0, 1] = 18.0
    z = z.float().requires_grad_(True)
    (delta,) = torch.autograd.grad(losses_of(z).sum(), z)
    for check in seen(z.detach(), delta).checks(0, torch.float32):
        assert float(check.values.abs().max()) <= check.limit


def test_backprops_elsewhere_are_seen():
    def loss_of(z):
        return losses_of(z).sum() + 1e-3 * z[1, 0].square().sum()

    z, delta = backprops(loss_of)
    batch = MicroBatch((0, 1), 3, LABELS, LABELS, ResponseTokens.compact(LABELS))
    batch.head_calls.append(HeadCall(X, z, backprops=delta))
    batch.head_call()
    (check,) = batch.checks
    assert float(check.values.max()) > check.limit
    assert "step 3: the loss has terms at positions that predict no response" in check.message(0.1)
