"""How rows are put into micro-batches: packed end to end, grouped by length, or padded.

packed: the rows of a micro-batch stand end to end in as few rows of the batch as it takes, if the
model isolates them by their positions (isolation.py). The order of rows, and so every step, is
trl's own.
by_length: rows of about the same length go together, where a model does not isolate packed rows.
Only rows of a window of the random order change places, and the batches of a window are in random
order, so that the step of a row is not its length.
random: each row of the batch is one row, padded to the longest, as trl does.

Shapes: B rows of a batch, T positions, D width.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from gradsift.config import Batching
from gradsift.data.tokenization import Instance
from gradsift.gradients.tokens import ResponseTokens
from gradsift.terms import IGNORED_LABEL

INDEX_COLUMN = "instance_index"
TOKENS = "response_tokens"

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
# Of the length of a packed batch on a GPU, where each new shape costs some preparation.
PACKED_MULTIPLE = 64


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
    rows: Sequence[Mapping[str, Sequence[int]]], width: int, pad: int, multiple: int = 1
) -> tuple[dict[str, torch.Tensor], ResponseTokens, list[int]]:
    """Put rows end to end: `input_ids`, `labels`, `position_ids` [B, T], layout, and their order.

    There is no attention mask: where a batch has one, models do not look at the positions. What is
    left over at the end of a row of the batch is a sequence of its own, without labels.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    packed = bins(lengths, width)
    longest = max(sum(lengths[i] for i in members) for members in packed)
    shape = (len(packed), -(-longest // multiple) * multiple)
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


def n_tokens_of(instances: Sequence[Instance]) -> int:
    """Return the tokens of instances, without padding."""
    return sum(len(instance.input_ids) for instance in instances)


def as_dataset(instances: Sequence[Instance]) -> Dataset:
    """Return instances as a dataset that trl trains on without preparing it again."""
    return Dataset.from_dict(
        {
            "input_ids": [instance.input_ids for instance in instances],
            "labels": [instance.labels for instance in instances],
            INDEX_COLUMN: list(range(len(instances))),
        }
    )


class Collator:
    """trl's collator, or packed rows; with the rows' indices and where their responses are.

    Attributes:
        packs: Whether rows are packed.
        multiple: Of what the length of a packed batch is a multiple.
    """

    def __init__(self, collate: Callable[[list[dict]], dict[str, torch.Tensor]], width: int):
        """Take trl's collator and D of the model."""
        self._collate, self._width = collate, width
        self.packs, self.multiple = False, 1

    @contextmanager
    def packing_into_one(self) -> Generator[None, None, None]:
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
            pad = self._collate.pad_token_id
            batch, tokens, order = packed_batch(rows, self._width, pad, self.multiple)
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
