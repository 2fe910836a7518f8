import pytest
import torch

from gradsift.gradients.tokens import ResponseTokens

LABELS = torch.tensor([[7, -100, 3, 29], [-100] * 4, [5, 1, -100, 2]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])


def test_packed_tokens_are_the_labels_that_something_stands_before():
    tokens = ResponseTokens.compact(LABELS)
    assert tokens.lengths == (2, 0, 2)
    assert tokens.targets_N.tolist() == [3, 29, 1, 2]
    assert tokens.rows_N.tolist() == [0, 0, 2, 2]
    assert tokens.positions_N.tolist() == [1, 2, 8, 10]
    assert tokens.offsets_I1.tolist() == [0, 2, 2, 4]
    assert tokens.n_tokens_I.tolist() == [2, 0, 2]


def test_padding_predicts_nothing():
    tokens = ResponseTokens.compact(LABELS, MASK)
    assert tokens.targets_N.tolist() == [3, 29, 2]
    assert tokens.n_tokens_I.tolist() == [2, 0, 1]


@pytest.mark.parametrize("mask", [None, MASK])
def test_every_position_counts_the_same(mask):
    packed, every = (
        layout(LABELS, mask) for layout in (ResponseTokens.compact, ResponseTokens.every_position)
    )
    assert every.lengths == (3, 3, 3)
    assert every.offsets_I1.tolist() == [0, 3, 6, 9]
    assert every.n_tokens_I.tolist() == packed.n_tokens_I.tolist()
    counts = every.targets_N != -100
    assert every.positions_N[counts].tolist() == packed.positions_N.tolist()
    assert every.targets_N[counts].tolist() == packed.targets_N.tolist()


@pytest.mark.parametrize("layout", ["compact", "every_position"])
def test_what_is_taken_is_put_back(layout):
    tokens = getattr(ResponseTokens, layout)(LABELS)
    values = torch.arange(24.0).view(3, 4, 2)
    taken = tokens.take(values)
    put = tokens.put(taken)
    assert torch.equal(tokens.take(put), taken)
    assert put.count_nonzero() <= taken.count_nonzero()
    sums = tokens.sum_rows(taken)
    assert torch.equal(sums, put.sum(1))


def test_rows_of_one_position_predict_nothing():
    for layout in (ResponseTokens.compact, ResponseTokens.every_position):
        assert layout(torch.tensor([[3], [4]])).lengths == (0, 0)


def test_on_the_cpu_only_response_tokens_are_laid_out():
    assert ResponseTokens.of(LABELS, MASK).lengths == (2, 0, 1)


# Two rows of the batch: 3 + 2 tokens and one of padding; 1 + 4 tokens and padding. All have labels.
PACKED = torch.tensor([[11, 12, 13, 21, 22, 0], [31, 41, 42, 43, 44, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0]])
NUMBERS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 0]])


@pytest.mark.parametrize(
    ("mask", "positions"),
    [((NUMBERS > 0).long(), POSITIONS), (NUMBERS, None), (NUMBERS, POSITIONS)],
    ids=["positions", "numbers", "both"],
)
def test_packed_rows_are_told_apart(mask, positions):
    tokens = ResponseTokens.of(PACKED, mask, positions)
    assert tokens.is_packed
    assert tokens.n_rows == 4
    split = [values.tolist() for values in tokens.split(PACKED)]
    assert split == [[11, 12, 13], [21, 22], [31], [41, 42, 43, 44]]
    # The first token of a row is predicted from nothing, and not from the row before it.
    assert tokens.lengths == (2, 1, 0, 3)
    assert tokens.targets_N.tolist() == [12, 13, 22, 42, 43, 44]
    assert tokens.rows_N.tolist() == [0, 0, 1, 3, 3, 3]
    ones = torch.ones_like(PACKED)
    assert tokens.sum_positions(ones).tolist() == [3, 2, 1, 4]
    assert tokens.rows_BT.tolist() == [[0, 0, 0, 1, 1, 4], [2, 3, 3, 3, 3, 4]]


def test_without_a_mask_what_is_left_over_is_a_row_of_its_own():
    tokens = ResponseTokens.of(PACKED.masked_fill(NUMBERS == 0, -100), None, POSITIONS)
    assert tokens.n_rows == 6
    assert tokens.n_tokens_I.tolist() == [2, 1, 0, 0, 3, 0]


def test_positions_that_count_from_a_padded_beginning_are_one_row():
    """As transformers makes them for padding on the left."""
    positions = (MASK.cumsum(1) - 1).masked_fill(MASK == 0, 1)
    tokens = ResponseTokens.of(LABELS, MASK, positions)
    assert not tokens.is_packed
    assert tokens.lengths == (2, 0, 1)
    by_column = ResponseTokens.of(LABELS, None, torch.arange(4)[None])
    assert not by_column.is_packed
