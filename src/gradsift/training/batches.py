"""How rows are put into micro-batches, and whether a model keeps packed rows apart.

packed: the rows of a micro-batch stand end to end in as few rows of the batch as it takes, if the
model keeps them apart by their positions. The order of rows, and so every step, is trl's own.
by_length: rows of about the same length go together, where a model does not keep packed rows
apart. Only rows of a window of the random order change places, and the batches of a window are
in random order, so that the step of a row is not its length.
random: each row of the batch is one row, padded to the longest, as trl does.

Shapes: B rows of a batch, T positions, D width, X width or vocabulary.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Sampler

from gradsift.errors import GradsiftError
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel
from gradsift.terms import IGNORED_LABEL
from gradsift.training.layers import without_dropout

INDEX_COLUMN = "instance_index"
TOKENS = "response_tokens"

Batching = Literal["packed", "by_length", "random"]
# What each does, for people.
BATCHINGS: dict[Batching, str] = {
    "packed": "packed (the rows of a micro-batch stand end to end, the model keeps them apart)",
    "by_length": "by_length (rows of about the same length go together)",
    "random": "random (rows are padded to the longest of their micro-batch)",
}
# Batches among which rows change places: enough that those of a batch are of about one length.
BATCHES_IN_A_WINDOW = 64
# A token's attention costs as much as its linear layers in a row of about 6 times the width
# (24·D² operations for the layers of a block, 4·D·T for the attention).
WIDTHS_OF_ATTENTION = 6
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


def bins(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Divide the rows of a micro-batch among rows of a packed batch, at the least cost.

    Returns their positions in each row of the batch, longest first. The model's width D says how
    dear attention is beside the rest.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    candidates = [_balanced(order, lengths, n_bins) for n_bins in range(1, len(lengths) + 1)]

    def cost(packed: list[list[int]]) -> float:
        longest = max(sum(lengths[i] for i in row) for row in packed)
        return len(packed) * longest * (1 + longest / (WIDTHS_OF_ATTENTION * width))

    return min(candidates, key=cost)


def _balanced(order: Sequence[int], lengths: Sequence[int], n_bins: int) -> list[list[int]]:
    # Each row, the longest first, goes to where there is most room (Graham's LPT rule).
    packed: list[list[int]] = [[] for _ in range(n_bins)]
    loads = [(0, at) for at in range(n_bins)]
    for i in order:
        load, at = heapq.heappop(loads)
        packed[at].append(i)
        heapq.heappush(loads, (load + lengths[i], at))
    return packed


def packed_batch(
    rows: Sequence[Mapping[str, Sequence[int]]], width: int, pad: int
) -> tuple[dict[str, torch.Tensor], ResponseTokens, list[int]]:
    """Put rows end to end: `input_ids`, `labels`, `position_ids` [B, T], layout, and their order.

    There is no attention mask: where a batch has one, models do not look at the positions. What is
    left over at the end of a row of the batch is a sequence of its own, without labels.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    packed = bins(lengths, width)
    shape = (len(packed), max(sum(lengths[i] for i in members) for members in packed))
    input_ids_BT = torch.full(shape, pad)
    labels_BT = torch.full(shape, IGNORED_LABEL)
    position_ids_BT, mask_BT = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    for at, members in enumerate(packed):
        start = 0
        for i in [*members, None]:
            n = shape[1] - start if i is None else lengths[i]
            place = (at, slice(start, start + n))
            position_ids_BT[place] = torch.arange(n)
            if i is not None:
                input_ids_BT[place] = torch.tensor(rows[i]["input_ids"])
                labels_BT[place] = torch.tensor(rows[i]["labels"])
                # A row's first token is predicted from nothing, and not from the row before it.
                labels_BT[at, start] = IGNORED_LABEL
                mask_BT[place] = 1
            start += n
    batch = {"input_ids": input_ids_BT, "labels": labels_BT, "position_ids": position_ids_BT}
    layout = ResponseTokens.compact(labels_BT, mask_BT, position_ids_BT)
    return batch, layout, [i for members in packed for i in members]


class Collator:
    """trl's collator, or packed rows; with the rows' indices and where their responses are.

    Attributes:
        packs: Whether rows are packed.
    """

    def __init__(self, collate: Callable[[list[dict]], dict[str, torch.Tensor]], width: int):
        """Take trl's collator and D of the model."""
        self._collate, self._width, self.packs = collate, width, False

    @contextmanager
    def packing_whole(self) -> Generator[None, None, None]:
        """Put all rows of a micro-batch into one, at any cost, inside a `with` block."""
        width, self._width = self._width, 2**62
        try:
            yield
        finally:
            self._width = width

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        """Put rows into a micro-batch."""
        # The host knows the indices, and where the response tokens are: nobody need ask a device.
        indices = [row[INDEX_COLUMN] for row in rows]
        if self.packs:
            batch, tokens, order = packed_batch(rows, self._width, self._collate.pad_token_id)
            return {**batch, INDEX_COLUMN: [indices[i] for i in order], TOKENS: tokens}
        batch = self._collate([{k: v for k, v in row.items() if k != INDEX_COLUMN} for row in rows])
        tokens = ResponseTokens.compact(batch["labels"], batch.get("attention_mask"))
        return {**batch, INDEX_COLUMN: indices, TOKENS: tokens}


class LengthGroupedSampler(Sampler[int]):
    """Rows in random order, those of about the same length together within a window of it.

    transformers' own sorts windows of 50 batches longest first and leaves them so: a row's step
    would tell its length.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        """Take the batch size of all processes together."""
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; data loaders call this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        size = self._batch_size * BATCHES_IN_A_WINDOW
        for start in range(0, len(order), size):
            window = order[start : start + size]
            window.sort(key=lambda i: self._lengths[i])
            batches = [
                window[at : at + self._batch_size] for at in range(0, len(window), self._batch_size)
            ]
            # A batch that is not full stays the last one, or all after it would be cut anew.
            n_full = len(window) // self._batch_size
            for at in torch.randperm(n_full, generator=generator).tolist():
                yield from batches[at]
            for batch in batches[n_full:]:
                yield from batch


def require_apart(
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


def keeps_apart(model: TrackedModel, rows: Sequence[Sequence[int]]) -> bool:
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
        require_apart(model, (), kwargs, ids_1T, tokens)
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
