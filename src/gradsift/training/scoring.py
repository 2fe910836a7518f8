"""Record a pool in a scoring pass: the gradients of every row at the same, frozen weights."""

from __future__ import annotations

from collections.abc import Sequence

from gradsift.data.tokenization import Instance
from gradsift.gradients.recorder import Recorder
from gradsift.progress import Progress, no_progress
from gradsift.store.writer import StoreWriter
from gradsift.training.batches import as_dataset
from gradsift.training.layers import without_dropout
from gradsift.training.record_writer import RecordWriter
from gradsift.training.sharding import plain_backward
from gradsift.training.trainer import RecordingSFTTrainer

N_SCORING_PARTS = 8


def record_with_frozen_weights(
    trainer: RecordingSFTTrainer,
    recorder: Recorder,
    instances: Sequence[Instance],
    writer: StoreWriter,
    *,
    backward: bool,
    progress: Progress = no_progress,
) -> int:
    """Record every instance with the weights as they are; what is in the store is skipped.

    Dropout is off. Rows of about the same length go together, as little is padded then. Returns
    the instances whose gradient was not finite, in this session.
    """
    record_writer = RecordWriter(instances, writer, progress)
    record = trainer.dry_run_step if backward else trainer.forward_records
    dataset, step = as_dataset(instances), trainer.state.global_step
    to_do = sorted(record_writer.to_do(), key=lambda i: (len(instances[i].input_ids), i))
    batch_size = trainer.args.per_device_train_batch_size
    world = trainer.args.world_size
    # All processes write as many parts, so each part of the work is split among them.
    part_size = max(batch_size * world, -(-len(to_do) // N_SCORING_PARTS))
    with without_dropout(trainer.model), plain_backward(trainer.accelerator, trainer.model):
        for start in range(0, len(to_do), part_size):
            part = to_do[start : start + part_size]
            of_this_process = part[trainer.args.process_index :: world]
            for at in range(0, -(-len(part) // world), batch_size):
                rows = of_this_process[at : at + batch_size]
                # All processes make as many passes: weights may be sharded.
                records = record(rows or part[:1], recorder, dataset)
                if rows:
                    record_writer.add(records)
            record_writer.flush(step)
    record_writer.flush(step, complete=True)
    return record_writer.n_non_finite
