"""Record the per-sample gradients of a training step from outside, without changing it.

Hooks only keep references to tensors that the step produces anyway. What remains to be computed
is computed after the backward pass, in `finish`, when the activations are already freed.

Where the head's part comes from depends on what training does with the head:

* fused: training calls our fused head, which says it of each row in passing;
* hooked: the head is called as a module (any training loop), or trl's fused head gives `log_probs`;
* intercepted: as hooked, but every use of the two weights is seen in `F.embedding` and `F.linear`,
  whoever calls them and whatever the modules do around them;
* fused-intercepted: the fused head, and the embedding's uses intercepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import nn

from gradsift.gradients.fused import HeadRow
from gradsift.gradients.head_part import head_part, transform_between
from gradsift.gradients.intercept import Interception
from gradsift.gradients.observed import EmbeddingCall, HeadCall, MicroBatch
from gradsift.gradients.records import Record, RecordingPath, SketchSpec, TrackedModel
from gradsift.gradients.statistics import Projection, embedding_summary
from gradsift.terms import EMBEDDING, LAYERS, LM_HEAD


class Recorder:
    """Watches training steps inside a `with` block; the hooks are gone afterwards, also on error.

    For every micro-batch: `begin`, then forward and backward as always, then `finish`. Without a
    backward pass (`finish(backward=False)`) the records have the head's part only.
    """

    def __init__(self, model: TrackedModel, sketch: SketchSpec, *, intercept: bool = False):
        """Draw the projections; nothing is attached yet.

        Args:
            model: What to watch.
            sketch: Size and seed of the sketches.
            intercept: Watch the uses of the two weights instead of the modules.
        """
        self.model = model
        self._interception = None
        if intercept:
            self._interception = Interception(
                model.outer,
                model.embedding.weight,
                model.head.weight,
                self._on_table_use,
                self._on_head_use,
            )
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._batch: MicroBatch | None = None
        weights = (model.embedding.weight, model.head.weight)
        self._projections = {
            layer: Projection.seeded(
                *weight.shape, rank=sketch.rank, seed=2 * sketch.seed + i, device=weight.device
            )
            for i, (layer, weight) in enumerate(zip(LAYERS, weights, strict=True))
        }

    @property
    def path(self) -> RecordingPath:
        """How the two layers are watched."""
        if self.model.fused is not None:
            return "fused" if self._interception is None else "fused-intercepted"
        return "hooked" if self._interception is None else "intercepted"

    def __enter__(self) -> Recorder:
        """Attach the hooks.

        Returns:
            This recorder.
        """
        if self._interception is not None:
            self._handles = self._interception.attach()
        else:
            self._handles = [self.model.embedding.register_forward_hook(self._on_embedding)]
        if self.model.fused is not None:
            self.model.fused.projection = self._projections[LM_HEAD]
            self.model.fused.listener = self._on_fused_head
            return self
        if self._interception is None:
            self._handles += [
                self.model.backbone.register_forward_hook(self._on_backbone),
                self.model.head.register_forward_hook(self._on_head),
            ]
        self._handles.append(self.model.outer.register_forward_hook(self._on_output))
        return self

    def join_forward(self) -> None:
        """Watch a forward pass that was under way when the hooks were attached."""
        if self._interception is not None:
            self._interception.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if self.model.fused is not None:
            self.model.fused.listener = None
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
        self._batch = MicroBatch(tuple(indices), step, input_ids_BT, labels_BT, mask_BT)

    def watched_tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the open micro-batch whose gradients `finish` needs."""
        return [] if self._batch is None else self._batch.awaited

    def finish(self, *, backward: bool = True) -> list[Record]:
        """Turn what the hooks saw into records, after the backward pass of the micro-batch.

        Args:
            backward: False if there was none: the records then have no embedding part.

        Returns:
            One record for each row that has a response token, in the batch's order.

        Raises:
            ValueError: If a hook was never called, or the loss is not the mean negative
                log-likelihood of the response tokens.
        """
        batch, self._batch = self._batch, None
        assert batch is not None, "finish() without begin()"
        # A tensor holds its hook, the hook this batch, and the batch the tensor: as a cycle, the
        # graph of the whole step would stay until the garbage collector comes by.
        batch.awaited.clear()
        batch.require_seen(backward=backward)
        rows = [row for row in range(len(batch.indices)) if batch.response(row).any()]
        with torch.no_grad():
            return [self._record(batch, row, backward) for row in rows]

    def _on_embedding(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._on_table_use(inputs[0], output, module.padding_idx)

    def _on_table_use(
        self, tokens: torch.Tensor, output: torch.Tensor, padding_idx: int | None
    ) -> None:
        if self._batch is None or not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            # A frozen table (LoRA): ask for the gradient that the weight would have.
            output.requires_grad_(True)
        call = EmbeddingCall(tokens.detach(), padding_idx)
        self._batch.embedding_calls.append(call)
        self._batch.await_gradient(output, call.keep)

    def _on_head(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._on_head_use(inputs[0], output)

    def _on_head_use(self, x: torch.Tensor, z: torch.Tensor) -> None:
        if self._batch is None or self.model.fused is not None:
            return
        call = HeadCall(x.detach(), z.detach())
        self._batch.head_calls.append(call)
        self._batch.hidden_BTD = call.x
        if torch.is_grad_enabled() and z.requires_grad:
            self._batch.await_gradient(z, call.keep)

    def _on_backbone(self, module: nn.Module, inputs: tuple, output: object) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if self._batch is not None and hidden is not None:
            self._batch.hidden_BTD = hidden.detach()

    def _on_output(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if self._batch is None:
            return
        logits, log_probs = (getattr(output, name, None) for name in ("logits", "log_probs"))
        if torch.is_grad_enabled() and log_probs is not None:
            self._batch.await_gradient(log_probs, self._batch.keep_token_weights)
        if logits is not None and self._batch.head_calls:
            self._batch.transform = transform_between(
                self._batch.head_calls[0].z, logits.detach(), self.model.transform
            )

    def _on_fused_head(
        self, hidden_BTD: torch.Tensor, rows: list[HeadRow], log_probs_BT: torch.Tensor
    ) -> None:
        if self._batch is not None:
            self._batch.hidden_BTD, self._batch.rows = hidden_BTD, rows
            if not log_probs_BT.requires_grad:
                return  # A scoring pass, without backward.
            self._batch.await_gradient(log_probs_BT, self._batch.keep_token_weights)

    def _record(self, batch: MicroBatch, row: int, backward: bool) -> Record:
        head, token_weight = head_part(
            batch, row, self.model, self._projections[LM_HEAD], backward=backward
        )
        embedding = None
        if backward:
            tokens_T, delta_TD, padding_idx = batch.embedding_backprops(row)
            embedding = embedding_summary(
                tokens_T,
                delta_TD / (head.n_response_tokens * token_weight),
                self.model.embedding.weight.shape[0],
                self._projections[EMBEDDING],
                padding_idx,
            )
        mask_T1 = batch.mask_BT[row].unsqueeze(1)
        hidden_TD = batch.hidden_BTD.reshape(*batch.labels_BT.shape, -1)[row]
        content_D = (hidden_TD.float() * mask_T1).sum(0) / mask_T1.sum()
        numbers = [head.loss, head.error_norm, *head.summary.values_S, content_D.sum()]
        numbers += [] if embedding is None else [*embedding.values_S]
        finite = bool(torch.stack([number.double() for number in numbers]).isfinite().all())
        return Record(
            index=batch.indices[row],
            step=batch.step,
            loss=float(head.loss),
            error_norm=float(head.error_norm),
            n_response_tokens=head.n_response_tokens,
            embedding=embedding,
            lm_head=head.summary,
            content_D=content_D,
            finite=finite,
        )
