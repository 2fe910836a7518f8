"""Rows that are longer than a model's table of positions."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    RobertaConfig,
    XGLMConfig,
)

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.training.positions import require_positions

N = 32
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "gpt2": (GPT2Config(**SMALL, max_position_embeddings=N), N),
    "gptj": (GPTJConfig(**SMALL, max_position_embeddings=N, rotary_dim=4), N),
    "opt": (
        OPTConfig(**SMALL, max_position_embeddings=N, ffn_dim=16, word_embed_proj_dim=16),
        N,
    ),
    "roberta": (
        RobertaConfig(**SMALL, max_position_embeddings=N, is_decoder=True, pad_token_id=1),
        N - 2,
    ),
    "llama": (LlamaConfig(**SMALL, max_position_embeddings=N, intermediate_size=16), None),
    "xglm": (XGLMConfig(**SMALL, max_position_embeddings=N, ffn_dim=16), None),
    "mamba": (MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1), None),
}


def rows(*lengths):
    return [Instance(f"r{i}", [7] * n, [7] * n) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_limit_is_where_the_model_fails(name):
    config, limit = CONFIGS[name]
    model = Auto.from_config(config).eval()
    longest = limit or 2 * N
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
    require_positions("m", config, rows(3, longest), 1024)
    if limit is None:
        return
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))
    with pytest.raises(GradsiftError) as caught:
        require_positions("m", config, rows(3, limit, limit + 1, limit + 9), 1024)
    message = str(caught.value)
    assert f"m has {limit} positions, and `max_length` is 1024: 2 rows are longer" in message
    assert f"up to {limit + 9} tokens (the first is r2). Use `max_length: {limit}`." in message


@pytest.mark.parametrize(("name", "noted"), [("llama", True), ("xglm", True), ("mamba", False)])
def test_models_that_go_on_are_noted(caplog, name, noted):
    require_positions("m", CONFIGS[name][0], rows(3, N), 1024)
    assert not caplog.text
    require_positions("m", CONFIGS[name][0], rows(3, N + 1), 1024)
    assert (f"1 row is longer than the {N} positions" in caplog.text) is noted
