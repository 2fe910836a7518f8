"""The self-check in a training loop that is not ours, on its first micro-batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.backends import Backend
from gradsift.gradients.check import CheckResult
from gradsift.gradients.instance_loss import mean_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel
from gradsift.recording.plain_loss import (
    Batch,
    forward_and_backward,
    without_reentrant_checkpointing,
)
from gradsift.terms import IGNORED_LABEL, RecordingMethod
from gradsift.training.layers import head_is_called, require_method, without_dropout
from gradsift.training.self_check import compare_with_autograd, first_that_passes

# What a model is called with besides what only images, sounds and the like need.
TEXT_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "labels",
    "shift_labels",
    "position_ids",
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
)


def check_forward(
    model: TrackedModel,
    sketch: SketchSpec,
    methods: Sequence[RecordingMethod],
    args: tuple,
    kwargs: dict[str, Any],
    batch: Batch,
) -> tuple[Recorder, CheckResult]:
    """Take the first exact method, on a micro-batch that a loop is about to hand to its model.

    The model is called as the loop calls it, and differentiated as far as the watched tensors only:
    parameters, their gradients and random generators stay. Up to two instances are compared with
    autograd on each alone.
    """
    tokens = batch[2]
    chosen = _to_compare(tokens)
    if not chosen:
        raise GradsiftError(
            "no row of the first batch has a response token: a label other than -100 whose token "
            "has another one before it."
        )
    instances = _Instances(model, kwargs, batch)
    indices: Sequence[int] = range(tokens.n_rows)
    if not tokens.is_packed and instances.are_separable:
        args, kwargs, batch = instances.only(chosen, args)
        indices = chosen

    def check(method: RecordingMethod, backend: Backend) -> tuple[Recorder, CheckResult]:
        require_method(model, method)
        recorder = Recorder(model, sketch, method=method, backend=backend)
        with torch.random.fork_rng(), without_dropout(model.outer):
            with head_is_called(model.head):
                records = forward_and_backward(recorder, indices, args, kwargs, batch)
            to_compare = [record for record in records.read() if record.index in chosen]
            result = compare_with_autograd(
                recorder, to_compare, instances.loss, records.dtype, tokens.is_packed
            )
        return recorder, result

    with without_reentrant_checkpointing(model.outer), torch.enable_grad():
        recorder, result = first_that_passes(methods, check, model.outer)
    if result.warning:
        warnings.warn(result.warning, stacklevel=2)
    return recorder, result


def _to_compare(tokens: ResponseTokens) -> list[int]:
    """Return up to two instances with a response, those that stand behind others first."""
    first_B = tokens.rows_BT[:, 0]
    with_response = tokens.n_tokens_I.nonzero().flatten().tolist()
    is_first = set(first_B.tolist())
    return sorted(sorted(with_response, key=lambda row: (row in is_first, row))[:2])


class _Instances:
    """The instances of a micro-batch, each without the others."""

    def __init__(self, model: TrackedModel, kwargs: dict[str, Any], batch: Batch):
        self._model, self._kwargs = model, kwargs
        self._input_ids_BT, self._labels_BT, self._tokens = batch
        self._others = {
            name: value
            for name, value in kwargs.items()
            if isinstance(value, torch.Tensor) and name not in TEXT_ARGUMENTS
        }
        # The model deals images out to the rows of a batch: by its tokens, not in order.
        shape = self._labels_BT.shape
        self.are_separable = all(value.shape == shape for value in self._others.values())

    def only(self, rows: list[int], args: tuple) -> tuple[tuple, dict[str, Any], Batch]:
        """Return arguments and batch of some rows of the batch, where these are the instances."""

        def of_rows(value: object) -> object:
            batched = isinstance(value, torch.Tensor) and value.dim() > 0
            return value[rows] if batched and len(value) == len(self._labels_BT) else value

        input_ids, labels = of_rows(self._input_ids_BT), of_rows(self._labels_BT)
        mask = (self._tokens.rows_BT < self._tokens.n_rows)[rows].long()
        batch = (input_ids, labels, ResponseTokens.of(labels, mask))
        kwargs = {name: of_rows(value) for name, value in self._kwargs.items()}
        return tuple(of_rows(value) for value in args), kwargs, batch

    def loss(self, row: int) -> torch.Tensor:
        """Return the instance loss, by the model's own logits; differentiable."""
        if not self.are_separable:
            return self._loss_among_others(row)
        others = {
            name: self._tokens.split(value)[row][None] for name, value in self._others.items()
        }
        input_ids_T, labels_T = (
            self._tokens.split(values)[row] for values in (self._input_ids_BT, self._labels_BT)
        )
        logits_1TV = self._model.outer(input_ids=input_ids_T[None], **others).logits
        return mean_loss(logits_1TV, labels_T[None])

    def _loss_among_others(self, row: int) -> torch.Tensor:
        left_out = ("labels", "shift_labels", "fused_lm_head", "num_items_in_batch")
        kwargs = {name: value for name, value in self._kwargs.items() if name not in left_out}
        is_other_BT = self._tokens.rows_BT != row
        labels_BT = self._labels_BT.masked_fill(is_other_BT, IGNORED_LABEL)
        labels_BT[:, 1:].masked_fill_(is_other_BT[:, :-1], IGNORED_LABEL)
        return mean_loss(self._model.outer(**kwargs).logits, labels_BT)
