"""Record the per-sample gradients of a training step from outside, without changing it.

Hooks only keep references to four tensors that the step produces anyway. The arithmetic happens
after the backward pass, in `finish`, when the activations of the step are already freed.

Shapes: B rows of a batch, T positions, D width, V vocabulary, N response tokens of one row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn

from gradsift.gradients.head import HeadBackprops, HeadTransform
from gradsift.gradients.statistics import (
    GradientSummary,
    Projection,
    embedding_summary,
    linear_summary,
)
from gradsift.terms import LAYERS

IGNORED_LABEL = -100


@dataclass(frozen=True)
class SketchSpec:
    """Size and seed of the gradient sketches: `rank`² numbers for each layer."""

    rank: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """What one row of one step leaves behind.

    Attributes:
        index: The row's index, as given to `begin`.
        step: Optimizer updates made before this gradient was taken.
        loss: Instance loss: mean over the response tokens, in nats.
        n_response_tokens: Response tokens that have a loss.
        embedding: Summary of the gradient of the instance loss at the input embedding.
        lm_head: The same at the LM head.
        content_D: Mean of the last hidden state over the row's tokens, float32.
        finite: Whether every number above is finite.
    """

    index: int
    step: int
    loss: float
    n_response_tokens: int
    embedding: GradientSummary
    lm_head: GradientSummary
    content_D: torch.Tensor
    finite: bool


@dataclass(frozen=True)
class TrackedModel:
    """The modules whose inputs and outputs are watched.

    Attributes:
        outer: The module that training calls; its output carries `log_probs` [B, T-1].
        backbone: Its output carries `last_hidden_state` [B, T, D].
        embedding: The input embedding.
        head: The output projection; only its weight and bias are read.
        transform: What happens to the head's output before the softmax.
    """

    outer: nn.Module
    backbone: nn.Module
    embedding: nn.Embedding
    head: nn.Linear
    transform: HeadTransform


class Recorder:
    """Watches training steps inside a `with` block; the hooks are gone afterwards, also on error.

    For every micro-batch: `begin`, then forward and backward as always, then `finish`.
    """

    def __init__(self, model: TrackedModel, sketch: SketchSpec):
        """Draw the projections; nothing is attached yet.

        Args:
            model: What to watch.
            sketch: Size and seed of the sketches.
        """
        self.model = model
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._batch: _Batch | None = None
        weights = (model.embedding.weight, model.head.weight)
        self._projections = {
            layer: Projection.seeded(
                *weight.shape, rank=sketch.rank, seed=2 * sketch.seed + i, device=weight.device
            )
            for i, (layer, weight) in enumerate(zip(LAYERS, weights, strict=True))
        }

    def __enter__(self) -> Recorder:
        """Attach the hooks.

        Returns:
            This recorder.
        """
        self._handles = [
            self.model.embedding.register_forward_hook(self._on_embedding),
            self.model.backbone.register_forward_hook(self._on_backbone),
            self.model.outer.register_forward_hook(self._on_output),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._batch = None

    def projection(self, layer: str) -> Projection:
        """Return the projection of the sketches of one of LAYERS."""
        return self._projections[layer]

    def begin(
        self,
        indices: Iterable[int],
        step: int,
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        attention_mask_BT: torch.Tensor | None,
    ) -> None:
        """Announce a micro-batch, before its forward pass.

        Args:
            indices: One integer for each row.
            step: Optimizer updates made so far.
            input_ids_BT: The tokens.
            labels_BT: The same where a token belongs to the response, else -100.
            attention_mask_BT: 0 on padding, or None where there is none.
        """
        mask_BT = torch.ones_like(input_ids_BT) if attention_mask_BT is None else attention_mask_BT
        self._batch = _Batch(tuple(indices), step, input_ids_BT, labels_BT, mask_BT)

    def finish(self) -> list[Record]:
        """Turn what the hooks saw into records, after the backward pass of the micro-batch.

        Returns:
            One record for each row, in the batch's order.

        Raises:
            ValueError: If a hook was never called, or the loss weighs a row's tokens unequally.
        """
        batch, self._batch = self._batch, None
        assert batch is not None, "finish() without begin()"
        batch.check_complete()
        with torch.no_grad():
            return [self._record(batch, row) for row in range(len(batch.indices))]

    def _on_embedding(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if self._batch is None or not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            # A frozen table (LoRA): ask for the gradient that the weight would have.
            output.requires_grad_(True)
        output.register_hook(self._batch.keep_embedding_backprops)

    def _on_backbone(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if self._batch is not None and torch.is_grad_enabled():
            self._batch.hidden_BTD = output.last_hidden_state.detach()

    def _on_output(self, module: nn.Module, inputs: tuple, output: object) -> None:
        log_probs = getattr(output, "log_probs", None)
        if self._batch is not None and torch.is_grad_enabled() and log_probs is not None:
            log_probs.register_hook(self._batch.keep_token_weights)

    def _record(self, batch: _Batch, row: int) -> Record:
        response_T = batch.labels_BT[row, 1:] != IGNORED_LABEL
        n_response = int(response_T.sum())
        x_ND = batch.hidden_BTD[row, :-1][response_T]
        backprops = HeadBackprops(
            x_ND,
            self.model.head.weight,
            self.model.head.bias,
            batch.labels_BT[row, 1:][response_T],
            self.model.transform,
        )
        n_rows = self.model.head.weight.shape[0]
        head = linear_summary(x_ND, backprops.blocks(), n_rows, self._projections["lm_head"])
        embedding = embedding_summary(
            batch.input_ids_BT[row],
            batch.embedding_backprops_BTD[row] / (n_response * batch.token_weight(row, response_T)),
            self.model.embedding.weight.shape[0],
            self._projections["embedding"],
            self.model.embedding.padding_idx,
        )
        mask_T1 = batch.mask_BT[row].unsqueeze(1)
        content_D = (batch.hidden_BTD[row].float() * mask_T1).sum(0) / mask_T1.sum()
        numbers = [backprops.loss, *embedding.values_S, *head.values_S, content_D.sum()]
        finite = bool(torch.stack([number.double() for number in numbers]).isfinite().all())
        return Record(
            index=batch.indices[row],
            step=batch.step,
            loss=float(backprops.loss),
            n_response_tokens=n_response,
            embedding=embedding,
            lm_head=head,
            content_D=content_D,
            finite=finite,
        )


@dataclass
class _Batch:
    indices: tuple[int, ...]
    step: int
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor
    hidden_BTD: torch.Tensor | None = None
    token_weights_BT: torch.Tensor | None = None
    embedding_backprops_BTD: torch.Tensor | None = None

    def keep_embedding_backprops(self, gradient_BTD: torch.Tensor) -> None:
        self.embedding_backprops_BTD = gradient_BTD.detach()

    def keep_token_weights(self, gradient_BT: torch.Tensor) -> None:
        # The loss is −Σ w·log p: whatever the trainer divides by (tokens of the batch, accumulation
        # steps, processes, a loss scaler) is in w; dividing by it leaves the row's own gradient.
        self.token_weights_BT = -gradient_BT.detach()

    def check_complete(self) -> None:
        seen = {
            "input embedding (forward and backward)": self.embedding_backprops_BTD,
            "backbone (last hidden state)": self.hidden_BTD,
            "model output (log_probs of the fused head)": self.token_weights_BT,
        }
        missing = [name for name, tensor in seen.items() if tensor is None]
        if missing:
            raise ValueError(
                f"step {self.step}: the hook on the {' and the '.join(missing)} was never called, "
                "so the gradients of this step were not recorded. Something replaced the model's "
                "forward pass; recording it is not supported."
            )

    def token_weight(self, row: int, response_T: torch.Tensor) -> torch.Tensor:
        weights_N = self.token_weights_BT[row][response_T]
        low, high = weights_N.aminmax()
        if high - low > 1e-5 * high.abs():
            raise ValueError(
                f"step {self.step}: the loss weighs the response tokens of one row between "
                f"{float(low):.3g} and {float(high):.3g}; an instance loss is their plain mean. "
                "Use the ordinary loss (loss_type: nll, no label smoothing)."
            )
        return high
