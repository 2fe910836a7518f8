"""Run a training step for its numbers only, and leave everything as it was."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from gradsift.gradients.check import CheckResult, autograd_summaries, require_match, tolerance_for
from gradsift.gradients.recorder import Record, Recorder
from gradsift.training.sft import RecordingSFTTrainer


def probe_step(
    trainer: RecordingSFTTrainer, indices: Sequence[int], recorder: Recorder | None
) -> list[Record]:
    """Run forward and backward on some rows in the trainer's own configuration, without an update.

    Weights, random generators, gradients and the trainer's metrics are afterwards as before.

    Args:
        trainer: Ready to train.
        indices: The rows of the micro-batch.
        recorder: Attached during the step, or None to train plainly.

    Returns:
        The records; none without a recorder.
    """
    records: list[Record] = []
    dataset = trainer.train_dataset
    batch = trainer.data_collator([dataset[i] for i in indices])
    n_items = (batch["labels"][:, 1:] != -100).sum().to(trainer.args.device)
    # Until training starts, accelerate has not wrapped the model's forward in autocast.
    with torch.random.fork_rng(), trainer.accelerator.autocast(), recorder or nullcontext():
        if recorder is not None:
            trainer.record_with(recorder, records.extend)
        try:
            trainer.training_step(trainer.model, batch, n_items)
        finally:
            trainer.stop_recording()
            trainer.model.zero_grad(set_to_none=True)
            trainer.forget_metrics()
    return records


def self_check(
    trainer: RecordingSFTTrainer, recorder: Recorder, token_counts: Sequence[int]
) -> CheckResult:
    """Compare two recorded rows, taken from one padded micro-batch, with autograd on each alone.

    Dropout is off meanwhile: two passes with different random masks have different gradients.

    Args:
        trainer: Ready to train.
        recorder: Ready to record.
        token_counts: Tokens of each instance; rows at the quartiles are taken.

    Returns:
        The worst relative error and what was allowed.

    Raises:
        ValueError: If the two differ; nothing may be recorded then.
    """
    by_length = sorted(range(len(token_counts)), key=lambda i: (token_counts[i], i))
    rows = sorted({by_length[len(by_length) // 4], by_length[3 * len(by_length) // 4]})
    model = recorder.model
    tolerance = _tolerance(trainer)
    worst = 0.0
    with without_dropout(trainer.model):
        for record in probe_step(trainer, rows, recorder):
            row = trainer.train_dataset[record.index]
            tensors = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
            with torch.random.fork_rng(), trainer.accelerator.autocast():
                truth = autograd_summaries(
                    model, recorder, *(tensor.to(trainer.args.device) for tensor in tensors)
                )
            worst = max(worst, require_match(record, truth, tolerance))
    return CheckResult(len(rows), worst, tolerance)


def _tolerance(trainer: RecordingSFTTrainer) -> float:
    if trainer.args.bf16 or trainer.args.fp16:
        return tolerance_for(torch.bfloat16)
    return tolerance_for(trainer.model.dtype)


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
