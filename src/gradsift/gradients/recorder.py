"""Record the per-sample gradients of a training step from outside, without changing it.

Hooks only keep references to tensors that the step produces anyway. What remains to be computed
is computed after the backward pass, in `finish`, when the activations are already freed.

Where the head record comes from depends on what training does with the head, hence the methods:

* fused: training calls our fused head, which computes it in passing;
* hidden: from the head's input and the gradient of the loss there, however the loss is computed
  (any loop; the head need not be called: trl's and Liger's fused losses do not);
* hooked: from the head's output and the gradient there; the head must be called as a module;
* intercepted: as hooked, but every use of the two weights is seen in `F.embedding` and `F.linear`,
  whoever calls them and whatever the modules do around them;
* fused-intercepted, hidden-intercepted: only the embedding's uses are intercepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

import torch
from torch import nn

from gradsift.gradients.backends import Backend, at_least_float32, backends_for
from gradsift.gradients.fused import product_dtype
from gradsift.gradients.head import HeadRecords
from gradsift.gradients.head_records import head_records, hidden_gradient
from gradsift.gradients.micro_batch import EmbeddingCall, HeadCall, MicroBatch
from gradsift.gradients.records import Check, Records
from gradsift.gradients.sketch import SketchSpec, TensorSketch
from gradsift.gradients.statistics import embedding_summaries
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.tracking import (
    Interception,
    TrackedModel,
    reshards_weights,
    shape_of,
    whole,
)
from gradsift.gradients.transform import HeadTransform, transform_between, transform_deviation
from gradsift.terms import EMBEDDING, LAYERS, LM_HEAD, RecordingMethod

UNKNOWN_TRANSFORM = (
    "the model changes the logits after the head in another way than in the first step; recording "
    "that is not supported."
)


class Recorder:
    """Watches training steps inside a `with` block; the hooks are gone afterwards, also on error.

    For every micro-batch: `begin`, then forward and backward as always, then `finish`. Without a
    backward pass (`finish(backward=False)`) the records are those of the head only.

    Attributes:
        model: What is watched.
        method: By default fused if the model has such a head, else hooked.
        backend: How to compute; by default the fastest one of the device, which is that of the
            head's weight unless another one is given.
    """

    def __init__(
        self,
        model: TrackedModel,
        sketch: SketchSpec,
        *,
        method: RecordingMethod | None = None,
        backend: Backend | None = None,
        device: torch.device | None = None,
    ):
        self.model = model
        self.method = method or ("hooked" if model.fused is None else "fused")
        self._head_method = self.method.removesuffix("-intercepted")
        weight = model.head.weight
        device = device or weight.device
        self.backend = backend or backends_for(device, weight.dtype)[0]
        self._interception = None
        if self.method.endswith("intercepted"):
            self._interception = Interception(
                model.outer, model.embedding, model.head, self._on_table_use, self._on_head_use
            )
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._batch: MicroBatch | None = None
        self._reshards_weights = False
        self._transform: HeadTransform | None = None
        weights = (model.embedding.weight, model.head.weight)
        self._sketches = {
            layer: TensorSketch.seeded(
                *shape_of(weight), size=sketch.size, seed=2 * sketch.seed + i, device=device
            )
            for i, (layer, weight) in enumerate(zip(LAYERS, weights, strict=True))
        }

    def __enter__(self) -> Recorder:
        """Attach the hooks."""
        self._reshards_weights = reshards_weights(self.model.outer)
        if self._interception is not None:
            self._handles = self._interception.attach()
        else:
            self._handles = [self.model.embedding.register_forward_hook(self._on_embedding)]
        if self._head_method == "fused":
            self.model.fused.backend = self.backend
            self.model.fused.sketch = self._sketches[LM_HEAD]
            self.model.fused.on_forward = self._on_fused_head
            return self
        if self._head_method == "hidden":
            self._handles.append(self.model.backbone.register_forward_hook(self._on_backbone))
            return self
        if self._interception is None:
            self._handles.append(self.model.head.register_forward_hook(self._on_head))
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
            self.model.fused.on_forward = None
        self._handles = []
        self._batch = None

    def sketch(self, layer: str) -> TensorSketch:
        """Return the sketch of the gradients of one of LAYERS."""
        return self._sketches[layer]

    def begin(
        self,
        indices: Iterable[int],
        step: int,
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        tokens: ResponseTokens,
    ) -> None:
        """Announce a micro-batch, before its forward pass, with gradients on or off as in that.

        One index for each instance; `step` are the optimizer updates made so far.
        """
        self._batch = MicroBatch(
            tuple(indices), step, input_ids_BT, labels_BT, tokens, torch.is_grad_enabled()
        )

    def watched_tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the open micro-batch whose gradients `finish` needs."""
        return [] if self._batch is None else self._batch.awaited

    def differentiate(self, loss: Callable[[], torch.Tensor]) -> None:
        """Send the gradient of the response tokens' summed loss back to the watched tensors.

        After a forward pass in place of its backward pass; parameters get none. `loss` computes
        that loss from what the forward pass gave, where it is not known from the head's input.
        """
        batch = self._batch
        if self._head_method == "hidden" and batch.hidden_output is not None:
            output = batch.hidden_output
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                gradient_BTD = hidden_gradient(batch, self.model.transform, self.backend)
            gradient = gradient_BTD.view_as(output).to(output.dtype)
            torch.autograd.grad(output, batch.awaited, gradient, allow_unused=True)
        else:
            torch.autograd.grad(loss(), batch.awaited, allow_unused=True)

    def finish(self, *, backward: bool = True) -> Records:
        """Turn what the hooks saw into records, after the backward pass, if there was one.

        Nothing waits for the device until the records are read.
        """
        batch, self._batch = self._batch, None
        assert batch is not None, "finish() without begin()"
        # A tensor holds its hook, the hook this batch, and the batch the tensor: as a cycle, the
        # graph of the whole step would stay until the garbage collector comes by.
        batch.awaited.clear()
        batch.hidden_output = None
        batch.require_seen(backward=backward)
        # Whoever calls may be inside autocast or not; what is summed up here is not to be rounded.
        kind = batch.input_ids_BT.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            return self._records(batch, backward)

    def _watches(self) -> bool:
        # A pass without gradients between a forward pass and its backward pass is somebody else's.
        return self._batch is not None and self._batch.differentiable == torch.is_grad_enabled()

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
        if not self._watches() or self._head_method in ("fused", "hidden"):
            return
        call = HeadCall(x.detach(), z.detach())
        self._batch.head_calls.append(call)
        self._batch.hidden_BTD, self._batch.product_dtype = call.x, call.z.dtype
        if torch.is_grad_enabled() and z.requires_grad:
            self._batch.await_gradient(z, call.keep)

    def _on_backbone(self, module: nn.Module, inputs: tuple, output: object) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if not self._watches() or hidden is None:
            return
        self._batch.hidden_BTD = hidden.detach()
        # Autocast may be on inside the model only.
        self._batch.product_dtype = product_dtype(hidden)
        # Here, where all processes are: in the backward pass they need not meet.
        head, dtype, device = self.model.head, self._batch.product_dtype, hidden.device
        self._batch.head_weights = tuple(
            whole(tensor, dtype=dtype, device=device, is_resharded=self._reshards_weights)
            for tensor in (head.weight, head.bias)
        )
        if torch.is_grad_enabled() and hidden.requires_grad:
            self._batch.hidden_output = hidden
            self._batch.await_gradient(hidden, self._batch.keep_hidden_backprops)

    def _on_output(self, module: nn.Module, inputs: tuple, output: object) -> None:
        logits = getattr(output, "logits", None)
        if logits is None or not self._watches() or not self._batch.head_calls:
            return
        z_BTV, logits_BTV = self._batch.head_calls[0].z, logits.detach()
        if z_BTV.shape != logits_BTV.shape:
            return
        if self._transform is None:  # In the self-check; from then on it only must hold.
            self._transform = transform_between(z_BTV, logits_BTV, self.model.transform)
        self._batch.transform = self._transform
        deviation = transform_deviation(z_BTV, logits_BTV, self._transform)
        self._batch.checks.append(Check(deviation, 1.0, lambda _: UNKNOWN_TRANSFORM))

    def _on_fused_head(
        self, hidden_BTD: torch.Tensor, records: HeadRecords, log_probs_N: torch.Tensor
    ) -> None:
        if self._watches():
            self._batch.hidden_BTD, self._batch.head_records = hidden_BTD, records
            self._batch.product_dtype = product_dtype(hidden_BTD)
            if not log_probs_N.requires_grad:
                return  # A scoring pass, without backward.
            self._batch.await_gradient(log_probs_N, self._batch.keep_token_weights)

    def _records(self, batch: MicroBatch, backward: bool) -> Records:
        head, weight_B = head_records(
            batch, self.model.transform, self._sketches[LM_HEAD], self.backend, backward=backward
        )
        summaries = {LM_HEAD: head.summaries}
        dtypes = [batch.product_dtype]
        if backward:
            tokens_P, rows_P, delta_PD, padding_idx = batch.embedding_backprops()
            dtypes.append(delta_PD.dtype)
            delta_PD = at_least_float32(delta_PD)
            factor_B = 1 / (head.n_tokens_B * weight_B)
            # Positions that belong to no row have the factor 0.
            factor_J = torch.nn.functional.pad(factor_B, (0, 1)).to(delta_PD.dtype)
            summaries[EMBEDDING] = embedding_summaries(
                tokens_P,
                rows_P,
                delta_PD * factor_J[rows_P].unsqueeze(1),
                batch.tokens.n_rows,
                shape_of(self.model.embedding.weight)[0],
                self._sketches[EMBEDDING],
                padding_idx,
            )
        hidden_BTD = batch.hidden_BTD.reshape(*batch.labels_BT.shape, -1).float()
        n_positions_B = batch.tokens.sum_positions(torch.ones_like(hidden_BTD[..., :1]))
        return Records(
            indices=batch.indices,
            step=batch.step,
            dtype=min(dtypes, key=lambda dtype: dtype.itemsize),
            loss_B=head.loss_B,
            el2n_B=head.el2n_B,
            n_tokens_B=head.n_tokens_B,
            content_BD=batch.tokens.sum_positions(hidden_BTD) / n_positions_B,
            summaries=summaries,
            checks=tuple(batch.checks),
        )
