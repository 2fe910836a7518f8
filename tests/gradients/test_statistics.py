import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.gradients import statistics
from gradsift.gradients.statistics import (
    Projection,
    dense_summary,
    embedding_summary,
    linear_summary,
)
from gradsift.terms import STATISTICS
from oracle import relative_error, statistics_of

CPU = torch.device("cpu")


def blocks_of(delta_TV, width):
    return (delta_TV[:, i : i + width] for i in range(0, delta_TV.shape[1], width))


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same(summary, gradient_VD, projection, tolerance):
    want = statistics_of(gradient_VD)
    for name, got in zip(STATISTICS, summary.values_S, strict=True):
        companion = {"mean": want["mean_abs"], "max": want["l2_norm"], "min": want["l2_norm"]}
        error = relative_error(got, want[name], companion.get(name, 0))
        assert error <= tolerance, f"{name}: ratio {float(got) / float(want[name])}"
    sketch = projection.left_VK.double().T @ gradient_VD @ projection.right_DK.double()
    assert torch.allclose(summary.sketch_K2.double(), sketch.flatten(), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    n_tokens=st.integers(1, 9),
    width=st.integers(1, 7),
    n_rows=st.integers(2, 23),
    block=st.integers(1, 25),
    seed=st.integers(0, 10),
)
def test_linear_matches_the_dense_gradient(n_tokens, width, n_rows, block, seed):
    x_TD, delta_TV = draw(n_tokens, width, seed=seed), draw(n_tokens, n_rows, seed=seed + 1)
    projection = Projection.seeded(n_rows, width, rank=3, seed=seed, device=CPU)
    summary = linear_summary(x_TD, blocks_of(delta_TV, block), n_rows, projection)
    assert_same(summary, delta_TV.T @ x_TD, projection, 1e-10)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    width=st.integers(1, 7),
    padding_idx=st.none() | st.integers(0, 11),
    seed=st.integers(0, 10),
)
def test_embedding_matches_autograd(tokens, width, padding_idx, seed):
    table = torch.nn.Embedding(12, width, padding_idx=padding_idx, dtype=torch.float64)
    tokens_T, delta_TD = torch.tensor(tokens), draw(len(tokens), width, seed=seed)
    (table(tokens_T) * delta_TD).sum().backward()
    projection = Projection.seeded(12, width, rank=3, seed=seed, device=CPU)
    summary = embedding_summary(tokens_T, delta_TD, 12, projection, padding_idx)
    assert_same(summary, table.weight.grad, projection, 1e-10)


def test_zero_rows_of_unused_tokens_count():
    projection = Projection.seeded(10, 1, rank=2, seed=0, device=CPU)
    summary = embedding_summary(torch.tensor([3]), torch.tensor([[2.0]]), 10, projection)
    values = dict(zip(STATISTICS, summary.values_S.tolist(), strict=True))
    assert (values["max"], values["min"], values["mean"]) == (2.0, 0.0, 0.2)
    assert values["std"] == pytest.approx((4 / 10 - 0.04) ** 0.5)


def test_equal_tokens_are_summed_before_max_is_taken():
    projection = Projection.seeded(4, 1, rank=2, seed=0, device=CPU)
    tokens_T, delta_TD = torch.tensor([1, 1, 2]), torch.tensor([[1.0], [1.0], [1.5]])
    assert embedding_summary(tokens_T, delta_TD, 4, projection).values_S[0].item() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    x_TD, delta_TV = draw(6, 5, seed=0, dtype=dtype), draw(6, 40, seed=1, dtype=dtype)
    projection = Projection.seeded(40, 5, rank=3, seed=0, device=CPU)
    summary = linear_summary(x_TD, blocks_of(delta_TV, 7), 40, projection)
    assert_same(summary, delta_TV.double().T @ x_TD.double(), projection, 2e-6)


def test_blocks_that_do_not_cover_the_weight_are_our_error():
    projection = Projection.seeded(9, 2, rank=2, seed=0, device=CPU)
    with pytest.raises(AssertionError, match="8 of 9"):
        linear_summary(draw(3, 2, seed=0), [draw(3, 8, seed=1)], 9, projection)


def test_the_shipped_reference_agrees_with_the_oracle():
    gradient_VD = draw(30, 4, seed=0)
    projection = Projection.seeded(30, 4, rank=3, seed=0, device=CPU)
    assert_same(dense_summary(gradient_VD, projection), gradient_VD, projection, 1e-12)


def test_sketches_estimate_inner_products_without_bias():
    a_VD, b_VD = draw(40, 6, seed=0), draw(40, 6, seed=1)
    b_VD = b_VD + a_VD
    estimates = []
    for seed in range(400):
        projection = Projection.seeded(40, 6, rank=4, seed=seed, device=CPU)
        sketches = [dense_summary(g, projection).sketch_K2 for g in (a_VD, b_VD)]
        estimates.append(float(sketches[0] @ sketches[1]))
    mean = torch.tensor(estimates).mean()
    error = torch.tensor(estimates).std() / 400**0.5
    assert abs(mean - (a_VD * b_VD).sum()) < 4 * error


def test_sketches_of_one_seed_are_the_same_and_of_another_are_not():
    one, same, other = (
        Projection.seeded(5, 5, rank=2, seed=s, device=CPU).left_VK for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_perturbed_gradient_is_seen(monkeypatch):
    """Negative control: one percent more in the sum of squares, and the comparison fails."""
    real = statistics._block_sums
    monkeypatch.setattr(statistics, "_block_sums", lambda g: real(g * 1.01))
    x_TD, delta_TV = draw(3, 2, seed=0), draw(3, 8, seed=1)
    projection = Projection.seeded(8, 2, rank=2, seed=0, device=CPU)
    summary = linear_summary(x_TD, blocks_of(delta_TV, 3), 8, projection)
    with pytest.raises(AssertionError, match=r"ratio 1\.01"):
        assert_same(summary, delta_TV.T @ x_TD, projection, 1e-3)
