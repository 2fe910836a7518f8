import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsift.gradients import statistics
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import (
    GradientSummaries,
    GradientSummary,
    combined_sums,
    dense_summary,
    embedding_summaries,
    entry_sums,
    scaled_sums,
)
from gradsift.terms import STATISTICS
from oracle import relative_error, statistics_of

CPU = torch.device("cpu")


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sketch_of(n_rows, width, size=8, seed=0):
    return TensorSketch.seeded(n_rows, width, size=size, seed=seed, device=CPU)


def assert_same(summary: GradientSummary, gradient_VD, sketch, tolerance):
    want = statistics_of(gradient_VD)
    companions = dict.fromkeys(("max", "min", "std"), want["l2_norm"]) | {"mean": want["mean_abs"]}
    for name, got in zip(STATISTICS, summary.values_S, strict=True):
        error = relative_error(got, want[name], companions.get(name, 0))
        assert error <= tolerance, f"{name}: {float(got)} for {float(want[name])}, off by {error}"
    want_K = sketch.dense(gradient_VD)
    assert torch.allclose(summary.sketch_K.double(), want_K, rtol=1e-4, atol=1e-5)


def row_of(summaries: GradientSummaries, row) -> GradientSummary:
    return summaries.cpu()[row]


def summaries_of(tokens_BT, delta_BTD, n_rows, sketch, padding_idx=None):
    n_instances, n_positions = tokens_BT.shape
    rows_P = torch.arange(n_instances).repeat_interleave(n_positions)
    return embedding_summaries(
        tokens_BT.flatten(), rows_P, delta_BTD.flatten(0, 1), n_instances, n_rows, sketch,
        padding_idx,
    )  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    n_rows=st.integers(1, 23),
    width=st.integers(1, 7),
    block=st.integers(1, 25),
    n_gradients=st.integers(1, 3),
    factor=st.sampled_from([1.0, -0.37, 1e-3]),
    seed=st.integers(0, 10),
)
def test_sums_of_parts_are_sums_of_the_whole(n_rows, width, block, n_gradients, factor, seed):
    gradient_BVD = draw(n_gradients, n_rows, width, seed=seed)
    parts = [entry_sums(part) for part in gradient_BVD.split(block, dim=1)]
    sums_B5 = scaled_sums(
        combined_sums(torch.stack(parts)), torch.full((n_gradients,), factor).double()
    )
    sketch = sketch_of(n_rows, width)
    sketch_BK = torch.stack([sketch.dense(factor * g) for g in gradient_BVD])
    summaries = GradientSummaries.from_sums(sums_B5, n_rows * width, sketch_BK)
    for row, gradient_VD in enumerate(gradient_BVD):
        # The factor is a float32 here.
        assert_same(row_of(summaries, row), factor * gradient_VD, sketch, 1e-6)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.lists(st.lists(st.integers(0, 11), min_size=9, max_size=9), min_size=1, max_size=4),
    n_rows=st.integers(12, 14),
    width=st.integers(1, 7),
    padding_idx=st.none() | st.integers(0, 11),
    seed=st.integers(0, 10),
)
def test_embedding_matches_autograd(tokens, n_rows, width, padding_idx, seed):
    tokens_BT = torch.tensor(tokens)
    delta_BTD = draw(*tokens_BT.shape, width, seed=seed)
    sketch = sketch_of(n_rows, width, seed=seed)
    summaries = summaries_of(tokens_BT, delta_BTD, n_rows, sketch, padding_idx)
    for row in range(len(tokens)):
        table = torch.nn.Embedding(n_rows, width, padding_idx=padding_idx, dtype=torch.float64)
        (table(tokens_BT[row]) * delta_BTD[row]).sum().backward()
        assert_same(row_of(summaries, row), table.weight.grad, sketch, 1e-10)


def test_zero_rows_of_unused_tokens_count():
    summaries = summaries_of(torch.tensor([[3]]), torch.tensor([[[2.0]]]), 10, sketch_of(10, 1))
    values = dict(zip(STATISTICS, summaries.values_BS[0].tolist(), strict=True))
    assert (values["max"], values["min"], values["mean"]) == (2.0, 0.0, 0.2)
    assert values["std"] == pytest.approx((4 / 10 - 0.04) ** 0.5)


def test_where_every_token_is_used_no_zero_counts():
    delta_BTD = torch.tensor([[[2.0], [3.0]], [[-2.0], [-3.0]]])
    summaries = summaries_of(torch.tensor([[0, 1], [1, 0]]), delta_BTD, 2, sketch_of(2, 1))
    assert summaries.values_BS[:, :2].tolist() == [[3.0, 2.0], [-2.0, -3.0]]


def test_equal_tokens_are_summed_before_max_is_taken_and_rows_stay_apart():
    tokens_BT = torch.tensor([[1, 1, 2], [1, 2, 3]])
    delta_BTD = torch.tensor([[[1.0], [1.0], [1.5]]] * 2)
    summaries = summaries_of(tokens_BT, delta_BTD, 4, sketch_of(4, 1))
    assert summaries.values_BS[:, 0].tolist() == [2.0, 1.5]


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    tokens_BT = torch.tensor([[1, 2], [1, 2], [1, 2]])
    delta_BTD = draw(3, 2, 4, seed=0)
    clean = summaries_of(tokens_BT, delta_BTD, 5, sketch_of(5, 4))
    delta_BTD[1, 0, 0] = float("nan")
    torn = summaries_of(tokens_BT, delta_BTD, 5, sketch_of(5, 4))
    assert not torn.values_BS[1].isfinite().any()
    for row in (0, 2):
        assert torch.equal(torn.values_BS[row], clean.values_BS[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    tokens_BT = torch.zeros(1, 300, dtype=torch.long)
    delta_BTD = draw(1, 300, 5, seed=0, dtype=dtype)
    summaries = summaries_of(tokens_BT, delta_BTD, 2, sketch_of(2, 5))
    gradient_VD = torch.stack([delta_BTD[0].double().sum(0), torch.zeros(5)])
    assert_same(row_of(summaries, 0), gradient_VD, sketch_of(2, 5), 2e-6)


def test_the_shipped_reference_agrees_with_the_oracle(monkeypatch):
    monkeypatch.setattr(statistics, "REFERENCE_ENTRIES", 28)  # Several blocks.
    gradient_VD = draw(30, 4, seed=0)
    assert_same(dense_summary(gradient_VD, sketch_of(30, 4)), gradient_VD, sketch_of(30, 4), 1e-12)


def test_a_perturbed_gradient_is_seen(monkeypatch):
    """Negative control: one percent more in the entries, and the comparison fails."""
    real = statistics.entry_sums
    monkeypatch.setattr(statistics, "entry_sums", lambda g: real(g * 1.01))
    gradient_VD = draw(8, 2, seed=0)
    with pytest.raises(AssertionError, match=r"off by 0\.004"):
        assert_same(dense_summary(gradient_VD, sketch_of(8, 2)), gradient_VD, sketch_of(8, 2), 1e-3)


def test_instances_of_any_length_and_positions_of_none():
    """Three packed instances, in any order, and padding that would spoil them."""
    tokens_P = torch.tensor([4, 1, 1, 2, 4, 3, 0, 1])
    rows_P = torch.tensor([1, 0, 0, 3, 2, 1, 3, 2])
    delta_PD = draw(8, 1, 5, seed=0)[:, 0].clone()
    delta_PD[rows_P == 3] = float("nan")
    sketch = sketch_of(6, 5)
    summaries = embedding_summaries(tokens_P, rows_P, delta_PD, 3, 6, sketch)
    for row in range(3):
        gradient_VD = torch.zeros(6, 5, dtype=torch.float64)
        of_row = rows_P == row
        gradient_VD.index_add_(0, tokens_P[of_row], delta_PD[of_row].double())
        assert_same(row_of(summaries, row), gradient_VD, sketch, 1e-10)
