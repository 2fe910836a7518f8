"""The scoring pass: what a model that does not change says of each instance of the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradsift.data.instances import Instance
from gradsift.gradients.recorder import Recorder
from gradsift.store.writer import StoreWriter
from gradsift.training.dropout import without_dropout
from gradsift.training.probe import forward_records, probe_step
from gradsift.training.sft import RecordingSFTTrainer, as_dataset
from gradsift.training.sharding import plain_backward
from gradsift.training.sitting import Sitting

N_PARTS = 8


def score(
    trainer: RecordingSFTTrainer,
    recorder: Recorder,
    instances: Sequence[Instance],
    writer: StoreWriter,
    *,
    backward: bool,
    on_progress: Callable[[int, int], None],
) -> int:
    """Record every instance with the weights as they are; what is in the store is skipped.

    Dropout is off. Rows of about the same length go together, as little is padded then.

    Args:
        trainer: Its model, device, precision and batch size are used.
        recorder: Of the same model.
        instances: The whole pool.
        writer: An open store.
        backward: With a backward pass both layers are recorded, without only the LM head.
        on_progress: Called with instances and tokens done so far.

    Returns:
        Instances whose gradient was not finite, in this sitting.
    """
    sitting = Sitting(instances, writer, on_progress)
    take = probe_step if backward else forward_records
    dataset, step = as_dataset(instances), trainer.state.global_step
    to_do = sorted(sitting.to_do(), key=lambda i: (len(instances[i].input_ids), i))
    batch_size = trainer.args.per_device_train_batch_size
    world = trainer.args.world_size
    # All processes write as many parts, so each part of the work is divided among them.
    part_size = max(batch_size * world, -(-len(to_do) // N_PARTS))
    with without_dropout(trainer.model), plain_backward(trainer.accelerator, trainer.model):
        for start in range(0, len(to_do), part_size):
            part = to_do[start : start + part_size]
            mine = part[trainer.args.process_index :: world]
            for at in range(0, -(-len(part) // world), batch_size):
                rows = mine[at : at + batch_size]
                # All processes make as many passes: weights may be divided among them.
                records = take(trainer, rows or part[:1], recorder, dataset)
                if rows:
                    sitting.add(records)
            sitting.flush(step)
    sitting.flush(step, complete=True)
    return sitting.n_non_finite
