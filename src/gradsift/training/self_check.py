"""Before a run: is what would be recorded what autograd gives, and which way of recording is?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from gradsift.gradients.check import (
    CheckResult,
    autograd_summaries,
    compare,
    require_match,
    tolerance_for,
)
from gradsift.gradients.fused import IGNORED_LABEL
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record, RecordingPath, SketchSpec, TrackedModel
from gradsift.training.probe import forward_records, probe_step, without_dropout
from gradsift.training.sft import RecordingSFTTrainer, summed_loss
from gradsift.training.tracking import base_model, track

# From the cheapest to the one that makes the fewest assumptions.
PATHS: tuple[RecordingPath, ...] = ("fused", "fused-intercepted", "hooked", "intercepted")
# A way that does not fit a model fails in whatever manner the model's code fails.
_NOT_THIS_WAY = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError)


def recorder_for(trainer: RecordingSFTTrainer, path: RecordingPath, sketch: SketchSpec) -> Recorder:
    """Set a trainer to one way of recording.

    Args:
        trainer: Ready to train; its loss is computed accordingly from now on.
        path: The way.
        sketch: Size and seed of the sketches.

    Returns:
        The recorder.
    """
    trainer.use_fused_head(path.startswith("fused"))
    tracked = track(trainer.model, trainer.fused)
    return Recorder(tracked, sketch, intercept=path.endswith("intercepted"))


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

    def check(path: RecordingPath) -> tuple[Recorder, CheckResult]:
        recorder = recorder_for(trainer, path, sketch)
        return recorder, self_check(trainer, recorder, token_counts, backward=backward)

    name = type(base_model(trainer.model)).__name__
    return _first_that_passes(PATHS if wanted == "auto" else (wanted,), check, name)


def _first_that_passes(
    paths: Sequence[RecordingPath],
    check: Callable[[RecordingPath], tuple[Recorder, CheckResult]],
    model_name: str,
) -> tuple[Recorder, CheckResult]:
    unknown = [path for path in paths if path not in PATHS]
    if unknown:
        raise ValueError(f"recording is {unknown[0]!r}, expected auto, {', '.join(PATHS)}.")
    tried: dict[str, str] = {}
    for path in paths:
        try:
            recorder, result = check(path)
        except _NOT_THIS_WAY as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            tried[path] = kind + " ".join(str(error).split())
        else:
            return recorder, replace(result, tried=tried)
    if len(set(tried.values())) == 1:
        raise ValueError(f"{model_name}: {next(iter(tried.values()))}")
    ways = " ".join(f"[{path}] {why}" for path, why in tried.items())
    raise ValueError(f"{model_name}: no way of recording is exact. {ways}")


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
    tolerance = _tolerance(trainer)
    with without_dropout(trainer.model):
        records = (probe_step if backward else forward_records)(trainer, rows, recorder)
        tokens = []
        for record in records:
            row = trainer.train_dataset[record.index]
            pair = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
            tokens.append(tuple(tensor.to(trainer.args.device) for tensor in pair))
        with trainer.accelerator.autocast():
            return _compared(recorder, records, tokens, tolerance)


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
    rows = [row for row in range(len(labels_BT)) if (labels_BT[row, 1:] != IGNORED_LABEL).any()][:2]

    def of_rows(value: object) -> object:
        batched = isinstance(value, torch.Tensor) and value.dim() > 0
        return value[rows] if batched and len(value) == len(labels_BT) else value

    def check(path: RecordingPath) -> tuple[Recorder, CheckResult]:
        recorder = Recorder(model, sketch, intercept=path == "intercepted")
        with torch.random.fork_rng(), without_dropout(model.outer), torch.enable_grad():
            with recorder:
                recorder.begin(rows, 0, *(of_rows(t) for t in (input_ids_BT, labels_BT, mask_BT)))
                output = model.outer(
                    *(of_rows(value) for value in args),
                    **{name: of_rows(value) for name, value in kwargs.items()},
                )
                loss = _some_loss(output, labels_BT[rows])
                torch.autograd.grad(loss, recorder.watched_tensors(), allow_unused=True)
                records = recorder.finish()
            tokens = [(input_ids_BT[row], labels_BT[row]) for row in rows]
            tokens = [
                tuple(tensor[mask_BT[row] > 0] for tensor in pair)
                for row, pair in zip(rows, tokens, strict=True)
            ]
            tolerance = tolerance_for(model.head.weight.dtype)
            if torch.is_autocast_enabled(input_ids_BT.device.type):
                tolerance = tolerance_for(torch.bfloat16)
            return recorder, _compared(recorder, records, tokens, tolerance)

    return _first_that_passes(paths, check, type(base_model(model.outer)).__name__)


def _some_loss(output: Any, labels_BT: torch.Tensor) -> torch.Tensor:
    loss, log_probs = (getattr(output, name, None) for name in ("loss", "log_probs"))
    if log_probs is not None:
        return -log_probs.sum()
    return summed_loss(output.logits, labels_BT) if loss is None else loss


def _compared(
    recorder: Recorder,
    records: Sequence[Record],
    tokens: Sequence[tuple[torch.Tensor, torch.Tensor]],
    tolerance: float,
) -> CheckResult:
    errors: dict[str, float] = {}
    for record, pair in zip(records, tokens, strict=True):
        with torch.random.fork_rng():
            truth = autograd_summaries(recorder.model, recorder, *pair)
        require_match(record, truth, tolerance)
        for (layer, name), error in compare(record, truth).items():
            key = f"{layer} {name}"
            errors[key] = max(error, errors.get(key, 0.0))
    return CheckResult(len(records), max(errors.values()), tolerance, recorder.path, errors)


def _tolerance(trainer: RecordingSFTTrainer) -> float:
    if trainer.args.bf16 or trainer.args.fp16:
        return tolerance_for(torch.bfloat16)
    return tolerance_for(trainer.model.dtype)
