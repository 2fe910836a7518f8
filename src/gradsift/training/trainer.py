"""trl's SFTTrainer on ready-made instances, with a recorder that watches each step.

The only module that depends on trl's insides; `tests/training/test_trl_canary.py` pins them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTTrainer

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.gradients.arithmetic import at_least_float32
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.records import Records
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import shape_of
from gradsift.terms import IGNORED_LABEL
from gradsift.training.adapters import trained_dtype_is
from gradsift.training.batches import (
    Batching,
    LengthGroupedSampler,
    packed_batch,
)
from gradsift.training.isolation import keeps_apart
from gradsift.training.layers import add_fused_head, base_model, can_be_fused, track
from gradsift.training.trainer_settings import TrainerSettings, lora_config, sft_config

INDEX_COLUMN = "instance_index"
TOKENS = "response_tokens"


class RecordingSFTTrainer(SFTTrainer):
    """SFTTrainer that tells a recorder about each micro-batch, and trains the same without one.

    The loss is trl's: the sum of the response tokens' negative log-likelihoods, divided by the
    response tokens of the optimizer step. It is computed by our own fused head instead of trl's, or
    from the model's own logits. An auxiliary loss (mixtures of experts) is left out: it would
    couple the rows of a batch.

    Attributes:
        fused: Our fused head while training calls it, else None.
        batching: How rows are put into micro-batches.
        n_tokens: Tokens of the rows that this process was trained on.
        n_computed: The same with the padding that was computed beside them.
        is_probing: Whether a step is made for its numbers only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instances: Sequence[Instance],
        settings: TrainerSettings,
        output_dir: Path,
    ):
        """Set trl's trainer up; nothing is recorded until `record_with` is called.

        Args:
            model: A causal LM; changed in place by training.
            tokenizer: Its tokenizer.
            instances: What to train on; record indices are positions in this sequence.
            settings: How to train.
            output_dir: Where checkpoints go.
        """
        self._recorder: Recorder | None = None
        self._sink: Callable[[Records], None] | None = None
        self._tell_rows: Callable[[list[int]], None] = lambda indices: None
        self._before_first: Callable[[torch.nn.Module, dict], None] | None = None
        with warnings.catch_warnings():
            # peft asks for it under the old name; the user can do nothing.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            super().__init__(
                model=model,
                args=sft_config(settings, output_dir),
                train_dataset=as_dataset(instances),
                processing_class=tokenizer,
                peft_config=lora_config(settings),
            )
        # Not every model takes it as an argument.
        base_model(self.model).config.get_text_config().use_cache = False
        self._lengths = [len(instance.input_ids) for instance in instances]
        self.n_tokens = self.n_computed = 0
        self.is_probing = False
        self._fused_head = add_fused_head(self.model)
        self.fused: FusedHead | None = self._fused_head if can_be_fused(self.model) else None
        if getattr(model, "is_quantized", False) and not self.args.bf16:
            # trl holds adapters over quantised weights in bf16, whatever the products are in.
            trained_dtype_is(self.model, torch.float32)
        width = shape_of(track(self.model).head.weight)[1]
        self.data_collator = _Collator(self.data_collator, width)
        self.batching = self._choose_batching(settings.batching)
        self.data_collator.packs = self.batching == "packed"
        # Standard output is for results; progress is reported by whoever runs the trainer.
        self.remove_callback(PrinterCallback)

    def _choose_batching(self, wanted: str) -> Batching:
        if wanted in ("by_length", "random"):
            return wanted
        by_length = sorted(range(len(self._lengths)), key=lambda i: (self._lengths[i], i))
        n = len(by_length)
        rows = [self.train_dataset[by_length[at]]["input_ids"] for at in (n // 2, n // 4)]
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if wanted == "packed" and sharded:
            raise GradsiftError(
                "whether the model keeps packed rows apart cannot be tried before training under "
                "FSDP or DeepSpeed: use `batching` by_length."
            )
        with self.accelerator.autocast():
            apart = not sharded and keeps_apart(track(self.model), rows)
        if wanted == "packed" and not apart:
            raise GradsiftError(
                f"{type(base_model(self.model)).__name__} does not keep packed rows apart: use "
                "`batching` by_length."
            )
        return "packed" if apart else "by_length"

    def record_with(self, recorder: Recorder, sink: Callable[[Records], None]) -> None:
        """From now on let `recorder` watch each micro-batch, and give its records to `sink`."""
        self._recorder, self._sink = recorder, sink

    def look_at_first(self, look: Callable[[torch.nn.Module, dict], None]) -> None:
        """Call `look` with the wrapped model and the first micro-batch, before its step."""
        self._before_first = look

    def tell_rows(self, tell: Callable[[list[int]], None]) -> None:
        """From now on call `tell` with the rows of each micro-batch that was trained on."""
        self._tell_rows = tell

    def use_fused_head(self, wanted: bool) -> None:
        """Compute the loss by the fused head, or from the model's own logits."""
        self.fused = self._fused_head if wanted else None

    def stop_recording(self) -> None:
        """Train plainly from now on."""
        self._recorder = self._sink = None

    def forget_metrics(self) -> None:
        """Clear what trl counts in a step, after a step that was only a probe."""
        self._metrics["train"].clear()
        self._total_train_tokens = 0

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Train on one micro-batch as trl does, and record it.

        Args:
            model: The model, perhaps wrapped.
            inputs: The collated micro-batch.
            num_items_in_batch: Response tokens of the whole optimizer step.

        Returns:
            The loss of the micro-batch.
        """
        indices = inputs.pop(INDEX_COLUMN)
        if self._before_first is not None:
            look, self._before_first = self._before_first, None
            look(model, self._prepare_inputs(inputs))
        if not self.is_probing:  # A probe may be of rows that are not trained on.
            self.n_tokens += sum(self._lengths[i] for i in indices)
            self.n_computed += inputs["input_ids"].numel()
        if self._recorder is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._tell_rows(indices)
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

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the training loss of a micro-batch.

        Args:
            model: The model, perhaps wrapped.
            inputs: The micro-batch.
            return_outputs: Not supported; nothing here evaluates.
            num_items_in_batch: Response tokens of the whole optimizer step.

        Returns:
            Mean negative log-likelihood over the response tokens, as this micro-batch adds to it.
        """
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
        return LengthGroupedSampler(self._lengths, size, args.seed)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if INDEX_COLUMN not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, INDEX_COLUMN]


def summed_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the sum of the response tokens' negative log-likelihoods.

    Args:
        logits_BTV: Of the model's own forward pass.
        labels_BT: The tokens where they belong to the response, else -100.

    Returns:
        A 0-d tensor, computed in at least float32.
    """
    logits_NV = at_least_float32(logits_BTV[:, :-1].flatten(0, 1))
    return F.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum")


def mean_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean of the response tokens' negative log-likelihoods, as `summed_loss`."""
    return summed_loss(logits_BTV, labels_BT) / (labels_BT[:, 1:] != IGNORED_LABEL).sum()


def as_dataset(instances: Sequence[Instance]) -> Dataset:
    """Return instances as a dataset that trl trains on without preparing it again."""
    return Dataset.from_dict(
        {
            "input_ids": [instance.input_ids for instance in instances],
            "labels": [instance.labels for instance in instances],
            INDEX_COLUMN: list(range(len(instances))),
        }
    )


@dataclass
class _Collator:
    collate: Callable[[list[dict]], dict[str, torch.Tensor]]
    width: int
    packs: bool = False

    @contextmanager
    def packing_whole(self) -> Generator[None, None, None]:
        """Put all rows of a micro-batch into one, at any cost, inside a `with` block."""
        width, self.width = self.width, 2**62
        try:
            yield
        finally:
            self.width = width

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        # The host knows the indices, and where the response tokens are: nobody need ask a device.
        indices = [row[INDEX_COLUMN] for row in rows]
        if self.packs:
            batch, tokens, order = packed_batch(rows, self.width, self.collate.pad_token_id)
            return {**batch, INDEX_COLUMN: [indices[i] for i in order], TOKENS: tokens}
        batch = self.collate([{k: v for k, v in row.items() if k != INDEX_COLUMN} for row in rows])
        tokens = ResponseTokens.compact(batch["labels"], batch.get("attention_mask"))
        return {**batch, INDEX_COLUMN: indices, TOKENS: tokens}
