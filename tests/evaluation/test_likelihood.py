from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM

from gradsift.data.tokenization import Instance
from gradsift.evaluation import likelihood, padding
from gradsift.evaluation.losses import padding_is_exact, response_losses, window_losses, windows_of
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
    assert padding_is_exact(model, rows[0].input_ids)
    found = response_losses(model, rows)
    assert found == pytest.approx([by_hand(model, row) for row in rows], abs=2e-5)


def test_a_recurrent_model_has_the_losses_of_each_row_alone():
    config = MambaConfig(vocab_size=262, hidden_size=16, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()
    rows = random_instances(5, seed=3, n_prompt=5)
    found = response_losses(model, rows)
    assert found == pytest.approx([by_hand(model, row) for row in rows], abs=2e-5)


def test_rows_do_not_share_a_batch_where_padding_changes_them(monkeypatch):
    model = tiny_llama(seed=1).eval()
    rows = random_instances(4, seed=3, n_prompt=5)
    right = padding.last_logits

    def padded_wrongly(model, rows, n_kept):
        lengths = torch.tensor([len(row) for row in rows])
        wrong = (lengths < lengths.max()).float()[:, None, None]
        return right(model, rows, n_kept) + wrong * torch.arange(262)

    for module in (padding, likelihood):
        monkeypatch.setattr(module, "last_logits", padded_wrongly)
    assert not padding_is_exact(model, rows[0].input_ids)
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
