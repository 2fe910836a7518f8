"""Record: per-sample gradients around a training loop that is not ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gradsift.config import LoopConfig
from gradsift.data.pool import Pool
from gradsift.errors import GradsiftError
from gradsift.gradients.sketch import SketchSpec
from gradsift.recording.loops import trainer_with
from gradsift.recording.recording import Recording
from gradsift.schema import takes, validated
from gradsift.wording import in_line, short

# Methods of a trainer: a callback is not told of errors in them, and hooks must not outlive these.
GUARDED = ("get_batch_samples", "training_step")


@takes(LoopConfig)
def record(
    loop: nn.Module | Trainer,
    *,
    out: str | Path,
    ids: str | None = None,
    pool: Pool | None = None,
    **settings: Any,
) -> Recording:
    """Record per-sample gradients around any training loop, in a `with` block.

    On the first micro-batch two rows are compared with autograd, and after its backward pass,
    what the loop's own loss brought with what the response tokens alone bring; a mismatch stops the
    loop.

    Args:
        loop: A causal LM of transformers, perhaps wrapped (PEFT, DDP, DeepSpeed, compiled), or the
            trainer of transformers or trl that trains it. The model must be called with `labels`,
            -100 where a token is not of the response. Rows may be packed: `position_ids` that
            begin anew tell where each begins.
        out: The run folder.
        ids: Name of a batch column with an integer or text for each row; it is taken out of the
            batch before the model sees it. None finds a trainer's rows in the pool by their tokens;
            without a pool rows are named by a hash of their tokens and labels.
        pool: From `load_pool`; then `ids` are positions in it (or instance ids), and `select`
            works on the run folder.
        **settings: How gradients are recorded; see Settings.

    Returns:
        A context manager; after the block its `store` is the gradient store.

    Raises:
        GradsiftError: If the model has no layers that can be watched, or the trainer does not
            fine-tune on responses.
    """
    config = validated(LoopConfig, settings)
    _require_arguments(out, pool)
    sketch, method = SketchSpec(config.sketch_size, config.seed), config.recording
    return Recording(loop, Path(out), ids=ids, pool=pool, sketch=sketch, recording=method)


def _require_arguments(out: object, pool: object) -> None:
    if not isinstance(out, str | Path) or not str(out):
        raise GradsiftError(f"`out` is {short(repr(out), 80)}, expected the path of a run folder.")
    if pool is not None and not isinstance(pool, Pool):
        raise GradsiftError(
            f"`pool` is {short(repr(pool), 80)}, expected what gs.load_pool returns."
        )


class RecordCallback(TrainerCallback):
    """Records a training of transformers or trl, as `record` does around `trainer.train()`.

    It is given to a trainer (`callbacks=[…]`, or `trainer.add_callback`) before it trains. Training
    goes on as it would, to the bit. Where a step stops by an error, nothing stays attached.

    Attributes:
        recording: What was recorded: its `store`, `check`, `n_unknown`; None before training.
    """

    def __init__(
        self,
        *,
        out: str | Path,
        pool: Pool | None = None,
        ids: str | None = None,
        **settings: Any,
    ):
        """Take what `record` takes, but for the trainer, which is found when it trains.

        Args:
            out: The run folder.
            pool: The rows that are trained on, from `load_pool`; then `select` works on the run.
            ids: Name of a batch column; None finds rows by their tokens.
            **settings: How gradients are recorded, as for `record`.

        Raises:
            GradsiftError: If a setting does not fit.
        """
        # Before training, which may begin much later.
        validated(LoopConfig, settings)
        _require_arguments(out, pool)
        self._how = {"out": out, "pool": pool, "ids": ids, **settings}
        self._trainer: Trainer | None = None
        self.recording: Recording | None = None

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return in_line(f"RecordCallback({self.recording or 'not in a training yet'})")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, and begin to watch it.

        Raises:
            GradsiftError: If this training cannot be recorded.
        """
        self._let_go()  # A training that ended by an error nobody told of.
        trainer = trainer_with(self)
        if trainer is None:
            raise GradsiftError(
                "RecordCallback: no Trainer of transformers has it among its callbacks and calls "
                "it. In another loop: `with gradsift.record(model, out=…): …`."
            )
        if sum(isinstance(one, RecordCallback) for one in trainer.callback_handler.callbacks) > 1:
            raise GradsiftError(
                "RecordCallback: this trainer has two of them, and a training is recorded once: "
                "take one out."
            )
        if state.global_step > 0:
            raise GradsiftError(
                f"RecordCallback: training resumes at step {state.global_step}, and the rows "
                "before it would not be recorded: train from the beginning, or without it."
            )
        if args.auto_find_batch_size:
            raise GradsiftError(
                "RecordCallback: auto_find_batch_size begins a training anew where memory is "
                "short, which would record rows twice: set per_device_train_batch_size."
            )
        self.recording = record(trainer, **self._how).__enter__()
        self._trainer = trainer
        self.recording.listen_only_when_told()
        for name in GUARDED:
            setattr(trainer, name, self._guarded(getattr(trainer, name)))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a training that had begun.

        Raises:
            GradsiftError: If so.
        """
        if self._trainer is None:
            raise GradsiftError(
                "RecordCallback: it was added after training began, and the rows before would not "
                "be recorded: add it before trainer.train()."
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the loop's own loss with the response tokens', while the weights are the same.

        Raises:
            GradsiftError: If it is another one.
        """
        if self.recording is not None and self._trainer is not None:
            try:
                self.recording.compare_with_plain_loss()
            except BaseException:
                self._let_go()
                raise

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left, and let the trainer go.

        Raises:
            GradsiftError: If nothing was recorded.
        """
        if self._trainer is not None and self.recording is not None:
            self._detach()
            self.recording.__exit__(None, None, None)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            try:
                with self.recording.listening():
                    return method(*arguments, **named)
            except BaseException:
                self._let_go()
                raise

        return guarded

    def _let_go(self) -> None:
        """Stop recording a training that goes on no more; what was recorded is written."""
        if self._trainer is not None and self.recording is not None:
            self._detach()
            kind, error, trace = sys.exc_info()
            self.recording.__exit__(kind or RuntimeError, error, trace)

    def _detach(self) -> None:
        for name in GUARDED:
            vars(self._trainer).pop(name, None)
        self._trainer = None
