"""The preliminary epoch: train once over the pool, and write what each instance's gradient was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.instances import Instance
from gradsift.gradients.check import CheckResult
from gradsift.gradients.recorder import Record, Recorder, SketchSpec
from gradsift.store.schema import STATUS_NON_FINITE, STATUS_OK
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, STATISTICS
from gradsift.training.checkpoint import SaveEvery, SkipNonFiniteSteps, checkpoint_at
from gradsift.training.estimate import Estimate, estimate_cost
from gradsift.training.model import track
from gradsift.training.probe import self_check
from gradsift.training.sft import RecordingSFTTrainer, SFTSettings

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
    """A trainer with its recorder: check, estimate, then run."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instances: Sequence[Instance],
        settings: SFTSettings,
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
        self._seed = settings.seed
        self._token_counts = [len(instance.input_ids) for instance in instances]
        self.trainer = RecordingSFTTrainer(model, tokenizer, instances, settings, work_dir)
        tracked = track(self.trainer.model)
        self.content_width = tracked.head.weight.shape[1]
        self._recorder = Recorder(tracked, sketch)

    def check(self) -> CheckResult:
        """Compare two rows with autograd.

        Returns:
            The worst relative error.

        Raises:
            ValueError: If they differ.
        """
        return self_check(self.trainer, self._recorder, self._token_counts)

    def estimate(self, save_steps: int | None = None) -> Estimate:
        """Time a few steps; nothing is changed by it.

        Args:
            save_steps: As for `run`.

        Returns:
            What the epoch will take.
        """
        n_steps = self._total_steps()
        return estimate_cost(
            self.trainer,
            self._recorder,
            self._token_counts,
            n_steps=n_steps,
            n_checkpoints=(n_steps - 1) // self._steps_between(save_steps, n_steps),
            seed=self._seed,
        )

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
        resumed_at = self._last_step(writer)
        sitting = _Sitting(self._instances, writer, on_progress)
        n_steps = self._steps_between(save_steps, self._total_steps())
        self.trainer.add_callback(SkipNonFiniteSteps(sitting.step_is_finite))
        self.trainer.add_callback(SaveEvery(n_steps, sitting.flush))
        self.trainer.record_with(self._recorder, sitting.add)
        checkpoint = checkpoint_at(self._work_dir, resumed_at) if resumed_at else None
        with self._recorder:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history = self.trainer.state.log_history
        curve = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        sitting.flush(self.trainer.state.global_step, {"loss_curve": curve}, complete=True)
        shutil.rmtree(self._work_dir, ignore_errors=True)
        return EpochResult(tuple(curve), sitting.n_non_finite, sitting.n_skipped, resumed_at)

    def _last_step(self, writer: StoreWriter) -> int:
        # The latest step that has both its checkpoint and its parts; later parts are forgotten.
        steps = [part.last_step for part in writer.manifest.parts]
        whole = [step for step in steps if checkpoint_at(self._work_dir, step)]
        step = max(whole, default=0)
        writer.keep_until(step)
        return step

    @staticmethod
    def _steps_between(save_steps: int | None, n_steps: int) -> int:
        return save_steps or -(-n_steps // DEFAULT_N_PARTS)

    def _total_steps(self) -> int:
        args = self.trainer.args
        rows_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        return -(-len(self._instances) // rows_per_step)


class _Sitting:
    """The records of one sitting, from the trainer to the store."""

    def __init__(
        self,
        instances: Sequence[Instance],
        writer: StoreWriter,
        on_progress: Callable[[int, int], None],
    ):
        self._instances = instances
        self._writer = writer
        self._on_progress = on_progress
        self._seen = writer.recorded_ids()
        before = writer.manifest.about if self._seen else {}
        self._seconds_before = before.get("seconds", 0.0)
        self._skipped_before = before.get("n_steps_skipped", 0)
        self.n_skipped = 0
        self._started = time.perf_counter()
        self._pending: list[Record] = []
        self._step_is_finite = True
        self.n_non_finite = 0
        self._n_tokens = sum(
            len(instance.input_ids) for instance in instances if instance.instance_id in self._seen
        )
        on_progress(len(self._seen), self._n_tokens)

    def add(self, records: list[Record]) -> None:
        for record in records:
            instance = self._instances[record.index]
            if instance.instance_id in self._seen:
                raise ValueError(
                    f"instance {instance.instance_id!r} came up twice in one epoch: the order of "
                    "rows differs from that of the interrupted run (other versions of transformers "
                    "or accelerate?). Capture into a new --out folder."
                )
            self._seen.add(instance.instance_id)
            self._n_tokens += len(instance.input_ids)
            if not record.finite:
                self.n_non_finite += 1
                self._step_is_finite = False
        self._pending.extend(records)
        self._on_progress(len(self._seen), self._n_tokens)

    def step_is_finite(self) -> bool:
        # Of the step that ends now; the next one begins.
        finite, self._step_is_finite = self._step_is_finite, True
        self.n_skipped += not finite
        return finite

    def flush(
        self, step: int, about: dict[str, object] | None = None, *, complete: bool = False
    ) -> None:
        rows = [row for record in self._pending for row in self._rows(record)]
        seconds = self._seconds_before + time.perf_counter() - self._started
        skipped = self._skipped_before + self.n_skipped
        about = {"seconds": seconds, "n_steps_skipped": skipped, **(about or {})}
        self._writer.append(rows, last_step=step, about=about, complete=complete)
        self._pending.clear()

    def _rows(self, record: Record) -> list[dict[str, object]]:
        shared = {
            "instance_id": self._instances[record.index].instance_id,
            "step": record.step,
            "loss": record.loss,
            "n_response_tokens": record.n_response_tokens,
            "status": STATUS_OK if record.finite else STATUS_NON_FINITE,
        }
        rows = []
        for layer in LAYERS:
            summary = getattr(record, layer)
            values = dict(zip(STATISTICS, summary.values_S.tolist(), strict=True))
            content = record.content_D.cpu().numpy() if layer == "lm_head" else None
            sketch = summary.sketch_K2.to(torch.float32).cpu().numpy()
            rows.append(
                {
                    **shared,
                    **values,
                    "layer": layer,
                    "content_features": content,
                    "sketch": sketch,
                }
            )
        return rows
