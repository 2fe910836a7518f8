"""Record per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers import Trainer

from gradsift.data.pool import Pool, PoolRow
from gradsift.errors import GradsiftError
from gradsift.gradients.check import CheckResult, require_same_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import is_divided, shape_of
from gradsift.provenance import about_pool, about_stack, dropped_row, instance_row
from gradsift.recording.loop_batch import LoopBatch, LoopBatches
from gradsift.recording.loops import (
    engine_around,
    is_engine,
    require_recordable,
    trainer_around,
    unwrapped,
)
from gradsift.recording.plain_loss import RememberedForward
from gradsift.recording.row_names import ByColumn, ByContent, RowNames, names_by_text
from gradsift.store.manifest import Manifest
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.tables import write_pool_table
from gradsift.store.writer import StoreWriter
from gradsift.training.isolation import require_apart
from gradsift.training.layers import base_model, track
from gradsift.training.record_writer import store_rows
from gradsift.training.self_check import LOOP_PATHS, check_forward, paths_of
from gradsift.training.sharding import unchecked
from gradsift.utils import short_sha256

FLUSH_EVERY = 256  # Micro-batches.
# Micro-batches whose records stay on the device until they are read together.
UNREAD = 16
# Besides the first, micro-batches (from 0) whose backward pass is compared with the plain loss's.
COMPARED_AGAIN = (1, 3, 9, 31, 99, 315, 999, 3161, 9999)
NOT_RECORDED = "not_recorded"


class Recording:
    """Watches every forward and backward pass of a model inside a `with` block.

    The loop itself stays as it is, to the bit. Each row is recorded once: the first time it is
    trained on. Forward passes without gradients (evaluation, generation) are let through.

    Attributes:
        check: What the self-check found, on the first micro-batch; None before it. With sharded
            parameters (FSDP2, ZeRO-3) it is not made, and 0 rows are compared.
        n_repeated: Rows that came up again, and were not recorded again.
        n_without_response: Rows without any label, which have no gradient of their own.
        n_unknown: Rows that are not in the pool.
        store: The gradient store, after the block.
    """

    def __init__(
        self,
        loop: nn.Module | Trainer,
        out: Path,
        *,
        ids: str | None,
        pool: Pool | None,
        sketch: SketchSpec,
        recording: str,
    ):
        """Find what is to be watched; nothing is attached yet.

        Args:
            loop: A causal LM, perhaps wrapped (PEFT, DDP, compiled), or the trainer of one.
            out: The run folder.
            ids: Name of the batch column that says which row a row is.
            pool: Where the rows come from.
            sketch: Size and seed of the sketches.
            recording: hooked, intercepted, or auto.

        Raises:
            ValueError: If the model has no layers that can be watched, the trainer does not
                fine-tune on responses, or its rows are not those of the pool.
        """
        self._trainer = loop if isinstance(loop, Trainer) else None
        model = loop if self._trainer is None else loop.model
        self._outer = unwrapped(model)
        self._tracked = track(self._outer)
        self._engine = model if is_engine(model) else None
        self._is_sharded = False  # A trainer shards when it begins.
        self._paths = paths_of(recording, LOOP_PATHS)
        self._pool, self._sketch, self._out = pool, sketch, out
        self._names = self._names_for(ids)
        if self._trainer is not None:
            self._know_trainer()
        self._recorder: Recorder | None = None
        self._handles: list[Any] = []
        self._checking = False
        self._seen: dict[str, int] = {}
        self._unread: list[tuple[Records, LoopBatch]] = []
        self._pending: list[dict[str, object]] = []
        self._n_batches = self._n_updates = 0
        self._open_batch: LoopBatch | None = None
        self._to_compare: RememberedForward | None = None
        self._batches = LoopBatches()
        self._is_apart = False
        self._not_finite: dict[str, tuple[int, list[dict[str, object]]]] = {}
        self.check: CheckResult | None = None
        self.n_repeated = self.n_without_response = self.n_unknown = 0
        self.store: GradientStore | None = None

    def __enter__(self) -> Recording:
        """Lock the run folder and attach the hooks.

        Returns:
            This recording.

        Raises:
            ValueError: If the folder holds another store, or a finished one.
        """
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if together else 0
        self._is_one_of_several = together
        self._writer = StoreWriter(
            self._out,
            Manifest(self._identity(), self._about(), None),
            content_width=shape_of(self._tracked.head.weight)[1],
            sketch_size=self._sketch.size,
            rank=rank,
            gather=_gather if together else lambda value: [value],
        )
        self._writer.__enter__()
        if self._writer.manifest.parts:
            self._writer.__exit__(None, None, None)
            raise GradsiftError(
                f"{self._out}: records of another loop are here, and a loop of your own cannot be "
                "resumed by gradsift. Use another folder, or remove this one."
            )
        self._handles = [
            self._outer.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks and write what is left; the store is complete if there was no error."""
        try:
            if kind is None:
                self._compare_with_plain_loss()
        finally:
            for handle in self._handles:
                handle.remove()
            if self._recorder is not None:
                self._recorder.__exit__(kind, error, trace)
        try:
            if kind is None:
                self._complete()
            elif self._to_compare is None and not self._is_one_of_several:
                self._keep_what_is_left()  # Other processes may never come to it.
        finally:
            self._writer.__exit__(kind, error, trace)
        if kind is None:
            self.store = read_store(self._out)

    @torch.compiler.disable
    def _before_forward(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._checking:
            return None
        kwargs = dict(kwargs)
        column = None if self._names is None else self._names.column
        ids = kwargs.pop(column, None) if column else None
        if torch.is_grad_enabled():
            self._open(args, kwargs, ids)
        return args, kwargs

    def _open(self, args: tuple, kwargs: dict[str, Any], ids: Any) -> None:
        if self._open_batch is not None:
            raise GradsiftError(
                "two forward passes with gradients and no backward pass between them: which one "
                "the backward pass belongs to cannot be told. Put torch.no_grad() around the other."
            )
        self._compare_with_plain_loss()
        if self._n_batches and self._n_batches % FLUSH_EVERY == 0:
            self._flush()
        elif len(self._unread) >= UNREAD:
            self._read()
        if self._n_batches == 0 and self._trainer is None:
            self._trainer = trainer_around(self._outer)
            if self._trainer is not None:
                self._know_trainer()
        if self._n_batches == 0:
            self._engine = self._engine or engine_around(self._outer)
            self._is_sharded = is_divided(self._outer)
        if self._names is None:
            raise GradsiftError(
                "a pool needs ids: name the batch column that holds each row's position in it, or "
                "give the trainer of transformers or trl in the model's place."
            )
        if getattr(self._tracked.embedding, "neftune_noise_alpha", None) is not None:
            raise GradsiftError(
                "NEFTune adds noise to the embeddings, which would be in the recorded gradients: "
                "set neftune_noise_alpha=None in the loop that is recorded."
            )
        batch = self._batches.read(args, kwargs, ids, self._names.column)
        is_to_check = self._recorder is None and not self._is_sharded
        if is_to_check and not bool(batch.tokens.n_tokens_I.any()):
            # Nothing to check with; the next one may have labels. It counts, since all processes
            # write after as many.
            self.n_without_response += batch.tokens.n_rows
            self._n_batches += 1
            return
        if batch.tokens.is_packed and not self._is_apart and not self._is_sharded:
            self._require_apart(args, kwargs, batch)
        is_compared = self._recorder is None or self._n_batches in COMPARED_AGAIN
        if is_compared and not self._is_sharded:
            self._to_compare = RememberedForward.of(self._outer, args, kwargs, batch.tensors())
        if self._recorder is None:
            self._recorder = self._checked(args, kwargs, batch)
            self._recorder.__enter__()
            self._recorder.join_forward()
            # After the recorder's own hooks, so that it has seen everything by then.
            self._handles.append(self._outer.register_forward_hook(self._after_forward))
        rows = range(batch.tokens.n_rows)
        self._recorder.begin(rows, self._count_updates(), *batch.tensors())
        self._open_batch = batch

    @torch.compiler.disable
    def _after_forward(self, module: nn.Module, args: tuple, output: object) -> None:
        if self._open_batch is not None and torch.is_grad_enabled() and not self._checking:
            tensors = self._recorder.watched_tensors()
            torch.autograd.graph.register_multi_grad_hook(tensors, self._after_backward, mode="all")

    def _after_backward(self, gradients: Sequence[torch.Tensor]) -> None:
        if self._open_batch is None or self._checking:
            return  # A second backward pass through the same graph.
        batch, self._open_batch = self._open_batch, None
        self._n_batches += 1
        self._unread.append((self._recorder.finish(), batch))

    def _compare_with_plain_loss(self) -> None:
        """Refuse a backward pass of the loop that brought more than the response tokens' loss does.

        The self-check cannot see what a loop adds to its loss.
        """
        if self._to_compare is None or not self._unread or self._open_batch is not None:
            return  # Not before the backward pass is through.
        remembered, self._to_compare = self._to_compare, None
        if remembered.weights_changed(self._outer):
            warnings.warn(
                "the weights changed before what the loop's loss brought could be compared with "
                "the response tokens' own (an optimizer inside the backward pass, or one that is "
                "not torch's): terms beyond the mean negative log-likelihood of the response "
                "tokens would go unnoticed.",
                stacklevel=2,
            )
            return
        seen, _ = self._unread[-1]  # Of the batch that is remembered.
        # The recorder itself is attached, and rests: no micro-batch is open.
        twin = Recorder(
            self._tracked,
            self._sketch,
            method=self._recorder.method,
            arithmetic=self._recorder.arithmetic,
        )
        self._checking = True
        try:
            plain = remembered.records(twin, seen.indices)
        finally:
            self._checking = False
        require_same_loss(seen, plain)

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for records, batch in unread:
            batch.require_no_numbers()
            tokens, labels = batch.split()
            ids = self._names.of(batch.ids, tokens, labels)
            read = records.read()
            # What is left over at the end of a packed row is no row.
            self.n_without_response += sum(len(row) > 1 for row in tokens) - len(read)
            for record in read:
                instance_id = ids[record.index]
                if instance_id is None:
                    self.n_unknown += 1
                    continue
                if instance_id in self._seen:
                    self.n_repeated += 1
                    continue
                rows = store_rows(record, instance_id)
                if not record.finite:  # A loss scaler begins with overflows: the row comes again.
                    self._not_finite.setdefault(instance_id, (len(tokens[record.index]), rows))
                    continue
                self._not_finite.pop(instance_id, None)
                self._seen[instance_id] = len(tokens[record.index])
                self._pending += rows

    def _keep_what_is_left(self) -> None:
        with suppress(ValueError):  # The loop's own error is on its way already.
            self._read()
        if self._pending:
            self._flush()

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._to_compare is not None and self._is_ours(optimizer):
            self._compare_with_plain_loss()

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._n_updates += self._is_ours(optimizer)

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        if self._engine is not None:
            return optimizer is getattr(self._engine, "basic_optimizer", None)
        ours = {id(parameter) for parameter in self._outer.parameters()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])

    def _checked(self, args: tuple, kwargs: dict[str, Any], batch: LoopBatch) -> Recorder:
        if self._is_sharded:
            # Whole gradients would have to be gathered from all processes, in step with them.
            recorder, self.check = unchecked(
                self._tracked, self._sketch, self._paths, batch.input_ids_BT.device
            )
            return recorder
        self._checking = True
        try:
            recorder, self.check = check_forward(
                self._tracked, self._sketch, self._paths, args, kwargs, batch.tensors()
            )
        finally:
            self._checking = False
        return recorder

    def _require_apart(self, args: tuple, kwargs: dict[str, Any], batch: LoopBatch) -> None:
        """Try it with the first rows that are packed, whenever they come."""
        self._is_apart = self._checking = True
        try:
            require_apart(self._tracked, args, kwargs, batch.input_ids_BT, batch.tokens)
            if self._recorder is not None and bool(batch.tokens.n_tokens_I.any()):
                check_forward(
                    self._tracked, self._sketch, (self._recorder.method,), args, kwargs,
                    batch.tensors(),
                )  # fmt: skip
        finally:
            self._checking = False

    def _names_for(self, ids: str | None) -> RowNames | None:
        if ids is not None:
            return ByColumn(ids, self._pool)
        return ByContent() if self._pool is None else None  # Until a trainer is known.

    def _know_trainer(self) -> None:
        require_recordable(self._trainer)
        if self._names is None:
            self._names = names_by_text(self._pool, self._trainer)

    def _count_updates(self) -> int:
        if self._trainer is not None:
            return self._trainer.state.global_step
        if self._engine is not None:
            return self._engine.global_steps - self._engine.skipped_steps
        return self._n_updates

    def _flush(self, *, complete: bool = False) -> None:
        self._read()
        check = None if self.check is None else asdict(self.check)
        about = {
            "self_check": check,
            "n_repeated": self.n_repeated,
            "n_unknown": self.n_unknown,
        }
        self._writer.append(
            self._pending, last_step=self._count_updates(), about=about, complete=complete
        )
        self._pending = []

    def _complete(self) -> None:
        self._read()
        for instance_id, (n_tokens, rows) in self._not_finite.items():
            self._seen[instance_id] = n_tokens
            self._pending += rows
        if not any(self._writer.gather(bool(self._seen))):
            raise GradsiftError("nothing was recorded: no backward pass of this model was seen.")
        if self._pool is not None:
            seen = {k: v for part in self._writer.gather(self._seen) for k, v in part.items()}
            if self._writer.rank == 0:
                write_pool_table(self._out, [_pool_row(row, seen) for row in self._pool.rows])
        self._flush(complete=True)

    def _identity(self) -> dict[str, object]:
        config = self._outer.config.to_json_string(use_diff=False)
        return {
            "loop": "own",
            "model": f"sha256 of configuration {short_sha256(config)}",
            "sketch_size": self._sketch.size,
            "seed": self._sketch.seed,
        }

    def _about(self) -> dict[str, object]:
        about = {
            **about_stack(("torch", "transformers")),
            "model": type(base_model(self._outer)).__name__,
        }
        return about if self._pool is None else about | about_pool(self._pool)


def _gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _pool_row(row: PoolRow, seen: dict[str, int]) -> dict[str, object]:
    if row.instance_id in seen:
        return instance_row(
            row, n_tokens=seen[row.instance_id], n_response_tokens=None, truncated=None
        )
    detail = row.detail or "the training loop did not come to it"
    return dropped_row(row, row.reason or NOT_RECORDED, detail)
