"""What a model writes at temperature 1."""

from collections import Counter

import pytest
import torch

from gradsift.evaluation.sampling import sample
from tiny import tiny_gpt2, tiny_llama, tiny_mamba, tiny_tokenizer


def test_the_same_seed_writes_the_same_and_leaves_other_random_numbers_alone():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    prompts = [[1, 9, 8], [1, 9], [1]]
    before = torch.random.get_rng_state()
    first = sample(model, tokenizer, prompts, max_new_tokens=6, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == sample(model, tokenizer, prompts, max_new_tokens=6, seed=3)
    assert first != sample(model, tokenizer, prompts, max_new_tokens=6, seed=4)
    assert {len(tokens) for tokens in first} <= set(range(1, 7))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_mamba])
def test_it_is_the_models_distribution_that_is_drawn_from(make):
    """Also of a model that asks for other settings, and behind padding."""
    model, tokenizer = make().eval(), tiny_tokenizer()
    head = model.get_output_embeddings().weight
    with torch.no_grad():  # Far from even.
        head.mul_(40)
        prompt, other = [1, 30, 40], [1, 7, 7, 7, 7]
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    model.generation_config.top_k, model.generation_config.temperature = 1, 0.1
    n = 600
    drawn = sample(
        model, tokenizer, [prompt] * n + [other], max_new_tokens=1, seed=0, batch_size=64
    )
    found = Counter(tokens[0] for tokens in drawn[:n])
    likely = expected.argsort(descending=True)[:5].tolist()
    for token in likely:
        p = expected[token].item()
        assert abs(found[token] / n - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-6
    assert model.generation_config.top_k == 1


def test_nothing_is_cut_off_the_tail():
    """transformers' own default keeps the 50 likeliest tokens."""
    drawn = sample(tiny_llama(), tiny_tokenizer(), [[1, 9]] * 600, max_new_tokens=1, seed=0)
    assert len({tokens[0] for tokens in drawn}) > 150


def test_a_text_ends_with_its_end_token():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 60
    drawn = sample(model, tokenizer, [[1, 9]] * 40, max_new_tokens=8, seed=0)
    ended = [tokens for tokens in drawn if tokenizer.eos_token_id in tokens]
    assert ended
    assert all(tokens.index(tokenizer.eos_token_id) == len(tokens) - 1 for tokens in ended)


def test_rows_of_the_table_that_stand_for_nothing_are_not_drawn():
    model, tokenizer = tiny_llama(vocab_size=2000), tiny_tokenizer()
    drawn = sample(model, tokenizer, [[1, 9]] * 20, max_new_tokens=8, seed=0)
    assert max(max(tokens) for tokens in drawn) < len(tokenizer)
