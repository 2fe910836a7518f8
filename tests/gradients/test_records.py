"""Records stay on the device until they are read; what must hold is looked at then."""

import pytest
import torch

from gradsift.gradients.records import Check, Records
from gradsift.gradients.statistics import GradientSummaries
from gradsift.terms import LM_HEAD


def make(*checks, values=1.0):
    summaries = GradientSummaries(torch.full((3, 6), values), torch.zeros(3, 4))
    return Records(
        indices=(5, 7, 9),
        step=2,
        dtype=torch.float32,
        loss_B=torch.tensor([1.0, torch.nan, 3.0]),
        el2n_B=torch.tensor([0.1, torch.nan, 0.3]),
        n_tokens_B=torch.tensor([4, 0, 6]),
        content_BD=torch.ones(3, 2),
        summaries={LM_HEAD: summaries},
        checks=checks,
    )


def test_rows_without_response_tokens_leave_no_record():
    records = make().read()
    assert [record.index for record in records] == [5, 9]
    assert [record.loss for record in records] == [1.0, 3.0]
    assert all(record.finite and record.embedding is None for record in records)
    assert make().finite_B().tolist() == [True, True, True]


def test_one_number_that_is_not_finite_marks_its_row():
    records = make()
    records.summaries[LM_HEAD].values_BS[2, 4] = torch.inf
    assert records.finite_B().tolist() == [True, True, False]
    assert [record.finite for record in records.read()] == [True, False]


def test_what_does_not_hold_is_said_when_they_are_read():
    holds = Check(torch.tensor([0.1, torch.nan]), 0.2, lambda value: "not this")
    broken = Check(torch.tensor([[0.1, -0.3]]), 0.2, lambda value: f"off by {value:.1f}")
    make(holds).read()
    with pytest.raises(ValueError, match=r"off by 0\.3"):
        make(holds, broken).read()
