"""The records of one session (of training or scoring), on their way to the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import torch

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.gradients.records import Record, Records
from gradsift.progress import Progress, no_progress, tell_kept
from gradsift.store.manifest import STATUS_NON_FINITE, STATUS_OK
from gradsift.store.writer import StoreWriter
from gradsift.terms import STATISTICS
from gradsift.training.batches import n_tokens_of

# Micro-batches whose records stay on the device until they are read together.
MAX_UNREAD = 32

logger = logging.getLogger(__name__)


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
        """Resume: what the store holds already is not recorded again."""
        self._instances = instances
        self._all_tokens = n_tokens_of(instances)
        self._writer = writer
        self._progress = progress
        self._added_ids = writer.recorded_ids()
        self._read_ids = set(self._added_ids)
        self._n_added = 0  # By this process, in this session.
        before = writer.manifest.about if self._added_ids else {}
        self._seconds_before = before.get("seconds", 0.0)
        self._skipped_before = before.get("n_steps_skipped", 0)
        self._started = time.perf_counter()
        self._unread: list[Records] = []
        self._read: list[Record] = []
        self._of_this_step: list[torch.Tensor] = []
        self._n_processes = len(writer.gather(None))
        self.n_skipped = 0
        self.n_non_finite = 0
        self._n_tokens = n_tokens_of([i for i in instances if i.instance_id in self._added_ids])
        if self._added_ids:
            logger.info(f"resumes: {len(self._added_ids)} of {len(instances)} rows are recorded")
        self._report(len(self._added_ids))

    def _report(self, n_rows: int) -> None:
        all_rows = len(self._instances)
        self._progress(min(n_rows, all_rows), all_rows, self._n_tokens, self._all_tokens)

    def to_do(self) -> list[int]:
        """Return the positions of the instances that are not recorded yet."""
        return [
            i for i, item in enumerate(self._instances) if item.instance_id not in self._added_ids
        ]

    def add(self, records: Records) -> None:
        """Take the records of a micro-batch."""
        for index in records.indices:
            instance = self._instances[index]
            if instance.instance_id in self._added_ids:
                if self._n_processes > 1:
                    continue  # The last batch is filled up with rows from the beginning.
                raise GradsiftError(
                    f"instance {instance.instance_id!r} came up twice in one epoch: the order of "
                    "rows differs from that of the interrupted run (other versions of transformers "
                    "or accelerate?). Capture into a new `out` folder."
                )
            self._added_ids.add(instance.instance_id)
            self._n_added += 1
            # The other processes are about as far.
            self._n_tokens += len(instance.input_ids) * self._n_processes
        self._unread.append(records)
        self._of_this_step.append(records.finite_B())
        if len(self._unread) >= MAX_UNREAD:
            self._read_all()
        several = self._n_processes > 1
        self._report(self._n_added * self._n_processes if several else len(self._added_ids))

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
                if instance_id in self._read_ids:
                    continue
                self._read_ids.add(instance_id)
                self.n_non_finite += not record.finite
                self._read.append(record)
        self._unread = []

    def flush(
        self, step: int, about: Mapping[str, object] | None = None, *, complete: bool = False
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
        tell_kept(self._progress)
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
