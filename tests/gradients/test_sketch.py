"""TensorSketch: what it is by definition, and that its inner products are right on average."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.gradients.sketch import SketchSpec, TensorSketch

CPU = torch.device("cpu")


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(sketch, gradient_VD):
    """Each entry goes to one bucket, with one sign."""
    result = torch.zeros(sketch.size, dtype=torch.float64)
    for v in range(gradient_VD.shape[0]):
        bucket_v = v % sketch.size
        for d in range(gradient_VD.shape[1]):
            (bucket_d,) = sketch.column_DK[d].nonzero().flatten().tolist()
            sign = sketch.sign_V[v] * sketch.column_DK[d, bucket_d]
            result[(bucket_v + bucket_d) % sketch.size] += sign * gradient_VD[v, d]
    return result


@settings(deadline=None, max_examples=30)
@given(
    n_rows=st.integers(1, 23),
    width=st.integers(1, 6),
    size=st.sampled_from([1, 2, 4, 8, 32]),
    seed=st.integers(0, 10),
)
def test_all_ways_to_sketch_are_the_definition(n_rows, width, size, seed):
    sketch = TensorSketch.seeded(n_rows, width, size=size, seed=seed, device=CPU)
    delta_NV, x_ND = draw(5, n_rows, seed=seed), draw(5, width, seed=seed + 1)
    want_K = by_definition(sketch, delta_NV.T @ x_ND)
    torch.testing.assert_close(sketch.dense(delta_NV.T @ x_ND), want_K)
    block = max(size, n_rows // 2 // size * size)
    left_NK = sum(sketch.rows(delta_NV[:, at : at + block], at) for at in range(0, n_rows, block))
    got_1K = sketch.convolve(left_NK, sketch.columns(x_ND), lambda t: t.sum(0, keepdim=True))
    torch.testing.assert_close(got_1K[0], want_K)


def test_single_rows_are_sketches_of_one_hot_vectors():
    sketch = TensorSketch.seeded(19, 3, size=8, seed=0, device=CPU)
    tokens_N = torch.tensor([0, 8, 18, 8])
    one_hot_NV = torch.nn.functional.one_hot(tokens_N, 19).float()
    assert torch.equal(sketch.single_rows(tokens_N), sketch.rows(one_hot_NV, 0))
    assert sketch.single_rows(tokens_N).abs().sum(1).tolist() == [1] * 4


def test_inner_products_are_estimated_without_bias():
    a_VD, b_VD = draw(40, 6, seed=0), draw(40, 6, seed=1)
    b_VD = b_VD + a_VD
    estimates = []
    for seed in range(400):
        sketch = TensorSketch.seeded(40, 6, size=16, seed=seed, device=CPU)
        estimates.append(float(sketch.dense(a_VD) @ sketch.dense(b_VD)))
    mean, error = torch.tensor(estimates).mean(), torch.tensor(estimates).std() / 400**0.5
    assert abs(mean - (a_VD * b_VD).sum()) < 4 * error
    assert error < 0.1 * (a_VD * b_VD).sum()


def test_sketches_of_one_seed_are_the_same_and_of_another_are_not():
    one, same, other = (
        TensorSketch.seeded(50, 5, size=4, seed=seed, device=CPU).sign_V for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [0, 3, 4096])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match=f"`sketch_size` is {size}, expected a power of two"):
        SketchSpec(size)
