"""The preliminary epoch: train once over the pool; record on the way, or only afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.tokenization import Instance
from gradsift.gradients.check import CheckResult
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import shape_of
from gradsift.progress import Progress, no_progress
from gradsift.store.manifest import Manifest
from gradsift.store.writer import StoreWriter
from gradsift.training.checkpoint import (
    Checkpoint,
    SaveEvery,
    SkipNonFiniteSteps,
    remove_checkpoints,
    resume_from,
)
from gradsift.training.finetune import TrainingSummary, loss_curve, train_without_recording
from gradsift.training.layers import track
from gradsift.training.record_writer import RecordWriter
from gradsift.training.self_check import METHODS, first_exact_method, methods_of
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.sharding import (
    plain_backward,
    require_same_loss_as_fused,
    shards_weights,
    unchecked,
    uses_deepspeed,
)
from gradsift.training.trainer import RecordingSFTTrainer

DEFAULT_N_PARTS = 8


@dataclass(frozen=True)
class EpochResult:
    """What the preliminary epoch did.

    Attributes:
        loss_curve: (step, training loss) as the trainer logged them, earlier sessions included.
        n_non_finite: Instances whose gradient was not finite, in this session.
        n_steps_skipped: Optimizer updates left out because of them, in this session.
        resumed_at_step: Optimizer updates already made when this session began.
    """

    loss_curve: tuple[tuple[int, float], ...]
    n_non_finite: int
    n_steps_skipped: int
    resumed_at_step: int


class PreliminaryEpoch:
    """A trainer with its recorder: check, then run (recording), or train (without).

    Attributes:
        recorder: Of the method that the check chose; None before it.
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
        *,
        called: str = "",
    ):
        """Set the trainer up; `work_dir` is for checkpoints, and removed when the epoch is done."""
        self.instances = instances
        self._work_dir = work_dir
        self._sketch = sketch
        self.trainer = RecordingSFTTrainer(
            model, tokenizer, instances, settings, work_dir, called=called
        )
        self.content_width = shape_of(track(self.trainer.model).head.weight)[1]
        self.recorder: Recorder | None = None
        self.n_steps = -(-len(instances) // self.trainer.rows_per_step)

    def check(self, *, method: str = "auto", backward: bool = True) -> CheckResult:
        """Take the cheapest recording method that equals autograd on two rows."""
        trainer = self.trainer
        if shards_weights(trainer.accelerator):
            methods = methods_of(method, METHODS)
            trainer.use_fused_head(methods[0].startswith("fused"))
            tracked = track(trainer.model, trainer.fused)
            self.recorder, result = unchecked(tracked, self._sketch, methods, trainer.args.device)
            return result
        if uses_deepspeed(trainer.accelerator):  # It would move the model when it begins.
            trainer.model.to(trainer.args.device)
        with plain_backward(trainer.accelerator, trainer.model):
            self.recorder, result = first_exact_method(
                trainer, self._sketch, method=method, backward=backward
            )
        return result

    def writer(self, folder: Path, manifest: Manifest, sketch_size: int) -> StoreWriter:
        """Return the writer of the store, of which each process of the training writes its part."""
        args = self.trainer.args
        return StoreWriter(
            folder,
            manifest,
            content_width=self.content_width,
            sketch_size=sketch_size,
            rank=args.process_index,
            gather=lambda value: gather_object([value]) if args.world_size > 1 else [value],
        )

    def run(
        self, writer: StoreWriter, *, save_steps: int | None, progress: Progress = no_progress
    ) -> EpochResult:
        """Train the epoch and write the records; resumes an earlier session.

        A part and a checkpoint are written every `save_steps` updates; None makes about eight.
        """
        assert self.recorder is not None, "run() before check()"
        checkpoint = self._resumed_from(writer)
        resumed_at = 0 if checkpoint is None else checkpoint.step
        records = RecordWriter(self.instances, writer, progress)
        can_skip = not uses_deepspeed(self.trainer.accelerator)
        self.trainer.add_callback(SkipNonFiniteSteps(records.step_is_finite, can_skip=can_skip))
        self.trainer.add_callback(
            SaveEvery(self.steps_between(save_steps), records.flush, made_with=writer.manifest.key)
        )
        self.trainer.record_with(self.recorder, records.add)
        self._check_first_loss()
        with self.recorder:
            self.trainer.train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path)
            )
        curve = loss_curve(self.trainer)
        records.flush(self.trainer.state.global_step, {"loss_curve": curve}, complete=True)
        self.clean_up()
        return EpochResult(tuple(curve), records.n_non_finite, records.n_skipped, resumed_at)

    def train(
        self, *, made_with: str, save_steps: int | None, progress: Progress = no_progress
    ) -> TrainingSummary:
        """Train the epoch without recording; resumes an earlier session.

        The last checkpoint stays, so that an interrupted scoring pass need not train again.
        """
        self._check_first_loss()
        return train_without_recording(
            self.trainer,
            made_with=made_with,
            passes=1,
            n_steps=self.n_steps,
            steps_between=self.steps_between(save_steps),
            progress=progress,
        )

    def _check_first_loss(self) -> None:
        if shards_weights(self.trainer.accelerator) and self.trainer.fused is not None:
            self.trainer.on_first_batch(require_same_loss_as_fused)

    def clean_up(self) -> None:
        """Remove the checkpoints."""
        if self.trainer.is_world_process_zero():
            remove_checkpoints(self._work_dir)

    def steps_between(self, save_steps: int | None) -> int:
        """Return the optimizer updates between two checkpoints."""
        return save_steps or -(-self.n_steps // DEFAULT_N_PARTS)

    def _resumed_from(self, writer: StoreWriter) -> Checkpoint | None:
        # Resume at the latest step that has both its checkpoint and its parts; later parts go.
        damaged = writer.drop_damaged()
        steps = {part.last_step for part in writer.manifest.parts}
        if damaged is not None:  # Where several processes train, each step has several parts.
            steps = {step for step in steps if step < damaged.last_step}
        checkpoint = resume_from(self._work_dir, steps, made_with=writer.manifest.key)
        writer.keep_until(0 if checkpoint is None else checkpoint.step)
        return checkpoint
