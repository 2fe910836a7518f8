"""A tiny, randomly initialised model of every causal-LM type that transformers registers."""

from __future__ import annotations

import warnings

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 97, 32, 2, 4, 64

# What every configuration calls its sizes. The value stands for all names beside it.
SIZES = (
    (VOCABULARY, ("vocab_size", "vocab_size_per_layer_input", "n_words", "decoder_vocab_size")),
    (
        WIDTH,
        (
            *("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size"),
            *("word_embed_proj_dim", "attention_hidden_size", "output_hidden_size", "input_size"),
            *("dim_model", "d_embed", "hidden_dim", "rnn_width", "lru_width", "cross_hidden_size"),
            *("emb_dim", "pronunciation_embed_dim", "shape_embed_dim"),
        ),
    ),
    (
        LAYERS,
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
            *("encoder_layers", "num_decoder_layers", "num_encoder_layers"),
        ),
    ),
    (
        HEADS,
        (
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
            *("encoder_attention_heads", "attn_num_heads", "num_encoder_attention_heads"),
            *("num_decoder_attention_heads", "linear_num_value_heads", "num_experts"),
            *(
                "num_local_experts",
                "n_routed_experts",
                "moe_num_experts",
                "num_swa_attention_heads",
            ),
            *("conv_kernel", "mamba_d_conv", "conv_L_cache", "swa_num_attention_heads"),
        ),
    ),
    (
        2,
        (
            *("num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "num_experts_per_tok"),
            *("num_experts_per_token", "moe_topk", "moe_k", "num_swa_key_value_heads"),
            *("swa_num_key_value_heads", "moe_top_k", "top_k_experts", "num_selected_experts"),
            *("n_group", "num_expert_group", "index_n_heads", "index_topk", "linear_num_heads"),
            *("o_groups", "hc_count", "heads_per_ngram"),
        ),
    ),
    (
        8,
        (
            *("head_dim", "d_kv", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
            *("v_head_dim", "q_lora_rank", "state_size", "mamba_d_state", "ssm_state_size"),
            *("time_step_rank", "mamba_dt_rank", "global_head_dim", "linear_key_head_dim"),
            *("linear_value_head_dim", "swa_head_dim", "hidden_size_per_layer_input", "d_head"),
            *(
                "mamba_d_head",
                "mamba_head_dim",
                "index_head_dim",
                "linear_head_dim",
                "rotary_dim",
                "sliding_window",
            ),
            *(
                "attention_head_dim",
                "chunk_size",
                "mamba_chunk_size",
                "laurel_rank",
                "d_state",
                "o_lora_rank",
                "hc_lowrank",
            ),
        ),
    ),
    (
        48,
        (
            *(
                "intermediate_size",
                "ffn_dim",
                "n_inner",
                "d_ff",
                "decoder_ffn_dim",
                "encoder_ffn_dim",
            ),
            *("moe_intermediate_size", "shared_expert_intermediate_size", "dim_ff", "d_inner"),
            *("ffn_hidden_size", "intermediate_size_mlp", "prefix_dense_intermediate_size"),
            *("shared_intermediate_size", "block_ff_dim", "expert_ffn_hidden_size", "dff"),
        ),
    ),
    (
        POSITIONS,
        (
            *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
            *("max_sequence_length", "original_max_position_embeddings", "axial_pos_shape"),
        ),
    ),
)
SIZE_OF = {name: size for size, names in SIZES for name in names}
# Lists of what kind each layer is.
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3}


class CannotBuild(Exception):
    """Why a type has no tiny model here."""


def build(model_type: str, *, tied: bool | None = None, seed: int = 0) -> PreTrainedModel:
    """Build a tiny model.

    Args:
        model_type: One of CAUSAL_TYPES.
        tied: Whether the head shares the embedding's weight; None leaves the type's default.
        seed: Of the weights.

    Returns:
        The model without dropout, float32.

    Raises:
        CannotBuild: With the reason.
    """
    if model_type in IMPOSSIBLE:
        raise CannotBuild(IMPOSSIBLE[model_type])
    config = tiny_config(model_type)
    if tied is not None:
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            part.tie_word_embeddings = tied
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    # Reformer's backward pass wants training mode; dropout is 0 anyway.
    return model.float().train(model_type == "reformer")


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a type's configuration with every size shrunk.

    Args:
        model_type: One of CAUSAL_TYPES.

    Returns:
        The configuration.
    """
    return _shrunk(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def _one_layer_of_each_kind(default: PretrainedConfig, changed: dict[str, object]) -> None:
    """Where layers differ in kind and the first few are alike, take one of each."""
    given = default.to_dict()  # Not what is computed from other settings.
    lists = {name: given.get(name) for name in KINDS_OF_LAYERS}
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items() if value}
    n_layers = max([LAYERS, *map(len, kinds.values())])
    small = type(default)(**changed)
    for name, some in kinds.items():
        if set(getattr(small, name)) != set(some):
            changed |= {name: [some[i % len(some)] for i in range(n_layers)]}
            changed["num_hidden_layers"] = n_layers
    for name in kinds:
        # Lists of other kinds must be as long.
        if changed.get("num_hidden_layers") == n_layers and name not in changed:
            changed[name] = [kinds[name][i % len(kinds[name])] for i in range(n_layers)]


def _shrunk(config_class: type[PretrainedConfig], more: dict[str, object]) -> PretrainedConfig:
    # Only what is changed is given: what follows from it, the configuration computes itself.
    changed = {}
    default = config_class()
    for name, value in default.to_dict().items():
        inner = default.__dict__.get(name)
        if isinstance(inner, PretrainedConfig):
            changed[name] = _shrunk(type(inner), more.get(name, {}))
        elif (small := _small(name, value)) != value:
            changed[name] = small
    if "qk_rope_head_dim" in changed:
        # Latent attention: as many key as query heads, and the head's width is computed.
        changed["num_key_value_heads"] = HEADS
        changed.pop("head_dim", None)
    elif "head_dim" in changed or ("head_dim", None) in default.to_dict().items():
        changed["head_dim"] = SIZE_OF["head_dim"]
    changed |= {name: value for name, value in more.items() if name not in default.sub_configs}
    if not set(KINDS_OF_LAYERS) & set(more):
        _one_layer_of_each_kind(default, changed)
    return config_class(**changed)


def _small(name: str, value: object) -> object:
    if name in TOKEN_IDS and value is not None:
        return TOKEN_IDS[name]
    if name.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
        return VOCABULARY - 1
    if "drop" in name and isinstance(value, float):
        return 0.0
    if name in SIZE_OF and isinstance(value, int) and not isinstance(value, bool):
        return SIZE_OF[name]
    if name == "is_decoder":
        return True
    if name == "topk_group" and value is not None:
        return 1
    if name in ("use_cache", "output_router_logits", "is_encoder_decoder"):
        return False
    return value


IMPOSSIBLE = {
    "dots3_note": "its configuration has no smaller size; its text model (dots3_note_text) is here",
    "gemma3n": "its vision tower needs timm and PIL; its text model (gemma3n_text) is here",
    "gemma4_assistant": "it drafts for another model and runs on that one's hidden states",
    "gemma4_unified_assistant": "it drafts for another model and runs on that one's hidden states",
    "musicgen": "its heads are a list, one for each codebook",
    "musicgen_melody": "its heads are a list, one for each codebook",
}

_QSA_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": VOCABULARY,
    "ple_embed_dim": 8,
}

# The few values that a type needs beyond its sizes.
OVERRIDES: dict[str, dict[str, object]] = {
    # Sparse attention that picks the best keys breaks ties differently when a row is padded.
    "axk2": {"index_topk": POSITIONS},
    "deepseek_v32": {"index_topk": POSITIONS},
    "dots3_note_text": {"index_topk": POSITIONS},
    "glm_moe_dsa": {"index_topk": POSITIONS},
    "bamba": {"mamba_n_heads": 8},  # Times mamba_d_head it is the expanded width.
    "granitemoehybrid": {"mamba_n_heads": 8},
    "mamba2": {"num_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        # The attention is shared between the hybrid layers, so there must be two.
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_headdim": 8,
    },
    "blt": {
        "hidden_size_global": 32,
        "encoder_hash_byte_group_vocab": 50,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}
    },  # The model reads it, the default lacks it.
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "nemotron": {"num_key_value_heads": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "qwen4_exp": {"text_config": _QSA_INDEXER},
    "qwen4_exp_text": _QSA_INDEXER,
    "cohere_compass_text": {
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 1e4}
            for name in ("full_attention", "sliding_attention")
        }
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
}
