"""Record a pool in a scoring pass: the gradients of every row at the same, frozen weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    about: Mapping[str, object] | None = None,
    progress: Progress = no_progress,
) -> int:
    """Record every instance with the weights as they are; what is in the store is skipped.

    Dropout is off. Rows of about the same length go together, as little is padded then. Which rows
    make a part and a batch depends on the whole pool alone, so that a resumed pass records bitwise
    what an uninterrupted one does. `about` goes into the manifest. Returns the instances whose
    gradient was not finite, in this session.
    """
    writer.drop_damaged()
    record_writer = RecordWriter(instances, writer, progress)
    record = trainer.dry_run_step if backward else trainer.forward_records
    dataset, step = as_dataset(instances), trainer.state.global_step
    order = sorted(range(len(instances)), key=lambda i: (len(instances[i].input_ids), i))
    to_do = set(record_writer.to_do())
    batch_size = trainer.args.per_device_train_batch_size
    world = trainer.args.world_size
    # All processes write as many parts, so each part of the work is split among them.
    part_size = max(batch_size * world, -(-len(order) // N_SCORING_PARTS))
    with without_dropout(trainer.model), plain_backward(trainer.accelerator, trainer.model):
        for start in range(0, len(order), part_size):
            # All or nothing, unless it was begun by an earlier gradsift or by more processes.
            part = [i for i in order[start : start + part_size] if i in to_do]
            if not part:
                continue
            of_this_process = part[trainer.args.process_index :: world]
            for at in range(0, -(-len(part) // world), batch_size):
                rows = of_this_process[at : at + batch_size]
                # All processes make as many passes: weights may be sharded.
                records = record(rows or part[:1], recorder, dataset)
                if rows:
                    record_writer.add(records)
            record_writer.flush(step)
    record_writer.flush(step, about, complete=True)
    return record_writer.n_non_finite
