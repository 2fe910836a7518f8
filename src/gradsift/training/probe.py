"""Run a step for its numbers only, and leave everything as it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from datasets import Dataset

from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.tokens import IGNORED_LABEL
from gradsift.training.sft import INDEX_COLUMN, TOKENS, RecordingSFTTrainer


def probe_step(
    trainer: RecordingSFTTrainer,
    indices: Sequence[int],
    recorder: Recorder | None,
    dataset: Dataset | None = None,
) -> Records | None:
    """Run forward and backward on some rows in the trainer's own configuration, without an update.

    Weights, random generators, gradients and the trainer's metrics are afterwards as before.

    Args:
        trainer: Ready to train.
        indices: The rows of the micro-batch.
        recorder: Attached during the step, or None to train plainly.
        dataset: Of the rows; the trainer's own if None.

    Returns:
        The records; None without a recorder.
    """
    seen: list[Records] = []
    batch = _collated(trainer, indices, dataset)
    n_items = (batch["labels"][:, 1:] != IGNORED_LABEL).sum().to(trainer.args.device)
    # Until training starts, accelerate has not wrapped the model's forward in autocast.
    with torch.random.fork_rng(), trainer.accelerator.autocast(), recorder or nullcontext():
        if recorder is not None:
            trainer.record_with(recorder, seen.append)
        trainer.is_probing = True
        try:
            trainer.training_step(trainer.model, batch, n_items)
        finally:
            trainer.is_probing = False
            trainer.stop_recording()
            trainer.model.zero_grad(set_to_none=True)
            trainer.forget_metrics()
    return seen[0] if seen else None


def forward_records(
    trainer: RecordingSFTTrainer,
    indices: Sequence[int],
    recorder: Recorder,
    dataset: Dataset | None = None,
) -> Records:
    """Record the LM head's part of some rows by a forward pass alone.

    Args:
        trainer: Its model, device, precision and batching are used.
        indices: The rows.
        recorder: Of the same model.
        dataset: Of the rows; the trainer's own if None.

    Returns:
        The records, without an embedding part.
    """
    batch = trainer._prepare_inputs(_collated(trainer, indices, dataset))
    indices = batch.pop(INDEX_COLUMN)  # In the order in which they were packed.
    labels_BT, tokens = batch.pop("labels"), batch.pop(TOKENS)
    fused = {} if trainer.fused is None else {"response_tokens": tokens}
    step = trainer.state.global_step
    with torch.no_grad(), trainer.accelerator.autocast(), recorder:
        recorder.begin(indices, step, batch["input_ids"], labels_BT, tokens)
        trainer.model(**batch, **fused)
        return recorder.finish(backward=False)


def _collated(
    trainer: RecordingSFTTrainer, indices: Sequence[int], dataset: Dataset | None
) -> dict[str, torch.Tensor]:
    dataset = trainer.train_dataset if dataset is None else dataset
    return trainer.data_collator([dataset[i] for i in indices])
