"""The records of a training loop that is not ours, on their way to the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed
from torch import nn

from gradsift.data.example import DROP_REASONS, NOT_RECORDED
from gradsift.data.pool import Pool, PoolRow
from gradsift.errors import GradsiftError
from gradsift.files import GOES_ON
from gradsift.gradients.check import CheckResult
from gradsift.gradients.records import Records
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import TrackedModel, shape_of
from gradsift.provenance import (
    about_pool,
    about_stack,
    dropped_row,
    instance_row,
    save_pool,
    signed,
)
from gradsift.recording.loop_batch import LoopBatch
from gradsift.recording.row_names import ByColumn, ByContent, RowNames
from gradsift.seals import short_sha256
from gradsift.store.manifest import Manifest, load_manifest
from gradsift.store.writer import StoreWriter
from gradsift.training.layers import base_model
from gradsift.training.record_writer import store_rows

FLUSH_EVERY = 256  # Micro-batches.
# Micro-batches whose records stay on the device until they are read together.
MAX_UNREAD = 16


class LoopRecordWriter:
    """Names the rows of a loop's micro-batches, and writes the first finite record of each.

    Attributes:
        names: Names the rows; None until the trainer is known whose rows are a pool's.
        check: What the self-check found; None before it.
        n_batches: Micro-batches so far.
        n_repeated: Rows that came up again, and were not recorded again.
        n_without_response: Rows without any label, which have no gradient of their own.
        n_unknown: Rows that are not in the pool.
    """

    def __init__(self, out: Path, ids: str | None, pool: Pool | None):
        """Nothing is written before `open`."""
        # Resolved: below it nothing is written through links.
        self._out, self._pool = out.resolve(), pool
        self.names: RowNames | None = None
        if ids is not None:
            self.names = ByColumn(ids, pool)
        elif pool is None:
            self.names = ByContent()
        self.check: CheckResult | None = None
        self.n_batches = self.n_repeated = self.n_without_response = self.n_unknown = 0
        self._n_tokens: dict[str, int] = {}
        self._unread: list[tuple[Records, LoopBatch]] = []
        self._unwritten: list[dict[str, object]] = []
        self._not_finite: dict[str, tuple[int, list[dict[str, object]]]] = {}

    def open(self, model: TrackedModel, sketch: SketchSpec) -> None:
        """Lock the run folder; refuse one that holds another store, or records of a loop."""
        several = _several_processes()
        existing = load_manifest(self._out)
        if existing is not None and "loop" not in existing.identity:
            raise GradsiftError(f"{self._out}: holds a capture; give another `out` folder.")
        self._store = StoreWriter(
            self._out,
            Manifest(_identity(model.outer, sketch), self._about(model.outer), None),
            content_width=shape_of(model.head.weight)[1],
            sketch_size=sketch.size,
            rank=torch.distributed.get_rank() if several else 0,
            gather=_gather if several else lambda value: [value],
        )
        try:
            self._store.__enter__()
        except GradsiftError as error:
            if not str(error).endswith(GOES_ON):
                raise
            advice = "Give an `out` that can be written to."
            raise GradsiftError(str(error).removesuffix(GOES_ON) + advice) from error
        if self._store.manifest.parts:
            self.close()
            raise GradsiftError(
                f"{self._out}: records of another loop are here, and a loop of your own cannot be "
                "resumed by gradsift. Use another folder, or remove this one."
            )

    def close(self) -> None:
        """Release the run folder."""
        self._store.__exit__(None, None, None)

    def add(self, records: Records, batch: LoopBatch) -> None:
        """Take the records of a micro-batch; they are read later."""
        self._unread.append((records, batch))
        self.n_batches += 1

    def skip(self, batch: LoopBatch) -> None:
        """Count a micro-batch without labels, as all processes write after as many."""
        self.n_without_response += batch.tokens.n_rows
        self.n_batches += 1

    def keep_up(self, step: int) -> None:
        """Read or write what has gathered; all processes write after as many micro-batches."""
        if self.n_batches and self.n_batches % FLUSH_EVERY == 0:
            self._flush(step)
        elif len(self._unread) >= MAX_UNREAD:
            self._read()

    def save_what_is_left(self, step: int) -> None:
        """Write what can be written after an error of the loop's own."""
        if _several_processes():
            return  # Other processes may never come to it.
        with suppress(GradsiftError):  # The loop's own error is on its way already.
            self._read()
        if self._unwritten:
            self._flush(step)

    def complete(self, step: int, loss_curve: Sequence[tuple[int, float]] | None) -> None:
        """Write the rest, rows that never were finite included, and the table of the pool.

        `loss_curve` is (step, loss) as a trainer logged them; None without a trainer.
        """
        self._read()
        for instance_id, (n_tokens, rows) in self._not_finite.items():
            self._n_tokens[instance_id] = n_tokens
            self._unwritten += rows
        if not any(self._store.gather(bool(self._n_tokens))):
            raise GradsiftError(
                f"nothing was recorded: none of the {self.n_unknown} rows that were trained on is "
                "one of the pool, or fits only one of its rows."
                if self.n_unknown
                else "nothing was recorded: no backward pass of this model was seen."
            )
        more: dict[str, object] = {} if loss_curve is None else {"loss_curve": loss_curve}
        if self._pool is not None:
            gathered = self._store.gather(self._n_tokens)
            n_tokens = {key: n for counts in gathered for key, n in counts.items()}
            if self._store.rank == 0:
                rows = [_pool_row(row, n_tokens) for row in self._pool.rows]
                save_pool(self._out, self._pool, rows)
                about = signed(self._store.manifest, rows).about
                more = {key: about[key] for key in ("pool_sha256", "signed")}
        self._flush(step, more, complete=True)

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for records, batch in unread:
            self._take(records, batch)

    def _take(self, records: Records, batch: LoopBatch) -> None:
        batch.require_no_numbers()
        tokens, labels = batch.split()
        ids = self.names.lookup(batch.ids, tokens, labels)
        read = records.read()
        # What is left over at the end of a packed row is no row.
        self.n_without_response += sum(len(row) > 1 for row in tokens) - len(read)
        for record in read:
            instance_id, n_tokens = ids[record.index], len(tokens[record.index])
            if instance_id is None:
                self.n_unknown += 1
            elif instance_id in self._n_tokens:
                self.n_repeated += 1
            elif record.finite:
                self._not_finite.pop(instance_id, None)
                self._n_tokens[instance_id] = n_tokens
                self._unwritten += store_rows(record, instance_id)
            else:  # A loss scaler begins with overflows: the row comes again.
                rows = store_rows(record, instance_id)
                self._not_finite.setdefault(instance_id, (n_tokens, rows))

    def _flush(
        self, step: int, more: Mapping[str, object] | None = None, *, complete: bool = False
    ) -> None:
        self._read()
        about = {
            "self_check": None if self.check is None else asdict(self.check),
            "n_repeated": self.n_repeated,
            "n_unknown": self.n_unknown,
            **(more or {}),
        }
        self._store.append(self._unwritten, last_step=step, about=about, complete=complete)
        self._unwritten = []

    def _about(self, model: nn.Module) -> dict[str, object]:
        about = {
            **about_stack(("torch", "transformers")),
            "model": type(base_model(model)).__name__,
        }
        return about if self._pool is None else about | about_pool(self._pool, self._out)


def _identity(model: nn.Module, sketch: SketchSpec) -> dict[str, object]:
    config = model.config.to_json_string(use_diff=False)
    return {
        "loop": "own",
        "model": f"sha256 of configuration {short_sha256(config)}",
        "sketch_size": sketch.size,
        "seed": sketch.seed,
    }


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _pool_row(row: PoolRow, n_tokens: dict[str, int]) -> dict[str, object]:
    if row.instance_id in n_tokens:
        return instance_row(
            row, n_tokens=n_tokens[row.instance_id], n_response_tokens=None, truncated=None
        )
    detail = row.detail or DROP_REASONS[NOT_RECORDED]
    return dropped_row(row, row.reason or NOT_RECORDED, detail)
