"""The preliminary epoch: train once over the pool; record on the way, or only afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.tokenization import Instance
from gradsift.gradients.check import CheckResult
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import shape_of
from gradsift.store.writer import StoreWriter
from gradsift.training.checkpoint import (
    SaveEvery,
    SkipNonFiniteSteps,
    checkpoint_at,
)
from gradsift.training.finetune import loss_curve, train_plainly
from gradsift.training.layers import track
from gradsift.training.record_writer import RecordWriter
from gradsift.training.self_check import PATHS, first_exact_path, paths_of
from gradsift.training.sharding import (
    divides_weights,
    plain_backward,
    require_same_loss_as_fused,
    unchecked,
    uses_deepspeed,
)
from gradsift.training.trainer import RecordingSFTTrainer
from gradsift.training.trainer_settings import TrainerSettings

DEFAULT_N_PARTS = 8


@dataclass(frozen=True)
class EpochResult:
    """What the preliminary epoch did.

    Attributes:
        loss_curve: (step, training loss) as the trainer logged them, earlier sittings included.
        n_non_finite: Instances whose gradient was not finite, in this sitting.
        n_steps_skipped: Optimizer updates left out because of them, in this sitting.
        resumed_at_step: Optimizer updates already made when this sitting began.
    """

    loss_curve: tuple[tuple[int, float], ...]
    n_non_finite: int
    n_steps_skipped: int
    resumed_at_step: int


class PreliminaryEpoch:
    """A trainer with its recorder: check, then run (recording), or train (without).

    Attributes:
        trainer: The trainer.
        recorder: Of the way that the check chose; None before it.
        content_width: Entries of the content features.
        n_steps: Optimizer updates of the epoch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instances: Sequence[Instance],
        settings: TrainerSettings,
        sketch: SketchSpec,
        work_dir: Path,
    ):
        """Set the trainer up; nothing is trained yet.

        Args:
            model: A causal LM; training changes it in place.
            tokenizer: Its tokenizer.
            instances: What to train on.
            settings: How to train.
            sketch: Size and seed of the gradient sketches.
            work_dir: For checkpoints; removed when the epoch is done.
        """
        self._instances = instances
        self._work_dir = work_dir
        self._sketch = sketch
        self.trainer = RecordingSFTTrainer(model, tokenizer, instances, settings, work_dir)
        self.content_width = shape_of(track(self.trainer.model).head.weight)[1]
        self.recorder: Recorder | None = None
        self.n_steps = self._total_steps()

    def check(self, *, wanted: str = "auto", backward: bool = True) -> CheckResult:
        """Take the cheapest way of recording that equals autograd on two rows.

        Args:
            wanted: A way of recording, or "auto".
            backward: Whether the embedding's part will be recorded, too.

        Returns:
            Which way, and the worst relative error.

        Raises:
            ValueError: If there is none.
        """
        trainer = self.trainer
        if divides_weights(trainer.accelerator):
            paths = paths_of(wanted, PATHS)
            trainer.use_fused_head(paths[0].startswith("fused"))
            tracked = track(trainer.model, trainer.fused)
            self.recorder, result = unchecked(tracked, self._sketch, paths, trainer.args.device)
            return result
        if uses_deepspeed(trainer.accelerator):  # It would move the model when it begins.
            trainer.model.to(trainer.args.device)
        counts = [len(instance.input_ids) for instance in self._instances]
        with plain_backward(trainer.accelerator, trainer.model):
            self.recorder, result = first_exact_path(
                trainer, self._sketch, counts, wanted=wanted, backward=backward
            )
        return result

    def run(
        self,
        writer: StoreWriter,
        *,
        save_steps: int | None,
        on_progress: Callable[[int, int], None],
    ) -> EpochResult:
        """Train the epoch, from where an earlier sitting stopped, and write the records.

        Args:
            writer: An open store.
            save_steps: Optimizer updates between two parts (each with a checkpoint); None makes
                about eight parts.
            on_progress: Called at the start and after each micro-batch with instances and tokens
                done so far.

        Returns:
            What was done.

        Raises:
            ValueError: If an instance is recorded twice: the trainer's order of rows changed.
        """
        assert self.recorder is not None, "run() before check()"
        resumed_at = self._last_step(writer)
        sitting = RecordWriter(self._instances, writer, on_progress)
        can_skip = not uses_deepspeed(self.trainer.accelerator)
        self.trainer.add_callback(SkipNonFiniteSteps(sitting.step_is_finite, can_skip=can_skip))
        self.trainer.add_callback(SaveEvery(self.steps_between(save_steps), sitting.flush))
        self.trainer.record_with(self.recorder, sitting.add)
        self._look_at_first()
        checkpoint = checkpoint_at(self._work_dir, resumed_at) if resumed_at else None
        with self.recorder:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        curve = loss_curve(self.trainer)
        sitting.flush(self.trainer.state.global_step, {"loss_curve": curve}, complete=True)
        self.clean_up()
        return EpochResult(tuple(curve), sitting.n_non_finite, sitting.n_skipped, resumed_at)

    def train(
        self, *, save_steps: int | None, on_progress: Callable[[int, int], None]
    ) -> EpochResult:
        """Train the epoch, from where an earlier sitting stopped, without recording.

        The last checkpoint stays, so that an interrupted scoring pass need not train again.

        Args:
            save_steps: Optimizer updates between two checkpoints; None makes about eight.
            on_progress: Called after each micro-batch with instances and tokens done so far.

        Returns:
            What was done.
        """
        self._look_at_first()
        result = train_plainly(
            self.trainer,
            self._instances,
            self._work_dir,
            steps_between=self.steps_between(save_steps),
            on_progress=on_progress,
        )
        return EpochResult(result.loss_curve, 0, 0, result.resumed_at_step)

    def _look_at_first(self) -> None:
        if divides_weights(self.trainer.accelerator) and self.trainer.fused is not None:
            self.trainer.look_at_first(require_same_loss_as_fused)

    def clean_up(self) -> None:
        """Remove the checkpoints."""
        if self.trainer.is_world_process_zero():
            shutil.rmtree(self._work_dir, ignore_errors=True)

    def steps_between(self, save_steps: int | None) -> int:
        """Return the optimizer updates between two checkpoints."""
        return save_steps or -(-self.n_steps // DEFAULT_N_PARTS)

    def _last_step(self, writer: StoreWriter) -> int:
        # The latest step that has both its checkpoint and its parts; later parts are forgotten.
        steps = [part.last_step for part in writer.manifest.parts]
        whole = [step for step in steps if checkpoint_at(self._work_dir, step)]
        step = max(whole, default=0)
        writer.keep_until(step)
        return step

    def _total_steps(self) -> int:
        args = self.trainer.args
        rows_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        return -(-len(self._instances) // rows_per_step)
