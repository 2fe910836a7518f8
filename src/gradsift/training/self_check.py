"""Before a run: is what would be recorded what autograd gives, and which way of recording is?"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.arithmetic import Arithmetic, arithmetics_for
from gradsift.gradients.check import (
    CheckResult,
    autograd_summaries,
    compare,
    require_match,
    tolerance_for,
)
from gradsift.gradients.recorder import Recorder, RecordingMethod
from gradsift.gradients.records import Record
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import TrackedModel
from gradsift.recording.plain_loss import (
    Batch,
    forward_and_backward,
    without_reentrant_checkpointing,
)
from gradsift.terms import IGNORED_LABEL
from gradsift.training.cost import forward_records, probe_step
from gradsift.training.isolation import without_dropout
from gradsift.training.layers import base_model, head_is_called, require_path, track
from gradsift.training.quantized import coupling_of
from gradsift.training.trainer import RecordingSFTTrainer, mean_loss

# From the cheapest to the one that makes the fewest assumptions.
PATHS: tuple[RecordingMethod, ...] = ("fused", "fused-intercepted", "hooked", "intercepted")
# In a loop that is not ours.
LOOP_PATHS: tuple[RecordingMethod, ...] = ("hidden", "hidden-intercepted", "hooked", "intercepted")
# What a model is called with besides what only images, sounds and the like need.
OF_TEXT = (
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
# Of rows that the model itself makes depend on their neighbours, by some percent.
COUPLED_TOLERANCE = 0.1
# A way that does not fit a model fails in whatever manner the model's code fails.
_NOT_THIS_WAY = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError)


def recorder_for(
    trainer: RecordingSFTTrainer,
    path: RecordingMethod,
    sketch: SketchSpec,
    arithmetic: Arithmetic | None = None,
) -> Recorder:
    """Set a trainer to one way of recording.

    Args:
        trainer: Ready to train; its loss is computed accordingly from now on.
        path: The way.
        sketch: Size and seed of the sketches.
        arithmetic: How to compute; None takes the fastest one of the device.

    Returns:
        The recorder.

    Raises:
        ValueError: If the way does not fit the model's layers.
    """
    require_path(track(trainer.model), path)
    trainer.use_fused_head(path.startswith("fused"))
    tracked = track(trainer.model, trainer.fused)
    return Recorder(tracked, sketch, method=path, arithmetic=arithmetic)


def first_exact_path(
    trainer: RecordingSFTTrainer,
    sketch: SketchSpec,
    token_counts: Sequence[int],
    *,
    wanted: str = "auto",
    backward: bool = True,
) -> tuple[Recorder, CheckResult]:
    """Take the cheapest way of recording that equals autograd on this model.

    Args:
        trainer: Ready to train.
        sketch: Size and seed of the sketches.
        token_counts: Tokens of each instance.
        wanted: One of PATHS, or "auto" to try them in order.
        backward: Whether the embedding's part is recorded, too.

    Returns:
        The recorder, and what the check found.

    Raises:
        ValueError: If no way is exact.
    """

    def check(path: RecordingMethod, arithmetic: Arithmetic) -> tuple[Recorder, CheckResult]:
        recorder = recorder_for(trainer, path, sketch, arithmetic)
        return recorder, self_check(trainer, recorder, token_counts, backward=backward)

    return _first_that_passes(paths_of(wanted, PATHS), check, trainer.model)


def paths_of(wanted: str, paths: Sequence[RecordingMethod]) -> Sequence[RecordingMethod]:
    """Return the ways to try, in order.

    Args:
        wanted: One of the ways, or "auto" for all.
        paths: All.

    Returns:
        At least one.

    Raises:
        ValueError: For a way that is none of them.
    """
    if wanted != "auto" and wanted not in paths:
        raise GradsiftError(f"recording is {wanted!r}, expected auto, {', '.join(paths)}.")
    return paths if wanted == "auto" else (wanted,)


def _first_that_passes(
    paths: Sequence[RecordingMethod],
    check: Callable[[RecordingMethod, Arithmetic], tuple[Recorder, CheckResult]],
    model: nn.Module,
) -> tuple[Recorder, CheckResult]:
    model_name = type(base_model(model)).__name__
    weight = base_model(model).get_output_embeddings().weight
    arithmetics = arithmetics_for(weight.device, weight.dtype)
    tried: dict[str, str] = {}
    for arithmetic in arithmetics:
        for path in paths:
            try:
                recorder, result = check(path, arithmetic)
            except _NOT_THIS_WAY as error:
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                name = path if len(arithmetics) == 1 else f"{path}, {arithmetic.name}"
                tried[name] = kind + " ".join(str(error).split())
            else:
                return recorder, replace(result, tried=tried)
    _require_finite_weights(model)  # Before the way of recording is blamed.
    if len(set(tried.values())) == 1:
        raise GradsiftError(f"{model_name}: {next(iter(tried.values()))}")
    ways = " ".join(f"[{path}] {why}" for path, why in tried.items())
    raise GradsiftError(f"{model_name}: no way of recording is exact. {ways}")


def _require_finite_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # Sharded weights are elsewhere; quantised ones are whole numbers, and their scales finite.
        if type(parameter) is nn.Parameter and not bool(parameter.isfinite().all()):
            raise GradsiftError(
                f"{type(base_model(model)).__name__}: the weight {name} holds numbers that are not "
                "finite, so no gradient is. Load it from a whole checkpoint, or in a dtype with a "
                "larger range (bfloat16 instead of float16)."
            )


def self_check(
    trainer: RecordingSFTTrainer,
    recorder: Recorder,
    token_counts: Sequence[int],
    *,
    backward: bool = True,
) -> CheckResult:
    """Compare two recorded rows, taken from one padded micro-batch, with autograd on each alone.

    Dropout is off meanwhile: two passes with different random masks have different gradients.

    Args:
        trainer: Ready to train.
        recorder: Ready to record.
        token_counts: Tokens of each instance; rows at the quartiles are taken.
        backward: Whether the embedding's part is recorded, too.

    Returns:
        The worst relative error and what was allowed.

    Raises:
        ValueError: If the two differ; nothing may be recorded then.
    """
    by_length = sorted(range(len(token_counts)), key=lambda i: (token_counts[i], i))
    rows = sorted({by_length[len(by_length) // 4], by_length[3 * len(by_length) // 4]})
    with without_dropout(trainer.model), trainer.data_collator.packing_whole():
        seen = (probe_step if backward else forward_records)(trainer, rows, recorder)

        def loss_of(index: int) -> torch.Tensor:
            row = trainer.train_dataset[index]
            input_ids_1T, labels_1T = (
                torch.tensor(row[key], device=trainer.args.device)[None]
                for key in ("input_ids", "labels")
            )
            return mean_loss(recorder.model.outer(input_ids=input_ids_1T).logits, labels_1T)

        with trainer.accelerator.autocast():
            return _compared(recorder, seen.read(), loss_of, seen.dtype)


def check_forward(
    model: TrackedModel,
    sketch: SketchSpec,
    paths: Sequence[RecordingMethod],
    args: tuple,
    kwargs: dict[str, Any],
    batch: Batch,
) -> tuple[Recorder, CheckResult]:
    """Check on a micro-batch that some training loop is about to hand to its model.

    The model is called as the loop calls it, and differentiated as far as the watched tensors only:
    parameters, their gradients and random generators stay. Up to two instances are compared with
    autograd on each alone.

    Args:
        model: The tracked modules.
        sketch: Size and seed of the sketches.
        paths: To try, in order.
        args: Positional arguments of the loop's call.
        kwargs: Keyword arguments of the loop's call.
        batch: Tokens, labels and their layout.

    Returns:
        The recorder of the first path that is exact, and what the check found.

    Raises:
        ValueError: If none is exact.
    """
    tokens = batch[2]
    chosen = _to_compare(tokens)
    if not chosen:
        raise GradsiftError(
            "no row of the first batch has a response token: a label other than -100 whose token "
            "has another one before it."
        )
    alone = _Alone(model, kwargs, batch)
    indices: Sequence[int] = range(tokens.n_rows)
    if not tokens.is_packed and alone.is_possible:
        args, kwargs, batch = alone.only(chosen, args)
        indices = chosen

    def check(path: RecordingMethod, arithmetic: Arithmetic) -> tuple[Recorder, CheckResult]:
        require_path(model, path)
        recorder = Recorder(model, sketch, method=path, arithmetic=arithmetic)
        with torch.random.fork_rng(), without_dropout(model.outer):
            with head_is_called(model.head):
                seen = forward_and_backward(recorder, indices, args, kwargs, batch)
            records = [record for record in seen.read() if record.index in chosen]
            result = _compared(recorder, records, alone.loss, seen.dtype, tokens.is_packed)
        return recorder, result

    with without_reentrant_checkpointing(model.outer), torch.enable_grad():
        recorder, result = _first_that_passes(paths, check, model.outer)
    if result.warning:
        warnings.warn(result.warning, stacklevel=2)
    return recorder, result


def _to_compare(tokens: ResponseTokens) -> list[int]:
    """Return up to two instances with a response, those that stand behind others first."""
    first_B = tokens.rows_BT[:, 0]
    with_response = tokens.n_tokens_I.nonzero().flatten().tolist()
    is_first = set(first_B.tolist())
    return sorted(sorted(with_response, key=lambda row: (row in is_first, row))[:2])


class _Alone:
    """The loss of one instance of a micro-batch, without the others."""

    def __init__(self, model: TrackedModel, kwargs: dict[str, Any], batch: Batch):
        """Nothing is computed yet.

        Args:
            model: The tracked modules.
            kwargs: Keyword arguments of the loop's call.
            batch: Tokens, labels and their layout.
        """
        self._model, self._kwargs = model, kwargs
        self._input_ids_BT, self._labels_BT, self._tokens = batch
        self._others = {
            name: value
            for name, value in kwargs.items()
            if isinstance(value, torch.Tensor) and name not in OF_TEXT
        }
        # Images are divided among the rows of a batch by the model: by its tokens, not in order.
        shape = self._labels_BT.shape
        self.is_possible = all(value.shape == shape for value in self._others.values())

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
        if not self.is_possible:
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
        not_now = ("labels", "shift_labels", "fused_lm_head", "num_items_in_batch")
        kwargs = {name: value for name, value in self._kwargs.items() if name not in not_now}
        is_other_BT = self._tokens.rows_BT != row
        labels_BT = self._labels_BT.masked_fill(is_other_BT, IGNORED_LABEL)
        labels_BT[:, 1:].masked_fill_(is_other_BT[:, :-1], IGNORED_LABEL)
        return mean_loss(self._model.outer(**kwargs).logits, labels_BT)


def _compared(
    recorder: Recorder,
    records: Sequence[Record],
    loss_of: Callable[[int], torch.Tensor],
    dtype: torch.dtype,
    is_packed: bool = False,
) -> CheckResult:
    tolerance, coupling = tolerance_for(dtype), coupling_of(recorder.model.outer)
    if coupling is not None:
        tolerance = max(tolerance, COUPLED_TOLERANCE)
    errors: dict[str, float] = {}
    for record in records:
        with torch.random.fork_rng():
            loss = functools.partial(loss_of, record.index)
            truth = autograd_summaries(recorder.model, recorder, loss)
        require_match(record, truth, tolerance, is_packed=is_packed)
        for (layer, name), error in compare(record, truth).items():
            key = f"{layer} {name}"
            errors[key] = max(error, errors.get(key, 0.0))
    name = recorder.arithmetic.name
    about = (recorder.method, name, str(dtype).removeprefix("torch."))
    worst = max(errors.values())
    return CheckResult(
        len(records), worst, tolerance, *about, errors, warning="" if coupling is None else coupling
    )
