"""Record per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers import Trainer

from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.gradients.check import CheckResult
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import has_sharded_weights
from gradsift.recording.loop_batch import LoopBatch, LoopBatches
from gradsift.recording.loop_check import check_forward
from gradsift.recording.loop_records import LoopRecordWriter
from gradsift.recording.loops import (
    NEFTUNE,
    engine_around,
    is_engine,
    require_recordable,
    trainer_around,
    unwrapped,
)
from gradsift.recording.plain_loss import RepeatableForward, require_plain_loss
from gradsift.recording.pool_rows import names_by_text
from gradsift.store.reader import GradientStore, read_store
from gradsift.training.finetune import loss_curve
from gradsift.training.isolation import require_isolation
from gradsift.training.layers import track
from gradsift.training.self_check import LOOP_METHODS, methods_of
from gradsift.training.sharding import unchecked
from gradsift.wording import in_line

# Besides the first, micro-batches (from 0) whose backward pass is compared with the plain loss's.
COMPARED_AGAIN = (1, 3, 9, 31, 99, 315, 999, 3161, 9999)


class Recording:
    """Watches every forward and backward pass of a model inside a `with` block.

    The loop itself stays as it is, to the bit. Each row is recorded once: the first time it is
    trained on. Forward passes without gradients (evaluation, generation) are let through.

    Attributes:
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
        """Find what is to be watched; nothing is attached yet."""
        self._trainer = loop if isinstance(loop, Trainer) else None
        model = loop if self._trainer is None else loop.model
        self._outer = unwrapped(model)
        self._tracked = track(self._outer)
        self._engine = model if is_engine(model) else None
        self._is_sharded = False  # A trainer shards when it begins.
        self._methods = methods_of(recording, LOOP_METHODS)
        self._pool, self._sketch, self._out = pool, sketch, out
        self._writer = LoopRecordWriter(out, ids, pool)
        if self._trainer is not None:
            self._use_trainer()
        self._recorder: Recorder | None = None
        self._handles: list[Any] = []
        self._is_paused = False
        self._is_listening = True
        self._n_updates = 0
        self._batches = LoopBatches()
        self._open_batch: LoopBatch | None = None
        self._last_records: Records | None = None
        self._to_compare: RepeatableForward | None = None
        self._isolation_is_tried = False
        self.store: GradientStore | None = None

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        if self.store is not None:
            return in_line(f"Recording(done: {self.store!r})")
        return in_line(
            f"Recording(not done, {self._writer.n_batches} micro-batches, to {self._out})"
        )

    # What the writer counts is for whoever records; the writer itself is not.

    @property
    def check(self) -> CheckResult | None:
        """What the self-check found, on the first micro-batch; None before it.

        With sharded parameters (FSDP2, ZeRO-3) it is not made, and 0 rows are compared.
        """
        return self._writer.check

    @property
    def n_repeated(self) -> int:
        """Rows that came up again, and were not recorded again."""
        return self._writer.n_repeated

    @property
    def n_without_response(self) -> int:
        """Rows without any label, which have no gradient of their own."""
        return self._writer.n_without_response

    @property
    def n_unknown(self) -> int:
        """Rows that are not in the pool."""
        return self._writer.n_unknown

    def __enter__(self) -> Recording:
        """Lock the run folder and attach the hooks."""
        self._writer.open(self._tracked, self._sketch)
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
            try:
                if kind is None:
                    self.compare_with_plain_loss()
            finally:
                for handle in self._handles:
                    handle.remove()
                if self._recorder is not None:
                    self._recorder.__exit__(kind, error, trace)
            if kind is None:
                self._writer.complete(self._count_updates(), self._loss_curve())
            elif self._to_compare is None:
                self._writer.save_what_is_left(self._count_updates())
        finally:
            self._writer.close()
        if kind is None:
            self.store = read_store(self._out)

    @torch.compiler.disable
    def _before_forward(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._is_paused:
            return None
        kwargs = dict(kwargs)
        column = None if self._writer.names is None else self._writer.names.column
        ids = kwargs.pop(column, None) if column else None
        if torch.is_grad_enabled() and self._is_listening:
            self._begin_batch(args, kwargs, ids)
        return args, kwargs

    def _begin_batch(self, args: tuple, kwargs: dict[str, Any], ids: Any) -> None:
        if self._open_batch is not None:
            raise GradsiftError(
                "two forward passes with gradients and no backward pass between them: which one "
                "the backward pass belongs to cannot be told. Put torch.no_grad() around the other."
            )
        self.compare_with_plain_loss()
        self._writer.keep_up(self._count_updates())
        if self._writer.n_batches == 0:
            self._look_around()
        if self._writer.names is None:
            raise GradsiftError(
                "a pool needs ids: name the batch column that holds each row's position in it, or "
                "give the trainer of transformers or trl in the model's place."
            )
        if getattr(self._tracked.embedding, "neftune_noise_alpha", None) is not None:
            raise GradsiftError(NEFTUNE)
        batch = self._batches.read(args, kwargs, ids, self._writer.names.column)
        is_first = self._recorder is None
        if not self._is_sharded:
            if is_first and not bool(batch.tokens.n_tokens_I.any()):
                # Nothing to check with; the next one may have labels.
                self._writer.skip(batch)
                return
            if batch.tokens.is_packed and not self._isolation_is_tried:
                self._require_isolation(args, kwargs, batch)
            if is_first or self._writer.n_batches in COMPARED_AGAIN:
                self._last_records = None
                self._to_compare = RepeatableForward.from_call(
                    self._outer, args, kwargs, batch.tensors()
                )
        if is_first:
            self._recorder = self._checked_recorder(args, kwargs, batch)
            self._recorder.__enter__()
            self._recorder.join_forward()
            # After the recorder's own hooks, so that it has seen everything by then.
            self._handles.append(self._outer.register_forward_hook(self._after_forward))
        rows = range(batch.tokens.n_rows)
        self._recorder.begin(rows, self._count_updates(), *batch.tensors())
        self._open_batch = batch

    @torch.compiler.disable
    def _after_forward(self, module: nn.Module, args: tuple, output: object) -> None:
        if self._open_batch is not None and torch.is_grad_enabled() and not self._is_paused:
            tensors = self._recorder.watched_tensors()
            torch.autograd.graph.register_multi_grad_hook(tensors, self._after_backward, mode="all")

    def _after_backward(self, gradients: Sequence[torch.Tensor]) -> None:
        if self._open_batch is None or self._is_paused:
            return  # A second backward pass through the same graph.
        batch, self._open_batch = self._open_batch, None
        self._last_records = self._recorder.finish()
        self._writer.add(self._last_records, batch)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._to_compare is not None and self._updates_model(optimizer):
            self.compare_with_plain_loss()

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._n_updates += self._updates_model(optimizer)

    def _updates_model(self, optimizer: torch.optim.Optimizer) -> bool:
        if self._engine is not None:
            return optimizer is getattr(self._engine, "basic_optimizer", None)
        parameters = {id(parameter) for parameter in self._outer.parameters()}
        return any(id(p) in parameters for group in optimizer.param_groups for p in group["params"])

    def _count_updates(self) -> int:
        if self._trainer is not None:
            return self._trainer.state.global_step
        if self._engine is not None:
            return self._engine.global_steps - self._engine.skipped_steps
        return self._n_updates

    def _loss_curve(self) -> list[tuple[int, float]] | None:
        if self._trainer is None:
            return None
        # Of a training that diverged some are no numbers, and JSON has none of these.
        return [(step, loss) for step, loss in loss_curve(self._trainer) if math.isfinite(loss)]

    def _look_around(self) -> None:
        """See who calls the model, and whether its weights are sharded by now."""
        if self._trainer is None:
            self._trainer = trainer_around(self._outer)
            if self._trainer is not None:
                self._use_trainer()
        self._engine = self._engine or engine_around(self._outer)
        self._is_sharded = has_sharded_weights(self._outer)

    def _use_trainer(self) -> None:
        require_recordable(self._trainer)
        if self._writer.names is None:
            self._writer.names = names_by_text(self._pool, self._trainer)

    @contextmanager
    def _paused(self) -> Generator[None, None, None]:
        """Let the model be called without being recorded."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def listen_only_when_told(self) -> None:
        """Let all calls of the model through, less their ids, but those within `listening`."""
        self._is_listening = False

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Record calls of the model: a trainer's own, not those of other callbacks."""
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False

    def compare_with_plain_loss(self) -> None:
        """Refuse a loss of the loop's own that is more than that of the response tokens.

        Where that is due: after the first backward pass, and a few later ones.
        """
        if self._to_compare is None or self._last_records is None or self._open_batch is not None:
            return  # Not before the backward pass is through.
        forward, self._to_compare = self._to_compare, None
        with self._paused():
            require_plain_loss(forward, self._last_records, self._recorder, self._sketch)

    def _checked_recorder(self, args: tuple, kwargs: dict[str, Any], batch: LoopBatch) -> Recorder:
        if self._is_sharded:
            # Whole gradients would have to be gathered from all processes, in step with them.
            recorder, self._writer.check = unchecked(
                self._tracked, self._sketch, self._methods, batch.input_ids_BT.device
            )
            return recorder
        with self._paused():
            recorder, self._writer.check = check_forward(
                self._tracked, self._sketch, self._methods, args, kwargs, batch.tensors()
            )
        return recorder

    def _require_isolation(self, args: tuple, kwargs: dict[str, Any], batch: LoopBatch) -> None:
        """Try it with the first rows that are packed, whenever they come."""
        self._isolation_is_tried = True
        with self._paused():
            require_isolation(self._tracked, args, kwargs, batch.input_ids_BT, batch.tokens)
            if self._recorder is not None and bool(batch.tokens.n_tokens_I.any()):
                method, tensors = self._recorder.method, batch.tensors()
                check_forward(self._tracked, self._sketch, (method,), args, kwargs, tensors)
