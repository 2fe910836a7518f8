"""Losses of rows in batches, against one row at a time and plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM

from gradsift.data.tokenization import Instance
from gradsift.evaluation import losses
from gradsift.evaluation.losses import (
    instance_losses,
    response_losses,
    token_losses,
    window_losses,
    windows_of,
)
from gradsift.evaluation.mismatches import mismatched_instances
from gradsift.terms import IGNORED_LABEL
from tiny import random_instances, tiny_gpt2, tiny_llama, tiny_tokenizer


def by_hand(model, instance):
    """One row alone, in float64: the mean over its labelled tokens, the first one never."""
    logits = model.double()(torch.tensor([instance.input_ids])).logits[0, :-1]
    labels = torch.tensor(instance.labels[1:])
    model.float()
    return F.cross_entropy(logits, labels, ignore_index=-100).item()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_losses_are_those_of_each_row_alone(make):
    model = make(seed=1).eval()
    rows = random_instances(9, seed=3, n_prompt=5)
    # A response in two turns, one that is the whole row, and one of a single token.
    first = rows[0]
    labels = list(first.labels)
    labels[3] = first.input_ids[3]
    rows = [
        Instance("turns", first.input_ids, labels),
        Instance("all", rows[1].input_ids, list(rows[1].input_ids)),
        Instance("one", rows[2].input_ids, [-100] * (len(rows[2].input_ids) - 1) + [7]),
        *rows[3:],
    ]
    found = response_losses(model, rows)
    assert found == pytest.approx([by_hand(model, row) for row in rows], abs=2e-5)


def test_a_recurrent_model_has_the_losses_of_each_row_alone():
    config = MambaConfig(vocab_size=262, hidden_size=16, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()
    rows = random_instances(5, seed=3, n_prompt=5)
    found = response_losses(model, rows)
    assert found == pytest.approx([by_hand(model, row) for row in rows], abs=2e-5)


def test_windows_cover_the_text_once():
    tokenizer = tiny_tokenizer()
    text = "abcdefghij" * 5
    windows = windows_of(text, tokenizer, 8)
    assert [len(window) for window in windows] == [8] * 6
    ids = [token for window in windows for token in window]
    assert ids == tokenizer(text, add_special_tokens=False).input_ids[:48]
    assert len(windows_of("short", tokenizer, 8)) == 1
    with pytest.raises(ValueError, match="nothing can be predicted"):
        windows_of("a", tokenizer)


def test_perplexity_of_an_even_model_is_its_vocabulary():
    model = tiny_llama().eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (found,) = window_losses(model, [[5, 6, 7, 8]])
    assert math.exp(found) == pytest.approx(262, rel=1e-5)


def slow_losses(model, ids):
    """The loss of every token but the first, from probabilities in float64, in its own batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    probabilities = torch.softmax(logits, dim=-1)
    return [-torch.log(probabilities[t, ids[t + 1]]).item() for t in range(len(ids) - 1)]


def official(model, instance, first=()):
    """Conditional and unconditional loss as the official code of IFD has them (Superfiltering).

    There: `labels[0, :start_token] = -100` on the whole text, and `labels = input_ids` on the
    output alone, encoded with what the tokenizer begins a text with.
    """
    whole = torch.tensor([instance.input_ids])
    answer = torch.tensor([[*first, *(i for i in instance.labels if i != IGNORED_LABEL)]])
    labels = whole.clone()
    labels[0, torch.tensor(instance.labels) == IGNORED_LABEL] = IGNORED_LABEL
    with torch.no_grad():
        conditional = model(input_ids=whole, labels=labels).loss.item()
        unconditional = model(input_ids=answer, labels=answer.clone()).loss.item()
    return conditional, unconditional


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("first", [(), (2,)], ids=["", "bos"])
def test_reference_losses_are_those_of_each_row_alone(make, size, first):
    model = make().eval()
    instances = random_instances(7, seed=2, n_prompt=3)
    pairs = [mismatched_instances(instances, 100, seed=seed) for seed in range(2)]
    pairs[1][2] = None
    found = []
    for start in range(0, 7, size):
        part = slice(start, start + size)
        found += instance_losses(model, instances[part], [both[part] for both in pairs], first)
    for instance, *others, row in zip(instances, *pairs, found, strict=True):
        n = instance.n_response_tokens
        answer = instance.input_ids[-n:]
        whole, alone = (slow_losses(model, ids) for ids in (instance.input_ids, [*first, *answer]))
        assert len(alone) == n - 1 + len(first)
        found_means = (row.response, row.alone, row.text)
        expected = list(map(np.mean, (whole[-n:], alone, whole)))
        np.testing.assert_allclose(found_means, expected, rtol=1e-5)
        np.testing.assert_allclose(found_means[:2], official(model, instance, first), rtol=1e-5)
        for other, loss in zip(others, (row.mismatched, row.mismatched_again), strict=True):
            if other is None:
                assert np.isnan(loss)
                continue
            assert other.input_ids[-n:] == answer
            assert other.input_ids[:-n] != instance.input_ids[:-n]
            after = slow_losses(model, other.input_ids)[-n:]
            np.testing.assert_allclose(loss, np.mean(after), rtol=1e-5)
    assert np.isnan(found[2].mismatched_again)


def test_the_first_token_of_a_response_makes_a_difference():
    """Or the test above could not tell the official IFD from that without this token."""
    model = tiny_llama().eval()
    (instance,) = random_instances(1, seed=2, n_prompt=3)
    n = instance.n_response_tokens
    whole = slow_losses(model, instance.input_ids)
    assert abs(np.mean(whole[-n:]) - np.mean(whole[1 - n :])) > 1e-4


NO_PAIRS = [[None], [None]]


def test_a_response_of_one_token_has_no_loss_alone():
    instance = Instance("one", [5, 6, 7, 8], [IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 8])
    pairs = [[instance], [None]]
    (found,) = instance_losses(tiny_llama().eval(), [instance], pairs)
    assert np.isnan([found.alone, found.mismatched_again]).all()
    assert np.isfinite([found.response, found.text]).all()
    assert found.mismatched == pytest.approx(found.response, rel=1e-6)
    (found,) = instance_losses(tiny_llama().eval(), [instance], pairs, [3])
    assert np.isfinite(found.alone)


@pytest.mark.parametrize("first", [(), (5,)], ids=["", "bos"])
def test_a_row_without_a_prompt_is_all_response(first):
    ids = [5, 6, 7, 8]
    model, row = tiny_llama().eval(), Instance("text", ids, ids)
    (found,) = instance_losses(model, [row], NO_PAIRS, first)
    # To the bit: it is how such rows are told from others.
    assert found.response == found.text
    assert found.alone == pytest.approx(found.text, rel=1e-6)


def test_turns_of_a_response_are_put_together():
    ids = [5, 6, 7, 8, 9, 10, 11]
    labels = [IGNORED_LABEL, 6, 7, IGNORED_LABEL, IGNORED_LABEL, 10, 11]
    model = tiny_llama().eval()
    (found,) = instance_losses(model, [Instance("turns", ids, labels)], NO_PAIRS)
    whole, alone = slow_losses(model, ids), slow_losses(model, [6, 7, 10, 11])
    expected = [[*whole[:2], *whole[4:]], alone, whole]
    found_means = (found.response, found.alone, found.text)
    np.testing.assert_allclose(found_means, list(map(np.mean, expected)), rtol=1e-5)


def test_batches_and_the_positions_whose_logits_are_computed_change_nothing(monkeypatch):
    model = tiny_llama(seed=1).eval()
    rows = [(row.input_ids, row.labels) for row in random_instances(9, seed=3, n_prompt=5)]
    together = token_losses(model, rows)
    assert [len(losses) for losses in together] == [
        sum(label != IGNORED_LABEL for label in labels[1:]) for _, labels in rows
    ]
    monkeypatch.setattr(losses, "TOKENS_IN_A_BATCH", 1)
    forward = model.forward
    # Without the argument that says for which positions logits are computed.
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, attention_mask, use_cache: forward(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        ),
    )
    for apart_T, together_T in zip(token_losses(model, rows), together, strict=True):
        assert apart_T.dtype == torch.float64
        torch.testing.assert_close(apart_T, together_T, rtol=1e-5, atol=1e-5)
