from __future__ import annotations

import pytest
import torch

from gradsift.evaluation.generation import end_tokens, generate, padding_is_exact
from tiny import random_instances, tiny_gpt2, tiny_llama, tiny_tokenizer


def greedy(model, tokenizer, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_answers_are_greedy_and_do_not_depend_on_the_batch():
    model, tokenizer = tiny_llama(seed=2).eval(), tiny_tokenizer()
    prompts = [
        row.input_ids[: 3 + i] for i, row in enumerate(random_instances(6, seed=1, n_prompt=9))
    ]
    expected = [greedy(model, tokenizer, prompt, 8) for prompt in prompts]
    assert len(set(expected)) > 1
    assert generate(model, tokenizer, prompts, max_new_tokens=8) == expected
    assert generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=1) == expected


def test_an_answer_ends_where_the_model_ends_it():
    model, tokenizer = tiny_llama(seed=2).eval(), tiny_tokenizer()
    with torch.no_grad():
        # Every hidden state points to the end.
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(262))
        model.lm_head.bias[tokenizer.eos_token_id] = 9.0
    lengths, own = [], model.generate

    def watched(**arguments):
        found = own(**arguments)
        lengths.append(found.shape[1])
        return found

    model.generate = watched
    assert generate(model, tokenizer, [[6, 7, 8]], max_new_tokens=8) == [""]
    assert lengths == [4]


def test_what_model_and_tokenizer_end_with_ends_an_answer():
    model, tokenizer = tiny_llama(seed=2), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = [200, 201]
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id, 200, 201]


def test_the_models_own_settings_of_generation_are_left_out():
    model, tokenizer = tiny_llama(seed=2).eval(), tiny_tokenizer()
    prompt = [6, 7, 8, 9]
    plain = generate(model, tokenizer, [prompt], max_new_tokens=12)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    assert generate(model, tokenizer, [prompt], max_new_tokens=12) == plain


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_padding_is_exact_where_positions_are_given(make):
    assert padding_is_exact(make(seed=1).eval(), [6, 7, 8, 9, 10])


def with_padding_seen():
    model = tiny_llama(seed=1).eval()
    forward = model.forward

    def padded_wrongly(input_ids, attention_mask=None, **options):
        result = forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        if attention_mask is not None:
            wrong = (attention_mask.sum(1) < attention_mask.shape[1]).float()[:, None, None]
            result.logits = result.logits + wrong * torch.arange(262)
        return result

    model.forward = padded_wrongly
    return model


def test_prompts_do_not_share_a_batch_where_padding_changes_them(monkeypatch):
    model, tokenizer = with_padding_seen(), tiny_tokenizer()
    prompts = [[6, 7, 8, 9, 10], [7, 8, 9], [11, 12, 13, 14]]
    assert not padding_is_exact(model, prompts[0])
    sizes, own = [], model.generate

    def watched(**arguments):
        sizes.append(len(arguments["input_ids"]))
        return own(**arguments)

    monkeypatch.setattr(model, "generate", watched)
    assert len(generate(model, tokenizer, prompts, max_new_tokens=2)) == 3
    assert sizes == [1, 1, 1]


def test_progress_is_told_in_prompts_and_tokens():
    model, tokenizer = tiny_llama(seed=2).eval(), tiny_tokenizer()
    calls = []
    generate(
        model,
        tokenizer,
        [[6, 7, 8]] * 3,
        max_new_tokens=2,
        batch_size=2,
        progress=lambda *counts: calls.append(counts),
    )
    assert calls == [(0, 3, 0, 6), (2, 3, 4, 6), (3, 3, 6, 6)]
