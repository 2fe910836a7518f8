"""The records of one session (of training or scoring), on their way to the store."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Record, Records
from gradsift.progress import Progress, no_progress
from gradsift.store.manifest import STATUS_NON_FINITE, STATUS_OK
from gradsift.store.writer import StoreWriter
from gradsift.terms import STATISTICS
from gradsift.training.layers import without_dropout
from gradsift.training.sharding import plain_backward
from gradsift.training.trainer import RecordingSFTTrainer, as_dataset, n_tokens_of

# Micro-batches whose records stay on the device until they are read together.
MAX_UNREAD = 32
N_SCORING_PARTS = 8


class RecordWriter:
    """Collects records, counts them, and writes them as parts.

    Records are read from the device some micro-batches later, so that training need not wait.

    Attributes:
        n_non_finite: Instances whose gradient was not finite, in this session; of those read.
        n_skipped: Optimizer updates left out because of them, in this session.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        writer: StoreWriter,
        progress: Progress = no_progress,
    ):
        """Take up what the store holds already."""
        self._instances = instances
        self._all_tokens = n_tokens_of(instances)
        self._writer = writer
        self._progress = progress
        self._seen = writer.recorded_ids()
        self._recorded = set(self._seen)
        self._n_own = 0  # Instances that this process saw, in this session.
        before = writer.manifest.about if self._seen else {}
        self._seconds_before = before.get("seconds", 0.0)
        self._skipped_before = before.get("n_steps_skipped", 0)
        self._started = time.perf_counter()
        self._unread: list[Records] = []
        self._read: list[Record] = []
        self._of_this_step: list[torch.Tensor] = []
        self._n_processes = len(writer.gather(None))
        self.n_skipped = 0
        self.n_non_finite = 0
        self._n_tokens = n_tokens_of([i for i in instances if i.instance_id in self._seen])
        self._report(len(self._seen))

    def _report(self, n_rows: int) -> None:
        all_rows = len(self._instances)
        self._progress(min(n_rows, all_rows), all_rows, self._n_tokens, self._all_tokens)

    def to_do(self) -> list[int]:
        """Return the positions of the instances that are not recorded yet."""
        return [i for i, item in enumerate(self._instances) if item.instance_id not in self._seen]

    def add(self, records: Records) -> None:
        """Take the records of a micro-batch."""
        for index in records.indices:
            instance = self._instances[index]
            if instance.instance_id in self._seen:
                if self._n_processes > 1:
                    continue  # The last batch is filled up with rows from the beginning.
                raise GradsiftError(
                    f"instance {instance.instance_id!r} came up twice in one epoch: the order of "
                    "rows differs from that of the interrupted run (other versions of transformers "
                    "or accelerate?). Capture into a new `out` folder."
                )
            self._seen.add(instance.instance_id)
            self._n_own += 1
            # The other processes are about as far.
            self._n_tokens += len(instance.input_ids) * self._n_processes
        self._unread.append(records)
        self._of_this_step.append(records.finite_B())
        if len(self._unread) >= MAX_UNREAD:
            self._read_all()
        several = self._n_processes > 1
        self._report(self._n_own * self._n_processes if several else len(self._seen))

    def step_is_finite(self) -> bool:
        """Return whether the step that ends now was finite in all processes; the next begins.

        Waits for the device, which transformers has just done to look at the step's loss.
        """
        finite_B = torch.cat(self._of_this_step) if self._of_this_step else torch.ones(1)
        self._of_this_step = []
        finite = all(self._writer.gather(bool(finite_B.all())))
        self.n_skipped += not finite
        return finite

    def _read_all(self) -> None:
        for records in self._unread:
            for record in records.read():
                instance_id = self._instances[record.index].instance_id
                if instance_id in self._recorded:
                    continue
                self._recorded.add(instance_id)
                self.n_non_finite += not record.finite
                self._read.append(record)
        self._unread = []

    def flush(
        self, step: int, about: dict[str, object] | None = None, *, complete: bool = False
    ) -> None:
        """Write what was collected as a part."""
        self._read_all()
        rows = []
        for record in self._read:
            rows += store_rows(record, self._instances[record.index].instance_id)
        seconds = self._seconds_before + time.perf_counter() - self._started
        skipped = self._skipped_before + self.n_skipped
        about = {"seconds": seconds, "n_steps_skipped": skipped, **(about or {})}
        self._writer.append(rows, last_step=step, about=about, complete=complete)
        self._read = []
        self._of_this_step = []


def store_rows(record: Record, instance_id: str) -> list[dict[str, object]]:
    """Turn a record into rows of the store, one for each recorded layer."""
    shared = {
        "instance_id": instance_id,
        "step": record.step,
        "loss": record.loss,
        "el2n": record.el2n,
        "n_response_tokens": record.n_response_tokens,
        "status": STATUS_OK if record.finite else STATUS_NON_FINITE,
    }
    rows = []
    for layer in record.layers:
        summary = getattr(record, layer)
        values = dict(zip(STATISTICS, summary.values_S.tolist(), strict=True))
        content = record.content_D.numpy() if layer == "lm_head" else None
        sketch = summary.sketch_K.numpy()
        rows.append(
            {**shared, **values, "layer": layer, "content_features": content, "sketch": sketch}
        )
    return rows


def score(
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
    # All processes write as many parts, so each part of the work is divided among them.
    part_size = max(batch_size * world, -(-len(to_do) // N_SCORING_PARTS))
    with without_dropout(trainer.model), plain_backward(trainer.accelerator, trainer.model):
        for start in range(0, len(to_do), part_size):
            part = to_do[start : start + part_size]
            own = part[trainer.args.process_index :: world]
            for at in range(0, -(-len(part) // world), batch_size):
                rows = own[at : at + batch_size]
                # All processes make as many passes: weights may be divided among them.
                records = record(rows or part[:1], recorder, dataset)
                if rows:
                    record_writer.add(records)
            record_writer.flush(step)
    record_writer.flush(step, complete=True)
    return record_writer.n_non_finite
