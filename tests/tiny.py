"""Tiny models and tokenizers, built in code: no hub, no files."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from gradsift.data import demo_data
from gradsift.data.tokenization import Instance
from gradsift.seals import sha256_of, write_json

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The same text, with the marks that tell which tokens the assistant generates.
CHAT_TEMPLATE_MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 262 tokens: six special ones, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(
    *, tied: bool = True, seed: int = 0, vocab_size: int = 262, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """Two layers, width 32, random weights from `seed`."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype)


def tiny_gpt2(*, seed: int = 0, dropout: float = 0.0) -> GPT2LMHeadModel:
    """Two layers, width 32, random weights from `seed`, optional dropout."""
    config = GPT2Config(
        vocab_size=262,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def random_instances(n: int, *, seed: int, n_prompt: int, prefix: str = "r") -> list[Instance]:
    """Rows of 4 to 30 random tokens, of which the first `n_prompt` are the prompt."""
    rng = random.Random(seed)
    instances = []
    for i in range(n):
        ids = [rng.randint(6, 261) for _ in range(rng.randint(4, 30))]
        instances.append(Instance(f"{prefix}{i}", ids, [-100] * n_prompt + ids[n_prompt:]))
    return instances


def save_tiny(directory, *, tied: bool = True, seed: int = 0, chat_template=CHAT_TEMPLATE) -> str:
    """Save a tiny model with its tokenizer, as a user's local model folder."""
    tiny_llama(tied=tied, seed=seed).save_pretrained(directory)
    tiny_tokenizer(chat_template).save_pretrained(directory)
    return str(directory)


def tiny_mamba():
    config = MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=2, state_size=4)
    config.use_cache = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MambaForCausalLM(config)


def demo_stand_in(cache: Path) -> str:
    """Put a tiny model where the demo's is looked for; return the cache that it lies in."""
    folder = cache / "models" / f"{demo_data.NAME}-{demo_data._gguf_file().stat().st_size}"
    save_tiny(folder)
    sums = {path.name: sha256_of(path) for path in folder.iterdir()}
    write_json(folder / demo_data.CHECKSUMS, sums)
    return str(cache)
