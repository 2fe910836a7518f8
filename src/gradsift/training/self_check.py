"""Before a run: is what would be recorded what autograd gives, and which way of recording is?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradsift.gradients.arithmetic import Arithmetic, arithmetics_for
from gradsift.gradients.check import (
    CheckResult,
    autograd_summaries,
    compare,
    require_match,
    tolerance_for,
)
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record, RecordingPath, TrackedModel
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.training.plain_loss import forward_and_backward, without_reentrant_checkpointing
from gradsift.training.probe import forward_records, probe_step, without_dropout
from gradsift.training.quantized import coupling_of
from gradsift.training.sft import RecordingSFTTrainer
from gradsift.training.tracking import base_model, head_is_called, require_path, track

# From the cheapest to the one that makes the fewest assumptions.
PATHS: tuple[RecordingPath, ...] = ("fused", "fused-intercepted", "hooked", "intercepted")
# Of rows that the model itself makes depend on their neighbours, by some percent.
COUPLED_TOLERANCE = 0.1
# A way that does not fit a model fails in whatever manner the model's code fails.
_NOT_THIS_WAY = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError)


def recorder_for(
    trainer: RecordingSFTTrainer,
    path: RecordingPath,
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
    intercept = path.endswith("intercepted")
    return Recorder(tracked, sketch, intercept=intercept, arithmetic=arithmetic)


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

    def check(path: RecordingPath, arithmetic: Arithmetic) -> tuple[Recorder, CheckResult]:
        recorder = recorder_for(trainer, path, sketch, arithmetic)
        return recorder, self_check(trainer, recorder, token_counts, backward=backward)

    return _first_that_passes(PATHS if wanted == "auto" else (wanted,), check, trainer.model)


def _first_that_passes(
    paths: Sequence[RecordingPath],
    check: Callable[[RecordingPath, Arithmetic], tuple[Recorder, CheckResult]],
    model: nn.Module,
) -> tuple[Recorder, CheckResult]:
    unknown = [path for path in paths if path not in PATHS]
    if unknown:
        raise ValueError(f"recording is {unknown[0]!r}, expected auto, {', '.join(PATHS)}.")
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
        raise ValueError(f"{model_name}: {next(iter(tried.values()))}")
    ways = " ".join(f"[{path}] {why}" for path, why in tried.items())
    raise ValueError(f"{model_name}: no way of recording is exact. {ways}")


def _require_finite_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # Sharded weights are elsewhere; quantised ones are whole numbers, and their scales finite.
        if type(parameter) is nn.Parameter and not bool(parameter.isfinite().all()):
            raise ValueError(
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
    with without_dropout(trainer.model):
        seen = (probe_step if backward else forward_records)(trainer, rows, recorder)
        records, tokens = seen.read(), []
        for record in records:
            row = trainer.train_dataset[record.index]
            pair = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
            tokens.append(tuple(tensor.to(trainer.args.device) for tensor in pair))
        with trainer.accelerator.autocast():
            return _compared(recorder, records, tokens, seen.dtype)


def check_forward(
    model: TrackedModel,
    sketch: SketchSpec,
    paths: Sequence[RecordingPath],
    args: tuple,
    kwargs: dict[str, Any],
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> tuple[Recorder, CheckResult]:
    """Check on a micro-batch that some training loop is about to hand to its model.

    The model is called as the loop calls it, on up to two rows, and its loss is differentiated as
    far as the watched tensors only: parameters, their gradients and random generators stay.

    Args:
        model: The tracked modules.
        sketch: Size and seed of the sketches.
        paths: To try, in order.
        args: Positional arguments of the loop's call.
        kwargs: Keyword arguments of the loop's call.
        input_ids_BT: The tokens.
        labels_BT: The same where a token belongs to the response, else -100.
        mask_BT: 0 on padding.

    Returns:
        The recorder of the first path that is exact, and what the check found.

    Raises:
        ValueError: If none is exact.
    """
    tokens = ResponseTokens.packed(labels_BT, mask_BT)
    rows = [row for row, length in enumerate(tokens.lengths) if length][:2]
    if not rows:
        raise ValueError(
            "no row of the first batch has a response token: a label other than -100 whose token "
            "has another one before it."
        )

    def of_rows(value: object) -> object:
        batched = isinstance(value, torch.Tensor) and value.dim() > 0
        return value[rows] if batched and len(value) == len(labels_BT) else value

    batch = [of_rows(tensor) for tensor in (input_ids_BT, labels_BT, mask_BT)]
    args, kwargs = [of_rows(v) for v in args], {k: of_rows(v) for k, v in kwargs.items()}
    pairs = []
    for input_ids_T, labels_T, mask_T in zip(*batch, strict=True):
        pairs.append((input_ids_T[mask_T > 0], labels_T[mask_T > 0]))

    def check(path: RecordingPath, arithmetic: Arithmetic) -> tuple[Recorder, CheckResult]:
        require_path(model, path)
        intercept = path == "intercepted"
        recorder = Recorder(model, sketch, intercept=intercept, arithmetic=arithmetic)
        with torch.random.fork_rng(), without_dropout(model.outer):
            with head_is_called(model.head):
                seen = forward_and_backward(recorder, rows, args, kwargs, batch)
            return recorder, _compared(recorder, seen.read(), pairs, seen.dtype)

    with without_reentrant_checkpointing(model.outer), torch.enable_grad():
        recorder, result = _first_that_passes(paths, check, model.outer)
    if result.warning:
        warnings.warn(result.warning, stacklevel=2)
    return recorder, result


def _compared(
    recorder: Recorder,
    records: Sequence[Record],
    tokens: Sequence[tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
) -> CheckResult:
    tolerance, coupling = tolerance_for(dtype), coupling_of(recorder.model.outer)
    if coupling is not None:
        tolerance = max(tolerance, COUPLED_TOLERANCE)
    errors: dict[str, float] = {}
    for record, pair in zip(records, tokens, strict=True):
        with torch.random.fork_rng():
            truth = autograd_summaries(recorder.model, recorder, *pair)
        require_match(record, truth, tolerance)
        for (layer, name), error in compare(record, truth).items():
            key = f"{layer} {name}"
            errors[key] = max(error, errors.get(key, 0.0))
    name = recorder.arithmetic.name
    about = (recorder.path, name, str(dtype).removeprefix("torch."))
    worst = max(errors.values())
    return CheckResult(
        len(records), worst, tolerance, *about, errors, warning="" if coupling is None else coupling
    )
