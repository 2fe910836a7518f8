"""Before a run: is what would be recorded what autograd gives, and which recording method is?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

from gradsift.errors import GradsiftError
from gradsift.gradients.backends import Backend, backends_for
from gradsift.gradients.check import (
    CheckResult,
    autograd_summaries,
    relative_errors,
    require_match,
    tolerance_for,
)
from gradsift.gradients.instance_loss import mean_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record
from gradsift.gradients.sketch import SketchSpec
from gradsift.terms import CaptureMethod, LoopMethod, RecordingMethod
from gradsift.training.layers import base_model, require_method, track, without_dropout
from gradsift.training.quantized import coupling_of
from gradsift.training.trainer import RecordingSFTTrainer
from gradsift.wording import one_line

METHODS: tuple[RecordingMethod, ...] = get_args(CaptureMethod)
LOOP_METHODS: tuple[RecordingMethod, ...] = get_args(LoopMethod)
# Of rows that the model itself makes depend on their neighbours, by some percent.
COUPLED_TOLERANCE = 0.1
# A method that does not fit a model fails in whatever manner the model's code fails.
_DOES_NOT_FIT = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError)


def recorder_for(
    trainer: RecordingSFTTrainer,
    method: RecordingMethod,
    sketch: SketchSpec,
    backend: Backend | None = None,
) -> Recorder:
    """Set a trainer to one recording method; its loss is computed accordingly from now on."""
    require_method(track(trainer.model), method)
    trainer.use_fused_head(method.startswith("fused"))
    tracked = track(trainer.model, trainer.fused)
    return Recorder(tracked, sketch, method=method, backend=backend)


def first_exact_method(
    trainer: RecordingSFTTrainer,
    sketch: SketchSpec,
    *,
    method: str = "auto",
    backward: bool = True,
) -> tuple[Recorder, CheckResult]:
    """Take the cheapest recording method that equals autograd on this model, or the given one.

    Without `backward` only the head's part is recorded, and compared.
    """

    def check(method: RecordingMethod, backend: Backend) -> tuple[Recorder, CheckResult]:
        recorder = recorder_for(trainer, method, sketch, backend)
        return recorder, self_check(trainer, recorder, backward=backward)

    return first_that_passes(methods_of(method, METHODS), check, trainer.model)


def methods_of(method: str, methods: Sequence[RecordingMethod]) -> Sequence[RecordingMethod]:
    """Return the methods to try, in order: the given one, or all for "auto"."""
    if method != "auto" and method not in methods:
        raise GradsiftError(f"`recording` is {method!r}, expected auto, {', '.join(methods)}.")
    return methods if method == "auto" else (method,)


def first_that_passes(
    methods: Sequence[RecordingMethod],
    check: Callable[[RecordingMethod, Backend], tuple[Recorder, CheckResult]],
    model: nn.Module,
) -> tuple[Recorder, CheckResult]:
    """Return what a check gives for the first method and backend that pass it."""
    model_name = type(base_model(model)).__name__
    weight = base_model(model).get_output_embeddings().weight
    backends = backends_for(weight.device, weight.dtype)
    failures: dict[str, str] = {}
    for backend in backends:
        for method in methods:
            try:
                recorder, result = check(method, backend)
            except _DOES_NOT_FIT as error:
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                name = method if len(backends) == 1 else f"{method}, {backend.name}"
                failures[name] = kind + one_line(error)
            else:
                return recorder, replace(result, tried=failures)
    _require_finite_weights(model)  # Before the recording method is blamed.
    if len(set(failures.values())) == 1:
        raise GradsiftError(f"{model_name}: {next(iter(failures.values()))}")
    reasons = " ".join(f"[{method}] {reason}" for method, reason in failures.items())
    raise GradsiftError(f"{model_name}: no recording method is exact. {reasons}")


def _require_finite_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # Sharded weights are elsewhere; quantised ones are whole numbers, and their scales finite.
        if type(parameter) is nn.Parameter and not bool(parameter.isfinite().all()):
            raise GradsiftError(
                f"{type(base_model(model)).__name__}: the weight {name} holds numbers that are not "
                "finite, so no gradient is. Load it from a complete checkpoint, or in a dtype with "
                "a larger range (bfloat16 instead of float16)."
            )


def self_check(
    trainer: RecordingSFTTrainer, recorder: Recorder, *, backward: bool = True
) -> CheckResult:
    """Compare two recorded rows, taken from one padded micro-batch, with autograd on each alone.

    The rows are those at the quartiles of length. Dropout is off meanwhile: two passes with
    different random masks have different gradients.
    """
    lengths = trainer.lengths
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    rows = sorted({by_length[len(by_length) // 4], by_length[3 * len(by_length) // 4]})
    record = trainer.dry_run_step if backward else trainer.forward_records
    with without_dropout(trainer.model), trainer.data_collator.packing_into_one():
        records = record(rows, recorder)

        def loss_of(index: int) -> torch.Tensor:
            row = trainer.train_dataset[index]
            input_ids_1T, labels_1T = (
                torch.tensor(row[key], device=trainer.args.device)[None]
                for key in ("input_ids", "labels")
            )
            return mean_loss(recorder.model.outer(input_ids=input_ids_1T).logits, labels_1T)

        with trainer.accelerator.autocast():
            return compare_with_autograd(recorder, records.read(), loss_of, records.dtype)


def compare_with_autograd(
    recorder: Recorder,
    records: Sequence[Record],
    loss_of: Callable[[int], torch.Tensor],
    dtype: torch.dtype,
    is_packed: bool = False,
) -> CheckResult:
    """Compare records with autograd on the loss of each index; refuse what differs."""
    tolerance, coupling = tolerance_for(dtype), coupling_of(recorder.model.outer)
    if coupling is not None:
        tolerance = max(tolerance, COUPLED_TOLERANCE)
    errors: dict[str, float] = {}
    for record in records:
        with torch.random.fork_rng():
            loss = functools.partial(loss_of, record.index)
            truth = autograd_summaries(recorder.model, recorder, loss)
        require_match(record, truth, tolerance, is_packed=is_packed)
        for (layer, name), error in relative_errors(record, truth).items():
            key = f"{layer} {name}"
            errors[key] = max(error, errors.get(key, 0.0))
    return CheckResult(
        len(records),
        max(errors.values()),
        tolerance,
        recorder.method,
        recorder.backend.name,
        str(dtype).removeprefix("torch."),
        errors,
        warning=coupling or "",
    )
