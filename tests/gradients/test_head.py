"""One pass over the head, by every backend, against autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradients.backends import BACKENDS, backend_named
from gradsift.gradients import head as head_module
from gradsift.gradients.backends import BATCHED
from gradsift.gradients.head import HeadOutputs, HeadProduct, head_pass
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import dense_summary
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import STATISTICS

CPU = torch.device("cpu")
TRANSFORMS = [HeadTransform(), HeadTransform(0.25), HeadTransform(2.0, 3.0)]
# Of float64 autograd on the same inputs; bfloat16 where backprops are rounded to it.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2e-2}


class Case:
    """Random hidden states, a head and labels: rows of several lengths, one without a response."""

    def __init__(self, n_columns, width, *, bias=False, seed=0, labels=None, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        if labels is None:
            labels = torch.randint(0, n_columns, (4, 7), generator=generator)
            labels[0, 2:4] = -100
            labels[1] = -100
            labels[2, 2:] = -100  # One response token.
            labels[3, 1:4] = labels[3, 4]  # The same token again and again.
        self.labels_BT = labels
        self.hidden_BTD = draw(*labels.shape, width)
        self.weight_VD = draw(n_columns, width) / width**0.5
        self.bias_V = draw(n_columns) if bias else None
        size = 8 if n_columns >= 8 else 2
        self.sketch = TensorSketch.seeded(n_columns, width, size=size, seed=seed, device=CPU)

    def product(self, tokens):
        return HeadProduct(tokens.take(self.hidden_BTD), self.weight_VD, self.bias_V)

    def autograd(self, transform):
        """Per row: loss, error norm and weight gradient; and the gradients of the summed loss."""
        tensors = [self.hidden_BTD.double(), self.weight_VD.double()]
        tensors += [] if self.bias_V is None else [self.bias_V.double()]
        tensors = [tensor.requires_grad_(True) for tensor in tensors]
        bias = None if self.bias_V is None else tensors[2]
        logits = F.linear(tensors[0], tensors[1], bias) * transform.scale
        if transform.softcap is not None:
            logits = transform.softcap * torch.tanh(logits / transform.softcap)
        rows = {}
        for row, labels_T in enumerate(self.labels_BT):
            has_loss = labels_T[1:] != -100
            if not has_loss.any():
                continue
            loss = F.cross_entropy(logits[row, :-1], labels_T[1:])
            (gradient,) = torch.autograd.grad(loss, tensors[1], retain_graph=True)
            error = logits[row, :-1].softmax(1)[has_loss]
            error = error - F.one_hot(labels_T[1:][has_loss], len(self.weight_VD))
            rows[row] = loss.item(), error.norm(dim=1).mean().item(), gradient
        total = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), self.labels_BT[:, 1:].flatten(), reduction="sum"
        )
        return rows, torch.autograd.grad(total, tensors)


def assert_close(got, want, scale, tolerance, what):
    off = float((got.double() - want).abs().max())
    assert off <= tolerance * float(scale), f"{what}: off by {off / float(scale):.2g}"


def assert_is_autograd(case, result, tokens, transform, tolerance):
    truth, gradients = case.autograd(transform)
    for row, (loss, el2n, gradient) in truth.items():
        assert float(result.records.loss_B[row]) == pytest.approx(
            loss, rel=tolerance, abs=tolerance
        )
        assert float(result.records.el2n_B[row]) == pytest.approx(el2n, rel=tolerance)
        want = dense_summary(gradient, case.sketch)
        companions = {"max": want.values_S[:2].abs().max(), "mean": want.values_S[3]}
        companions["min"] = companions["max"]
        for i, name in enumerate(STATISTICS):
            scale = companions.get(name, want.values_S[i])
            got = result.records.summaries.values_BS[row, i]
            assert_close(got, want.values_S[i], scale, tolerance, f"row {row} {name}")
        got, scale = result.records.summaries.sketch_BK[row], want.values_S[5]
        assert_close(got, want.sketch_K, scale, max(tolerance, 1e-6), f"row {row} sketch")
    n_response = (case.labels_BT[:, 1:] != -100).sum(1)
    assert result.records.n_tokens_B.tolist() == n_response.tolist()
    got = (tokens.put(result.gradients[0]), *result.gradients[1:])
    for name, got_one, want_one in zip(("hidden", "weight", "bias"), got, gradients, strict=False):
        assert_close(got_one, want_one, want_one.norm(), tolerance, name)


@pytest.mark.parametrize("layout", ["compact", "every_position"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", BACKENDS)
def test_all_that_a_pass_gives(name, dtype, layout):
    backend = backend_named(name, dtype)
    for transform, bias in zip(TRANSFORMS, (True, False, True), strict=True):
        case = Case(43, 5, bias=bias, dtype=dtype)
        tokens = getattr(ResponseTokens, layout)(case.labels_BT)
        needs_grad = (True, True, bias)
        result = head_pass(
            case.product(tokens),
            tokens,
            transform,
            backend,
            sketch=case.sketch,
            needs_grad=needs_grad,
        )
        assert_is_autograd(case, result, tokens, transform, TOLERANCE[dtype])


def test_the_small_bounds_do_divide():
    """The tests above meet several chunks and several blocks."""
    lengths = (6, 0, 1, 6)

    def chunks(name, itemsize):
        return BACKENDS[name].chunks(lengths, 43, 5, itemsize)

    assert len(chunks("blockwise", 8)) == 4
    assert not any(chunk.keeps_logits for chunk in chunks("blockwise, twice", 8)[:1])
    assert [len(chunk.lengths) for chunk in chunks("batched, narrow", 8)] == [3, 1]
    assert len(chunks("batched, narrow", 8)[0].blocks(43)) > 1
    assert len(chunks("batched", 8)) == len(chunks("triton", 4)) == 1
    assert len(chunks("triton, narrow", 4)) > 1
    assert len(chunks("triton, narrow", 4)[0].blocks(43)) > 1


@settings(deadline=None, max_examples=30)
@given(
    n_rows=st.integers(1, 4),
    n_positions=st.integers(2, 9),
    n_columns=st.integers(2, 40),
    width=st.integers(1, 7),
    share=st.floats(0, 1),
    name=st.sampled_from([name for name in BACKENDS if not name.startswith("triton")]),
    seed=st.integers(0, 10),
)
def test_any_shape(n_rows, n_positions, n_columns, width, share, name, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_columns, (n_rows, n_positions), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < share] = -100
    case = Case(n_columns, width, seed=seed, labels=labels)
    tokens = ResponseTokens.compact(labels)
    result = head_pass(
        case.product(tokens), tokens, HeadTransform(), BACKENDS[name],
        sketch=case.sketch, needs_grad=(True, True, False),
    )  # fmt: skip
    assert_is_autograd(case, result, tokens, HeadTransform(), 1e-9)


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_that_are_at_hand_say_the_same_and_stay(name):
    backend = backend_named(name, torch.float32)
    case = Case(43, 5, dtype=torch.float32)
    tokens = ResponseTokens.compact(case.labels_BT)
    z_BTV = F.linear(case.hidden_BTD, case.weight_VD)
    before = z_BTV.clone()
    seen, own = (
        head_pass(head, tokens, HeadTransform(2.0, 3.0), backend, sketch=case.sketch).records
        for head in (HeadOutputs(tokens, tokens.take(case.hidden_BTD), z_BTV), case.product(tokens))
    )
    assert torch.equal(z_BTV, before)
    for row in (0, 2, 3):
        got, want = seen.summaries.values_BS[row], own.summaries.values_BS[row]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_may_be_of_another_dtype_than_what_went_in(name):
    """As autocast leaves them."""
    backend = backend_named(name, torch.bfloat16)
    case = Case(43, 5, dtype=torch.float32)
    tokens = ResponseTokens.compact(case.labels_BT)
    z_BTV = F.linear(case.hidden_BTD, case.weight_VD)
    values = []
    for x_BTD, z in ((case.hidden_BTD, z_BTV.bfloat16()), (case.hidden_BTD.bfloat16(), z_BTV)):
        head = HeadOutputs(tokens, tokens.take(x_BTD), z)
        result = head_pass(head, tokens, HeadTransform(), backend, sketch=case.sketch)
        values.append(result.records.summaries.values_BS[[0, 2, 3]])
    exact = head_pass(case.product(tokens), tokens, HeadTransform(), backend, sketch=case.sketch)
    for got in values:
        want = exact.records.summaries.values_BS[[0, 2, 3]]
        torch.testing.assert_close(got, want, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_are_the_same_with_and_without_summaries(name):
    """To the bit: recording must not change training."""
    backend = backend_named(name, torch.float32)
    case = Case(43, 5, dtype=torch.float32)
    tokens = ResponseTokens.compact(case.labels_BT)
    with_, without = (
        head_pass(
            case.product(tokens),
            tokens,
            HeadTransform(),
            backend,
            sketch=sketch,
            needs_grad=(True, True, False),
        )
        for sketch in (case.sketch, None)
    )
    assert torch.equal(with_.log_probs_N, without.log_probs_N)
    for got, want in zip(with_.gradients[:2], without.gradients[:2], strict=True):
        assert torch.equal(got, want)
    assert without.records is None


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_that_is_not_finite_leaves_the_others_alone(name):
    backend = backend_named(name, torch.float32)
    case = Case(43, 5, dtype=torch.float32)
    tokens = ResponseTokens.compact(case.labels_BT)
    clean = head_pass(
        case.product(tokens), tokens, HeadTransform(), backend, sketch=case.sketch
    ).records
    case.hidden_BTD[2, 0, 1] = float("nan")
    torn = head_pass(
        case.product(tokens), tokens, HeadTransform(), backend, sketch=case.sketch
    ).records
    assert not torn.summaries.values_BS[2].isfinite().any()
    assert not torn.loss_B[2].isfinite()
    for row in (0, 3):
        assert torch.equal(torn.summaries.values_BS[row], clean.summaries.values_BS[row])
        torch.testing.assert_close(torn.summaries.sketch_BK[row], clean.summaries.sketch_BK[row])


@pytest.mark.parametrize("name", BACKENDS)
def test_large_logits_do_not_overflow(name):
    backend = backend_named(name, torch.float32)
    labels = torch.tensor([[0, 1]])
    tokens = ResponseTokens.compact(labels)
    product = HeadProduct(torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0], [0.5]]), None)
    sketch = TensorSketch.seeded(3, 1, size=2, seed=0, device=CPU)
    rows = head_pass(product, tokens, HeadTransform(), backend, sketch=sketch).records
    assert float(rows.loss_B) == pytest.approx(2e4)
    assert rows.summaries.values_BS[0, :2].tolist() == [1e4, -1e4]


def test_a_perturbed_backprop_is_seen(monkeypatch):
    """Negative control: one percent more in the backprops, and the comparison fails."""
    case = Case(43, 5)
    tokens = ResponseTokens.compact(case.labels_BT)
    product = case.product(tokens)
    real = product.outputs
    monkeypatch.setattr(product, "outputs", lambda *slices: real(*slices) * 1.01)
    result = head_pass(
        product,
        tokens,
        HeadTransform(),
        BATCHED,
        sketch=case.sketch,
        needs_grad=(True, True, False),
    )
    with pytest.raises(AssertionError):
        assert_is_autograd(case, result, tokens, HeadTransform(), 1e-3)


def test_a_block_that_is_left_out_is_seen(monkeypatch):
    """Negative control: the last block of the vocabulary is not summed up."""
    case = Case(43, 5)
    tokens = ResponseTokens.compact(case.labels_BT)
    real = head_module.RowSums.add
    calls = []

    def add(self, sums_R5, left_nK):
        calls.append(None)
        real(self, sums_R5 * (len(calls) % 6 != 0), left_nK)

    monkeypatch.setattr(head_module.RowSums, "add", add)
    result = head_pass(
        case.product(tokens), tokens, HeadTransform(), BACKENDS["blockwise"],
        sketch=case.sketch, needs_grad=(True, True, False),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="off by"):
        assert_is_autograd(case, result, tokens, HeadTransform(), 1e-9)
