"""trl's SFTTrainer on ready-made instances, with a recorder that watches each step.

With `saving`, the only module that depends on trl's and transformers' insides;
`tests/training/test_trl_canary.py` pins them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from gradsift.attention import without_cudnn_attention
from gradsift.config import Batching
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.instance_loss import summed_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.tracking import shape_of
from gradsift.terms import IGNORED_LABEL
from gradsift.training.adapters import cast_trained
from gradsift.training.batches import (
    INDEX_COLUMN,
    PACKED_MULTIPLE,
    TOKENS,
    Collator,
    LengthGroupedSampler,
    as_dataset,
)
from gradsift.training.isolation import isolates_packed_rows
from gradsift.training.layers import add_fused_head, base_model, can_be_fused, track
from gradsift.training.quantized import is_quantized
from gradsift.training.reports import report_callbacks
from gradsift.training.saving import SavingTrainer
from gradsift.training.settings.lora import adapting, lora_config
from gradsift.training.settings.tokenizer import changes_eos
from gradsift.training.settings.trainer import TrainerSettings, sft_config
from gradsift.wording import one_line


class LogsLastStep(TrainerCallback):
    """Logs what is left at the end; transformers logs whole windows of `logging_steps` alone."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the last step."""
        if args.logging_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_log = True


class RecordingSFTTrainer(SavingTrainer):
    """SFTTrainer that tells a recorder about each micro-batch, and trains the same without one.

    The loss is trl's: the sum of the response tokens' negative log-likelihoods, divided by the
    response tokens of the optimizer step. It is computed by our own fused head instead of trl's, or
    from the model's own logits. An auxiliary loss (mixtures of experts) is left out: it would
    couple the rows of a batch.

    Attributes:
        fused: Our fused head while training calls it, else None.
        batching: How rows are put into micro-batches.
        lengths: Tokens of each instance.
        n_tokens: Tokens of the rows that this process was trained on.
        n_computed: The same with the padding that was computed beside them.
        is_dry_run: Whether a step is made for its numbers only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instances: Sequence[Instance],
        settings: TrainerSettings,
        output_dir: Path,
        *,
        called: str = "",
    ):
        """Set trl's trainer up; nothing is recorded until `record_with` is called.

        Its reports, if the settings ask for any, are called after it, and go beside `output_dir`.
        """
        self._recorder: Recorder | None = None
        self._sink: Callable[[Records], None] | None = None
        self._on_rows: Callable[[list[int]], None] = lambda indices: None
        self._on_first_batch: Callable[[torch.nn.Module, dict], None] | None = None
        self._set_up(model, tokenizer, instances, settings, output_dir)
        # Not every model takes it as an argument.
        base_model(self.model).config.get_text_config().use_cache = False
        self.lengths = [len(instance.input_ids) for instance in instances]
        self.n_tokens = self.n_computed = 0
        self.is_dry_run = False
        self._fused_head = add_fused_head(self.model)
        self.fused: FusedHead | None = self._fused_head if can_be_fused(self.model) else None
        if is_quantized(model) and not self.args.bf16:
            # trl holds adapters over quantised weights in bf16, whatever the products are in.
            cast_trained(self.model, torch.float32)
        width = shape_of(track(self.model).head.weight)[1]
        self.data_collator = Collator(self.data_collator, width)
        self.batching = self._choose_batching(settings.batching)
        self.data_collator.packs = self.batching == "packed"
        if self.args.device.type == "cuda":
            self.data_collator.multiple = PACKED_MULTIPLE
        if self.args.pad_to_multiple_of is not None:
            self.data_collator.multiple = self.args.pad_to_multiple_of
        # Standard output is for results; progress is reported by whoever runs the trainer.
        self.remove_callback(PrinterCallback)
        self.add_callback(LogsLastStep)
        self.args.run_name = called or None
        self.args.project = settings.sft.get("project") or self.args.project
        for callback in report_callbacks(settings.sft, called, output_dir.parent):
            self.add_callback(callback)

    def _set_up(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instances: Sequence[Instance],
        settings: TrainerSettings,
        output_dir: Path,
    ) -> None:
        config, dataset = sft_config(settings, output_dir), as_dataset(instances)
        if changes_eos(settings.sft):
            # trl tells the model, too.
            config.eos_token = tokenizer.eos_token
        try:
            with warnings.catch_warnings(), adapting(model, settings.lora):
                # peft asks for it under the old name; the user can do nothing.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                super().__init__(
                    model=model,
                    args=config,
                    train_dataset=dataset,
                    processing_class=tokenizer,
                    peft_config=lora_config(settings.lora),
                )
        except GradsiftError:
            raise
        except (ImportError, ValueError) as error:
            reason = one_line(error)
            raise GradsiftError(f"trl refuses the `sft` settings or the model: {reason}") from error

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, of all processes together."""
        args = self.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return rows * args.world_size

    def _choose_batching(self, batching: str) -> Batching:
        if batching in ("by_length", "random"):
            return batching
        by_length = sorted(range(len(self.lengths)), key=lambda i: (self.lengths[i], i))
        n = len(by_length)
        rows = [self.train_dataset[by_length[at]]["input_ids"] for at in (n // 2, n // 4)]
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if batching == "packed" and sharded:
            raise GradsiftError(
                "whether the model keeps packed rows apart cannot be tried before training under "
                "FSDP or DeepSpeed: use `batching: by_length`."
            )
        with self.accelerator.autocast():
            isolates = not sharded and isolates_packed_rows(track(self.model), rows)
        if batching == "packed" and not isolates:
            raise GradsiftError(
                f"{type(base_model(self.model)).__name__} does not keep packed rows apart: use "
                "`batching: by_length`."
            )
        return "packed" if isolates else "by_length"

    def record_with(self, recorder: Recorder, sink: Callable[[Records], None]) -> None:
        """From now on let `recorder` watch each micro-batch, and give its records to `sink`."""
        self._recorder, self._sink = recorder, sink

    def on_first_batch(self, call: Callable[[torch.nn.Module, dict], None]) -> None:
        """Have the wrapped model and the first micro-batch handed over, before its step."""
        self._on_first_batch = call

    def on_rows(self, call: Callable[[list[int]], None]) -> None:
        """Have the rows of each micro-batch handed over that is trained on without recording."""
        self._on_rows = call

    def use_fused_head(self, use: bool) -> None:
        """Compute the loss by the fused head, or from the model's own logits."""
        self.fused = self._fused_head if use else None

    def stop_recording(self) -> None:
        """Train without recording from now on."""
        self._recorder = self._sink = None

    def forget_metrics(self) -> None:
        """Clear what trl counts in a step, after a dry run."""
        self._metrics["train"].clear()
        self._total_train_tokens = 0

    @without_cudnn_attention()
    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Train on one micro-batch as trl does, and record it."""
        indices = inputs.pop(INDEX_COLUMN)
        if self._on_first_batch is not None:
            call, self._on_first_batch = self._on_first_batch, None
            call(model, self._prepare_inputs(inputs))
        if not self.is_dry_run:  # Those may be of rows that are not trained on.
            self.n_tokens += sum(self.lengths[i] for i in indices)
            self.n_computed += inputs["input_ids"].numel()
        if self._recorder is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._on_rows(indices)
            return loss
        inputs = self._prepare_inputs(inputs)
        self._recorder.begin(
            indices,
            self.state.global_step,
            inputs["input_ids"],
            inputs["labels"],
            inputs[TOKENS],
        )
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._sink(self._recorder.finish())
        return loss

    def dry_run_step(
        self, indices: Sequence[int], recorder: Recorder | None, dataset: Dataset | None = None
    ) -> Records | None:
        """Run forward and backward on some rows, recorded or plainly, without an update.

        Weights, random generators, gradients and trl's metrics are afterwards as before. The rows
        are the trainer's own unless another dataset is given.
        """
        recorded: list[Records] = []
        batch = self._collated(indices, dataset)
        n_items = (batch["labels"][:, 1:] != IGNORED_LABEL).sum().to(self.args.device)
        # Until training starts, accelerate has not wrapped the model's forward in autocast.
        with torch.random.fork_rng(), self.accelerator.autocast(), recorder or nullcontext():
            if recorder is not None:
                self.record_with(recorder, recorded.append)
            self.is_dry_run = True
            try:
                self.training_step(self.model, batch, n_items)
            finally:
                self.is_dry_run = False
                self.stop_recording()
                self.model.zero_grad(set_to_none=True)
                self.forget_metrics()
        return recorded[0] if recorded else None

    @without_cudnn_attention()
    def forward_records(
        self, indices: Sequence[int], recorder: Recorder, dataset: Dataset | None = None
    ) -> Records:
        """Record the LM head's part of some rows by a forward pass alone."""
        batch = self._prepare_inputs(self._collated(indices, dataset))
        indices = batch.pop(INDEX_COLUMN)  # In the order in which they were packed.
        labels_BT, tokens = batch.pop("labels"), batch.pop(TOKENS)
        fused = {} if self.fused is None else {"response_tokens": tokens}
        with torch.no_grad(), self.accelerator.autocast(), recorder:
            recorder.begin(indices, self.state.global_step, batch["input_ids"], labels_BT, tokens)
            self.model(**batch, **fused)
            return recorder.finish(backward=False)

    def _collated(self, indices: Sequence[int], dataset: Dataset | None) -> dict[str, Any]:
        dataset = self.train_dataset if dataset is None else dataset
        return self.data_collator([dataset[i] for i in indices])

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the training loss of a micro-batch."""
        assert not return_outputs, "nothing here evaluates"
        labels_BT, tokens = inputs["labels"], inputs[TOKENS]
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", TOKENS)}
        if self.fused is not None:
            total = -model(**inputs, response_tokens=tokens)["log_probs"].sum()
        else:
            total = summed_loss(model(**inputs).logits, labels_BT)
        loss = total / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            # The tokens of all processes are counted, and their gradients are averaged.
            loss = loss * self.accelerator.num_processes
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        # A data loader moves them; a batch that was collated by hand comes without one.
        return {**inputs, TOKENS: inputs[TOKENS].to(self.args.device, non_blocking=True)}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.batching != "by_length":
            return super()._get_train_sampler(train_dataset)
        args = self.args
        size = args.per_device_train_batch_size * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthGroupedSampler(self.lengths, size, seed)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Weights that are tied to others are written once; transformers warns that they are missing
        # in the checkpoint that training resumes from. What else is missing is still told.
        tied = getattr(base_model(self.model), "all_tied_weights_keys", None) or {}
        missing = [key for key in load_result.missing_keys if key not in tied]
        # Where the model names what is not saved, transformers ties it, and does not warn.
        if not getattr(self.model, "_keys_to_ignore_on_save", None):
            load_result = load_result._replace(missing_keys=missing)
        super()._issue_warnings_after_load(load_result)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if INDEX_COLUMN not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, INDEX_COLUMN]
