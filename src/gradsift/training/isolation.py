"""A model without its dropout, for a while.

Does a model keep packed rows apart?

What is masked counts for nothing at all: other rows beside it must change nothing in a row, in any
precision. That is sharper than a comparison with the row alone, which has rounding in it.

"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel


@contextmanager
def without_dropout(model: nn.Module) -> Generator[None, None, None]:
    """Set every dropout probability of a model to 0 inside a `with` block.

    Both kinds are found: dropout modules, and probabilities that a module hands to a function.

    Args:
        model: The model, in whatever mode it is.

    Yields:
        Nothing.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            is_rate = "drop" in name or (name == "p" and "Dropout" in type(module).__name__)
            if is_rate and isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


# How much of its size a state may change when other rows of the same lengths stand beside it. A
# mixture of experts puts its tokens together anew, so that it rounds anew.
UNCHANGED = 1e-5
MIXTURE_UNCHANGED = {torch.float64: 1e-8, torch.float32: 1e-4}
LOW_PRECISION_MIXTURE = 0.02
# How much rounding may change a state of a row that stands alone.
ABOUT_THE_SAME = 0.1
# Tokens of a row with which that is tried before a run.
TRIED = 64
PACKED = (
    "rows are packed, and see each other: another row beside it changes a row's states by {:.1g} "
    "of their size. transformers keeps rows apart by position_ids that begin anew, without an "
    "attention_mask and with use_cache=False; a recurrent model never does. Do not pack."
)


def require_apart(
    model: TrackedModel,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    input_ids_BT: torch.Tensor,
    tokens: ResponseTokens,
) -> None:
    """Refuse packed rows that see each other in a loop's own forward pass.

    Args:
        model: The tracked modules.
        args: Positional arguments of the loop's call.
        kwargs: Keyword arguments of the loop's call.
        input_ids_BT: The tokens, one of the arguments.
        tokens: Their layout, with packed rows.

    Raises:
        ValueError: If they do.
    """
    rows_BT = tokens.rows_BT
    last_B1 = rows_BT.masked_fill(rows_BT >= tokens.n_rows, -1).amax(1, keepdim=True)
    kept_BT = rows_BT == last_B1

    def states_of(ids_BT: torch.Tensor) -> torch.Tensor:
        if "input_ids" in kwargs:
            return _states(model, args, {**kwargs, "input_ids": ids_BT})
        return _states(model, (ids_BT, *args[1:]), kwargs)

    states_BTX, changed_BTX = states_of(input_ids_BT), states_of(_others(input_ids_BT, kept_BT))
    change = _gap(states_BTX[kept_BT], changed_BTX[kept_BT])
    if not change < _allowed(model.outer, states_BTX.dtype):
        raise GradsiftError(PACKED.format(change))


def keeps_apart(model: TrackedModel, rows: Sequence[Sequence[int]]) -> bool:
    """Say whether rows may be packed, before anything is trained.

    Args:
        model: The tracked modules.
        rows: Tokens of two rows, of which the beginnings are taken.

    Returns:
        Whether the second is not changed by the first, and is about what it is alone.
    """
    device = next(model.outer.parameters()).device
    first_T, second_T = (torch.tensor(list(row[:TRIED]), device=device) for row in rows)
    ids_1T = torch.cat([first_T, second_T])[None]
    positions_1T = torch.cat([torch.arange(len(t), device=device) for t in (first_T, second_T)])
    kwargs = {"input_ids": ids_1T, "position_ids": positions_1T[None]}
    tokens = ResponseTokens.compact(ids_1T, None, positions_1T[None])
    try:
        require_apart(model, (), kwargs, ids_1T, tokens)
        packed_TX = _states(model, (), kwargs)[0, len(first_T) :]
        alone_TX = _states(model, (), {"input_ids": second_T[None]})[0]
    # However a model fails that takes no positions.
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError):
        return False
    return _gap(alone_TX, packed_TX) < ABOUT_THE_SAME


@torch.no_grad()
def _states(model: TrackedModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the last hidden states, or logits where a model gives no such states, [B, T, X]."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            seen.append(hidden)

    handle = model.backbone.register_forward_hook(keep)
    try:
        with torch.random.fork_rng(), without_dropout(model.outer):
            output = model.outer(*args, **kwargs)
    finally:
        handle.remove()
    return seen[-1] if seen else output.logits


def _others(input_ids_BT: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
    """Return the tokens with every one that is not kept replaced by another one of the batch."""
    flat = input_ids_BT.flatten()
    one = flat[0]
    other = flat[(flat != one).int().argmax()]
    return input_ids_BT.where(kept_BT, torch.where(input_ids_BT == one, other, one))


def _gap(states_NX: torch.Tensor, others_NX: torch.Tensor) -> float:
    off_N, size_N = (states_NX.float() - others_NX).norm(dim=1), states_NX.float().norm(dim=1)
    return float(torch.where(off_N == 0, 0, off_N / size_N).max())  # Padding may have no state.


def _allowed(model: nn.Module, dtype: torch.dtype) -> float:
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    if not any(getattr(text, name, None) for name in names):
        return UNCHANGED
    kind = torch.get_autocast_dtype(next(model.parameters()).device.type)
    is_mixed = torch.is_autocast_enabled(next(model.parameters()).device.type)
    return MIXTURE_UNCHANGED.get(kind if is_mixed else dtype, LOW_PRECISION_MIXTURE)
