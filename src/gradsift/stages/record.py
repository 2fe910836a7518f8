"""Record per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
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

from gradsift.data.pool import Pool, PoolRow
from gradsift.gradients.check import CheckResult, require_same_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import RecordingPath, Records
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import IGNORED_LABEL, ResponseTokens
from gradsift.stages.provenance import about_pool, about_stack, dropped_row, instance_row
from gradsift.store.manifest import Manifest
from gradsift.store.pool_table import write_pool_table
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.writer import StoreWriter
from gradsift.training.plain_loss import RememberedForward, copied
from gradsift.training.self_check import check_forward
from gradsift.training.sitting import store_rows
from gradsift.training.tracking import base_model, track

PATHS: tuple[RecordingPath, ...] = ("hooked", "intercepted")
FLUSH_EVERY = 256  # Micro-batches.
# Micro-batches whose records stay on the device until they are read together.
UNREAD = 16
# Besides the first, micro-batches (from 0) whose backward pass is compared with the plain loss's.
COMPARED_AGAIN = (9, 99, 999)
NOT_RECORDED = "not_recorded"


@dataclass(frozen=True)
class _Batch:
    """A micro-batch as the loop handed it to its model; ids are read with the records."""

    ids: Any
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return tokens, labels and mask."""
        return self.input_ids_BT, self.labels_BT, self.mask_BT


class Recording:
    """Watches every forward and backward pass of a model inside a `with` block.

    The loop itself stays as it is, to the bit. Each row is recorded once: the first time it is
    trained on. Forward passes without gradients (evaluation, generation) are let through.

    Attributes:
        check: What the self-check found, on the first micro-batch; None before it. With sharded
            parameters (FSDP2) it is not made, and 0 rows are compared.
        n_repeated: Rows that came up again, and were not recorded again.
        n_without_response: Rows without any label, which have no gradient of their own.
        store: The gradient store, after the block.
    """

    def __init__(
        self,
        model: nn.Module,
        out: Path,
        *,
        ids: str | None,
        pool: Pool | None,
        sketch: SketchSpec,
        recording: str,
    ):
        """Find what is to be watched; nothing is attached yet.

        Args:
            model: A causal LM, perhaps wrapped (PEFT, DDP, compiled).
            out: The run folder.
            ids: Name of the batch column that says which row a row is.
            pool: Where the rows come from.
            sketch: Size and seed of the sketches.
            recording: hooked, intercepted, or auto.

        Raises:
            ValueError: If the model has no layers that can be watched, or a pool comes without ids.
        """
        if pool is not None and ids is None:
            raise ValueError(
                "a pool needs ids: name the batch column that holds each row's position in it."
            )
        self._outer = _unwrapped(model)
        self._tracked = track(self._outer)
        self._is_sharded = any(hasattr(p, "full_tensor") for p in self._outer.parameters())
        self._paths = PATHS if recording == "auto" else (recording,)
        self._ids_column, self._pool, self._sketch, self._out = ids, pool, sketch, out
        self._pool_ids = set() if pool is None else {row.instance_id for row in pool.rows}
        self._recorder: Recorder | None = None
        self._handles: list[Any] = []
        self._checking = False
        self._seen: dict[str, int] = {}
        self._unread: list[tuple[Records, _Batch]] = []
        self._pending: list[dict[str, object]] = []
        self._n_batches = self._n_updates = 0
        self._open_batch: _Batch | None = None
        self._to_compare: RememberedForward | None = None
        self.check: CheckResult | None = None
        self.n_repeated = self.n_without_response = 0
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
            content_width=self._tracked.head.weight.shape[1],
            sketch_size=self._sketch.size,
            rank=rank,
            gather=_gather if together else lambda value: [value],
        )
        self._writer.__enter__()
        if self._writer.manifest.parts:
            self._writer.__exit__(None, None, None)
            raise ValueError(
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

    def _before_forward(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._checking:
            return None
        kwargs = dict(kwargs)
        ids = kwargs.pop(self._ids_column, None) if self._ids_column else None
        if torch.is_grad_enabled():
            self._open(args, kwargs, ids)
        return args, kwargs

    def _open(self, args: tuple, kwargs: dict[str, Any], ids: Any) -> None:
        if self._open_batch is not None:
            raise ValueError(
                "two forward passes with gradients and no backward pass between them: which one "
                "the backward pass belongs to cannot be told. Put torch.no_grad() around the other."
            )
        self._compare_with_plain_loss()
        if self._n_batches and self._n_batches % FLUSH_EVERY == 0:
            self._flush()
        elif len(self._unread) >= UNREAD:
            self._read()
        batch = self._batch_of(args, kwargs, ids)
        if self._recorder is None and not any(ResponseTokens.packed(*batch.tensors()[1:]).lengths):
            # Nothing to check with; the next one may have labels. It counts, since all processes
            # write after as many.
            self.n_without_response += len(batch.input_ids_BT)
            self._n_batches += 1
            return
        is_compared = self._recorder is None or self._n_batches in COMPARED_AGAIN
        if is_compared and not self._is_sharded:
            self._to_compare = RememberedForward.of(self._outer, args, kwargs, batch.tensors())
        if self._recorder is None:
            self._recorder = self._checked(args, kwargs, batch)
            self._recorder.__enter__()
            self._recorder.join_forward()
            # After the recorder's own hooks, so that it has seen everything by then.
            self._handles.append(self._outer.register_forward_hook(self._after_forward))
        rows = range(len(batch.input_ids_BT))
        self._recorder.begin(rows, self._n_updates, *batch.tensors())
        self._open_batch = batch

    def _batch_of(self, args: tuple, kwargs: dict[str, Any], ids: Any) -> _Batch:
        if self._ids_column is not None and ids is None:
            raise ValueError(
                f"the batch has no column {self._ids_column!r}. transformers' Trainer removes "
                "columns that the model does not name: set remove_unused_columns=False."
            )
        if getattr(self._tracked.embedding, "neftune_noise_alpha", None) is not None:
            raise ValueError(
                "NEFTune adds noise to the embeddings, which would be in the recorded gradients: "
                "set neftune_noise_alpha=None in the loop that is recorded."
            )
        input_ids_BT = kwargs.get("input_ids", args[0] if args else None)
        labels_BT = kwargs.get("labels")
        mask_BT = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if input_ids_BT is None:
            raise ValueError(
                "the model was called without `input_ids`: the gradient of the embedding table is "
                "that of its tokens, so embeddings given in their place are not recorded."
            )
        if labels_BT is None:
            raise ValueError(
                "the model was called without `labels`, so it cannot be told which tokens are the "
                "response. Pass them to the model; its own loss need not be used."
            )
        if mask_BT is None:
            mask_BT = torch.ones_like(input_ids_BT)
        if ids is not None and len(ids) != len(input_ids_BT):
            raise ValueError(
                f"a batch of {len(input_ids_BT)} rows has {len(ids)} ids in {self._ids_column!r}."
            )
        # Copies: they are read later, and a loop may fill its tensors anew.
        return _Batch(*(copied(value) for value in (ids, input_ids_BT, labels_BT, mask_BT)))

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
        seen, _ = self._unread[-1]
        # The recorder itself is attached, and rests: no micro-batch is open.
        twin = Recorder(
            self._tracked,
            self._sketch,
            intercept=self._recorder.path == "intercepted",
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
            ids = self._names(batch)
            n_tokens = batch.mask_BT.sum(1).tolist()
            read = records.read()
            self.n_without_response += len(ids) - len(read)
            for record in read:
                instance_id = ids[record.index]
                if instance_id in self._seen:
                    self.n_repeated += 1
                    continue
                self._seen[instance_id] = n_tokens[record.index]
                self._pending += store_rows(record, instance_id)

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
        ours = {id(parameter) for parameter in self._outer.parameters()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])

    def _checked(self, args: tuple, kwargs: dict[str, Any], batch: _Batch) -> Recorder:
        if self._is_sharded:
            # Whole gradients would have to be gathered from all processes, in step with them.
            recorder = Recorder(
                self._tracked, self._sketch, intercept=self._paths[0] == "intercepted"
            )
            dtype = str(self._tracked.head.weight.dtype).removeprefix("torch.")
            name = recorder.arithmetic.name
            self.check = CheckResult(0, None, None, recorder.path, name, dtype)
            return recorder
        self._checking = True
        try:
            recorder, self.check = check_forward(
                self._tracked, self._sketch, self._paths, args, kwargs, *batch.tensors()
            )
        finally:
            self._checking = False
        return recorder

    def _names(self, batch: _Batch) -> list[str]:
        if self._ids_column is None:
            rows = zip(*(tensor.cpu() for tensor in batch.tensors()), strict=True)
            return [
                row_key(tokens_T[mask_T > 0], labels_T[mask_T > 0])
                for tokens_T, labels_T, mask_T in rows
            ]
        # Numbers of whatever library, in whatever box, become Python's own.
        ids = [id_.item() if hasattr(id_, "item") else id_ for id_ in _unboxed(batch.ids)]
        return [str(i) if self._pool is None else self._pool_id(i) for i in ids]

    def _pool_id(self, id_: int | str) -> str:
        rows = self._pool.rows
        if isinstance(id_, int) and 0 <= id_ < len(rows):
            return rows[id_].instance_id
        if id_ in self._pool_ids:
            return id_
        raise ValueError(
            f"the id {id_!r} in {self._ids_column!r} is no row of the pool: expected a position "
            f"from 0 to {len(rows) - 1}, or an instance id such as {rows[0].instance_id!r}."
        )

    def _flush(self, *, complete: bool = False) -> None:
        self._read()
        check = None if self.check is None else asdict(self.check)
        about = {"self_check": check, "n_repeated": self.n_repeated}
        self._writer.append(
            self._pending, last_step=self._n_updates, about=about, complete=complete
        )
        self._pending = []

    def _complete(self) -> None:
        self._read()
        if not any(self._writer.gather(bool(self._seen))):
            raise ValueError("nothing was recorded: no backward pass of this model was seen.")
        if self._pool is not None:
            seen = {k: v for part in self._writer.gather(self._seen) for k, v in part.items()}
            if self._writer.rank == 0:
                write_pool_table(self._out, [_pool_row(row, seen) for row in self._pool.rows])
        self._flush(complete=True)

    def _identity(self) -> dict[str, object]:
        config = self._outer.config.to_json_string(use_diff=False)
        return {
            "loop": "own",
            "model": f"sha256 of configuration {hashlib.sha256(config.encode()).hexdigest()[:16]}",
            "sketch_size": self._sketch.size,
            "seed": self._sketch.seed,
        }

    def _about(self) -> dict[str, object]:
        about = {
            **about_stack(("torch", "transformers")),
            "model": type(base_model(self._outer)).__name__,
        }
        return about if self._pool is None else about | about_pool(self._pool)


def row_key(tokens_T: torch.Tensor, labels_T: torch.Tensor) -> str:
    """Name a row by what it says.

    Args:
        tokens_T: Its tokens, without padding.
        labels_T: Its labels.

    Returns:
        A hash, equal for equal rows.
    """
    text = f"{tokens_T.tolist()}{(labels_T != IGNORED_LABEL).int().tolist()}"
    return "sha256-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _unboxed(ids: Any) -> list[Any]:
    values = ids.flatten().tolist() if hasattr(ids, "flatten") else list(ids)
    return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
            for value in values]  # fmt: skip


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


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


def record(
    model: nn.Module,
    *,
    out: str | Path,
    ids: str | None = None,
    pool: Pool | None = None,
    sketch_size: int = 1024,
    seed: int = 0,
    recording: str = "auto",
) -> Recording:
    """Record per-sample gradients around any training loop, in a `with` block.

    On the first micro-batch two rows are compared with autograd, and after its backward pass,
    what the loop's own loss brought with what the response tokens alone bring; a mismatch stops the
    loop.

    Args:
        model: A causal LM of transformers, perhaps wrapped (PEFT, DDP, compiled). It must be
            called with `labels`, -100 where a token is not of the response.
        out: The run folder.
        ids: Name of a batch column with an integer or text for each row; it is taken out of the
            batch before the model sees it. None names rows by a hash of their tokens and labels.
        pool: From `load_pool`; then `ids` are positions in it (or instance ids), and `select`
            works on the run folder.
        sketch_size: Numbers of a gradient sketch, a power of two up to 2,048.
        seed: Of the sketch.
        recording: hooked, intercepted, or auto: the first of the two that is exact.

    Returns:
        A context manager; after the block its `store` is the gradient store.

    Raises:
        ValueError: If the model has no layers that can be watched.
    """
    sketch = SketchSpec(sketch_size, seed)
    return Recording(model, Path(out), ids=ids, pool=pool, sketch=sketch, recording=recording)
