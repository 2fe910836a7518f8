"""Record per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradsift.data.pool import Pool, PoolRow
from gradsift.gradients.check import CheckResult
from gradsift.gradients.fused import IGNORED_LABEL
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import RecordingPath, SketchSpec
from gradsift.stages.provenance import about_pool, about_stack, dropped_row, instance_row
from gradsift.store.manifest import Manifest
from gradsift.store.pool_table import write_pool_table
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.writer import StoreWriter
from gradsift.training.self_check import check_forward
from gradsift.training.sitting import store_rows
from gradsift.training.tracking import base_model, track

PATHS: tuple[RecordingPath, ...] = ("hooked", "intercepted")
FLUSH_EVERY = 256  # Micro-batches.
NOT_RECORDED = "not_recorded"


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
        self._recorder: Recorder | None = None
        self._handles: list[Any] = []
        self._checking = False
        self._ids: list[str] = []
        self._seen: dict[str, int] = {}
        self._pending: list[dict[str, object]] = []
        self._n_batches = self._n_updates = 0
        self._is_open = False
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
            sketch_size=self._sketch.rank**2,
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
        for handle in self._handles:
            handle.remove()
        if self._recorder is not None:
            self._recorder.__exit__(kind, error, trace)
        try:
            if kind is None:
                self._complete()
            elif self._pending and not self._is_one_of_several:
                self._flush()  # Incomplete, but not lost. Other processes may never come to it.
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
        if self._is_open:
            raise ValueError(
                "two forward passes with gradients and no backward pass between them: which one "
                "the backward pass belongs to cannot be told. Put torch.no_grad() around the other."
            )
        if self._n_batches and self._n_batches % FLUSH_EVERY == 0:
            self._flush()
        input_ids_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        labels_BT, mask_BT = kwargs.get("labels"), kwargs.get("attention_mask")
        if labels_BT is None:
            raise ValueError(
                "the model was called without `labels`, so it cannot be told which tokens are the "
                "response. Pass them to the model; its own loss need not be used."
            )
        if mask_BT is None:
            mask_BT = torch.ones_like(input_ids_BT)
        if self._recorder is None:
            self._recorder = self._checked(args, kwargs, input_ids_BT, labels_BT, mask_BT)
            self._recorder.__enter__()
            self._recorder.join_forward()
            # After the recorder's own hooks, so that it has seen everything by then.
            self._handles.append(self._outer.register_forward_hook(self._after_forward))
        self._ids = self._names(ids, input_ids_BT, labels_BT, mask_BT)
        self._n_tokens = mask_BT.sum(1).tolist()
        rows = range(len(self._ids))
        self._recorder.begin(rows, self._n_updates, input_ids_BT, labels_BT, mask_BT)
        self._is_open = True

    def _after_forward(self, module: nn.Module, args: tuple, output: object) -> None:
        if self._is_open and torch.is_grad_enabled() and not self._checking:
            tensors = self._recorder.watched_tensors()
            torch.autograd.graph.register_multi_grad_hook(tensors, self._after_backward, mode="all")

    def _after_backward(self, gradients: Sequence[torch.Tensor]) -> None:
        if not self._is_open:
            return  # A second backward pass through the same graph.
        self._is_open = False
        self._n_batches += 1
        records = self._recorder.finish()
        self.n_without_response += len(self._ids) - len(records)
        for record in records:
            instance_id = self._ids[record.index]
            if instance_id in self._seen:
                self.n_repeated += 1
                continue
            self._seen[instance_id] = self._n_tokens[record.index]
            self._pending += store_rows(record, instance_id)

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        ours = {id(parameter) for parameter in self._outer.parameters()}
        groups = optimizer.param_groups
        self._n_updates += any(id(p) in ours for group in groups for p in group["params"])

    def _checked(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        mask_BT: torch.Tensor,
    ) -> Recorder:
        if self._is_sharded:
            # Whole gradients would have to be gathered from all processes, in step with them.
            recorder = Recorder(
                self._tracked, self._sketch, intercept=self._paths[0] == "intercepted"
            )
            self.check = CheckResult(0, None, None, recorder.path)
            return recorder
        self._checking = True
        try:
            recorder, self.check = check_forward(
                self._tracked, self._sketch, self._paths, args, kwargs, input_ids_BT, labels_BT,
                mask_BT,
            )  # fmt: skip
        finally:
            self._checking = False
        return recorder

    def _names(
        self,
        ids: Any,
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        mask_BT: torch.Tensor,
    ) -> list[str]:
        if self._ids_column is None:
            return [
                row_key(input_ids_BT[row][mask_BT[row] > 0], labels_BT[row][mask_BT[row] > 0])
                for row in range(len(input_ids_BT))
            ]
        if ids is None:
            raise ValueError(
                f"the batch has no column {self._ids_column!r}. transformers' Trainer removes "
                "columns that the model does not name: set remove_unused_columns=False."
            )
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        if self._pool is not None:
            rows = self._pool.rows
            ids = [rows[i].instance_id if isinstance(i, int) else i for i in ids]
        return [str(i) for i in ids]

    def _flush(self, *, complete: bool = False) -> None:
        check = None if self.check is None else asdict(self.check)
        about = {"self_check": check, "n_repeated": self.n_repeated}
        self._writer.append(
            self._pending, last_step=self._n_updates, about=about, complete=complete
        )
        self._pending = []

    def _complete(self) -> None:
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
            "sketch_rank": self._sketch.rank,
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
    sketch_rank: int = 16,
    seed: int = 0,
    recording: str = "auto",
) -> Recording:
    """Record per-sample gradients around any training loop, in a `with` block.

    On the first micro-batch two rows are compared with autograd; a mismatch stops the loop.

    Args:
        model: A causal LM of transformers, perhaps wrapped (PEFT, DDP, compiled). It must be
            called with `labels`, -100 where a token is not of the response.
        out: The run folder.
        ids: Name of a batch column with an integer or text for each row; it is taken out of the
            batch before the model sees it. None names rows by a hash of their tokens and labels.
        pool: From `load_pool`; then `ids` are positions in it (or instance ids), and `select`
            works on the run folder.
        sketch_rank: A gradient sketch has this number squared entries.
        seed: Of the sketch.
        recording: hooked, intercepted, or auto: the first of the two that is exact.

    Returns:
        A context manager; after the block its `store` is the gradient store.

    Raises:
        ValueError: If the model has no layers that can be watched.
    """
    sketch = SketchSpec(sketch_rank, seed)
    return Recording(model, Path(out), ids=ids, pool=pool, sketch=sketch, recording=recording)
