"""Isolation of packed rows: whether a model lets the rows of a packed batch attend to each other.

Shapes: B rows of a batch, T positions, X width or vocabulary, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel
from gradsift.training.layers import without_dropout

# How much of its size a state may change when other rows of the same lengths stand beside it. A
# mixture of experts puts its tokens together anew, so that it rounds anew.
UNCHANGED = 1e-5
MIXTURE_UNCHANGED = {torch.float64: 1e-8, torch.float32: 1e-4}
LOW_PRECISION_MIXTURE = 0.02
# How much rounding may change a state of a row that stands alone.
ROUNDING = 0.1
# Tokens of a row with which that is tried before a run.
N_TRIED_TOKENS = 64
PACKED_ROWS_MIX = (
    "rows are packed, and see each other: another row beside it changes a row's states by {:.1g} "
    "of their size. transformers keeps rows apart by position_ids that begin anew, without an "
    "attention_mask and with use_cache=False; a recurrent model never does. Do not pack."
)


def require_isolation(
    model: TrackedModel,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    input_ids_BT: torch.Tensor,
    tokens: ResponseTokens,
) -> None:
    """Refuse packed rows that see each other in a forward pass with those arguments.

    What is masked counts for nothing at all: other rows beside it must change nothing in a row, in
    any precision. That is sharper than a comparison with the row alone, which has rounding in it.
    """
    rows_BT = tokens.rows_BT
    last_B1 = rows_BT.masked_fill(rows_BT >= tokens.n_rows, -1).amax(1, keepdim=True)
    stays_BT = rows_BT == last_B1

    def states(ids_BT: torch.Tensor) -> torch.Tensor:
        if "input_ids" in kwargs:
            return _states(model, args, {**kwargs, "input_ids": ids_BT})
        return _states(model, (ids_BT, *args[1:]), kwargs)

    states_BTX = states(input_ids_BT)
    changed_BTX = states(_replaced(input_ids_BT, ~stays_BT))
    change = _relative_gap(states_BTX[stays_BT], changed_BTX[stays_BT])
    if not change < _allowed_change(model.outer, states_BTX.dtype):
        raise GradsiftError(PACKED_ROWS_MIX.format(change))


def isolates_packed_rows(model: TrackedModel, rows: Sequence[Sequence[int]]) -> bool:
    """Say whether rows may be packed, by the beginnings of two of them.

    The second must not be changed by the first, and be about what it is alone.
    """
    device = next(model.outer.parameters()).device
    first_T, second_T = (torch.tensor(list(row[:N_TRIED_TOKENS]), device=device) for row in rows)
    ids_1T = torch.cat([first_T, second_T])[None]
    positions_1T = torch.cat([torch.arange(len(t), device=device) for t in (first_T, second_T)])
    kwargs = {"input_ids": ids_1T, "position_ids": positions_1T[None]}
    tokens = ResponseTokens.compact(ids_1T, None, positions_1T[None])
    try:
        require_isolation(model, (), kwargs, ids_1T, tokens)
        packed_TX = _states(model, (), kwargs)[0, len(first_T) :]
        alone_TX = _states(model, (), {"input_ids": second_T[None]})[0]
    # However a model fails that takes no positions.
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError):
        return False
    return _relative_gap(alone_TX, packed_TX) < ROUNDING


@torch.no_grad()
def _states(model: TrackedModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the last hidden states, or logits where a model gives no such states, [B, T, X]."""
    states: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            states.append(hidden)

    handle = model.backbone.register_forward_hook(keep)
    try:
        with torch.random.fork_rng(), without_dropout(model.outer):
            output = model.outer(*args, **kwargs)
    finally:
        handle.remove()
    return states[-1] if states else output.logits


def _replaced(input_ids_BT: torch.Tensor, where_BT: torch.Tensor) -> torch.Tensor:
    """Return the tokens with every chosen one replaced by a different one of the batch."""
    flat = input_ids_BT.flatten()
    first = flat[0]
    second = flat[(flat != first).int().argmax()]
    return torch.where(where_BT, torch.where(input_ids_BT == first, second, first), input_ids_BT)


def _relative_gap(states_NX: torch.Tensor, changed_NX: torch.Tensor) -> float:
    gap_N, size_N = (states_NX.float() - changed_NX).norm(dim=1), states_NX.float().norm(dim=1)
    return float(torch.where(gap_N == 0, 0, gap_N / size_N).max())  # Padding may have no state.


def _allowed_change(model: nn.Module, dtype: torch.dtype) -> float:
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    if not any(getattr(text, name, None) for name in names):
        return UNCHANGED
    device_type = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    return MIXTURE_UNCHANGED.get(dtype, LOW_PRECISION_MIXTURE)
