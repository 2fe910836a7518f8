"""How long rows a model takes: found before its weights are loaded.

A table of positions ends: GPT-2 fails at a longer row, on a GPU without saying where. Rotary and
relative positions go on, beyond what the model was trained for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError

# OPT and its like have two more rows of their table than positions, RoBERTa and its like use two
# rows less.
MOST_RESERVED = 8
# Models that compute more rows of their table when a longer row comes.
GROWING_TABLES = ("xglm",)

logger = logging.getLogger(__name__)


def require_positions(
    name: str, config: PretrainedConfig, instances: Sequence[Instance], max_length: int
) -> None:
    """Refuse rows that are longer than a model's table of positions; note them for other models.

    Args:
        name: What the user calls the model.
        config: Of the model.
        instances: The rows.
        max_length: After how many tokens they were cut.

    Raises:
        GradsiftError: If a row does not fit.
    """
    n_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # T5 and Bloom have none, and some configurations say -1.
    if not isinstance(n_positions, int) or n_positions < 1:
        return
    longest = max(len(item.input_ids) for item in instances)
    if longest <= n_positions - MOST_RESERVED:
        return
    n_in_table = _positions_in_table(config, n_positions)
    limit = n_positions if n_in_table is None else n_in_table
    longer = [item for item in instances if len(item.input_ids) > limit]
    if not longer:
        return
    rows = f"{len(longer)} {'row is' if len(longer) == 1 else 'rows are'} longer"
    if n_in_table is not None:
        raise GradsiftError(
            f"{name} has {limit} positions, and `max_length` is {max_length}: {rows}, up to "
            f"{longest} tokens (the first is {longer[0].instance_id}). Use `max_length: {limit}`."
        )
    logger.warning(
        f"{rows} than the {limit} positions that {name} was made for, up to {longest} tokens: it "
        "takes them, but was perhaps never trained on so long ones"
    )


def _positions_in_table(config: PretrainedConfig, n_positions: int) -> int | None:
    """Return how many positions a model looks up in a table; None if it has none."""
    if config.model_type in GROWING_TABLES:
        return None
    try:
        # The weights are not needed.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    # Code that came with a model, or what no device without data can make: loading it tells.
    except Exception:
        return None
    tokens = model.get_input_embeddings()
    for module in model.modules():
        is_table = isinstance(module, nn.Embedding) and module is not tokens
        if is_table and _is_of_positions(module.weight, n_positions):
            # RoBERTa counts from behind its padding token, for which these have a row.
            n_left_out = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(n_positions, module.num_embeddings - n_left_out)
    if any(_is_of_positions(buffer, n_positions) for buffer in model.buffers()):
        return n_positions
    return None


def _is_of_positions(table: torch.Tensor, n_positions: int) -> bool:
    is_table = table.dim() == 2 and table.is_floating_point()
    return is_table and 0 <= len(table) - n_positions <= MOST_RESERVED
