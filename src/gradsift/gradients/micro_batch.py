"""What the hooks see of one micro-batch, before it becomes records.

Shapes: B rows of the batch, T positions, I instances (more than B where rows are packed), D width,
V vocabulary, N flattened tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.fused import WEIGHT_TOLERANCE
from gradsift.gradients.head import HeadRecords
from gradsift.gradients.records import Check
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import IGNORED_LABEL


@dataclass
class _Call:
    backprops: torch.Tensor | None = field(default=None, kw_only=True)

    def keep(self, gradient: torch.Tensor) -> None:
        """Keep what the backward pass brings."""
        self.backprops = gradient.detach()


@dataclass
class EmbeddingCall(_Call):
    """One use of the embedding table, with the backprops at its output."""

    tokens: torch.Tensor
    padding_idx: int | None


@dataclass
class HeadCall(_Call):
    """One use of the head: its input, its output, and the backprops there."""

    x: torch.Tensor
    z: torch.Tensor


@dataclass
class MicroBatch:
    """A micro-batch, and what was seen of it.

    Attributes:
        indices: One integer an instance.
        step: Optimizer updates made before.
        differentiable: Whether its forward pass is one with gradients.
        head_calls: Where the head is called as a module or function.
        hidden_BTD: Input of the head.
        product_dtype: In which the head multiplies it.
        head_weights: Weight and bias of the head at that time, gathered if they are sharded.
        hidden_output: The head's input as the backward pass comes to it.
        hidden_backprops: The gradient of the loss there.
        head_records: Of the fused head.
        token_weights_N: Of each flattened token in the loss, as the fused head sees them.
        transform: What the model was seen to do to the head's output; None if it was not seen.
        awaited: Tensors whose gradients the backward pass is to bring.
    """

    indices: tuple[int, ...]
    step: int
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    tokens: ResponseTokens
    differentiable: bool = True
    embedding_calls: list[EmbeddingCall] = field(default_factory=list)
    head_calls: list[HeadCall] = field(default_factory=list)
    hidden_BTD: torch.Tensor | None = None
    product_dtype: torch.dtype | None = None
    head_weights: tuple[torch.Tensor, torch.Tensor | None] | None = None
    hidden_output: torch.Tensor | None = None
    hidden_backprops: torch.Tensor | None = None
    head_records: HeadRecords | None = None
    token_weights_N: torch.Tensor | None = None
    transform: HeadTransform | None = None
    awaited: list[torch.Tensor] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def await_gradient(self, tensor: torch.Tensor, keep: Callable[[torch.Tensor], None]) -> None:
        """Have a tensor's gradient kept when the backward pass comes to it."""
        tensor.register_hook(keep)
        self.awaited.append(tensor)

    def require_seen(self, *, backward: bool) -> None:
        """Refuse a micro-batch of which something needed was not seen."""
        seen = {"LM head": self.hidden_BTD is not None}
        if backward:
            from_calls = any(call.backprops is not None for call in self.head_calls)
            seen["LM head (backward)"] = (
                from_calls or self.token_weights_N is not None or self.hidden_backprops is not None
            )
            seen["input embedding (forward and backward)"] = any(
                call.backprops is not None for call in self.embedding_calls
            )
        missing = [name for name, was_seen in seen.items() if not was_seen]
        if missing:
            raise GradsiftError(
                f"step {self.step}: the hook on the {' and the '.join(missing)} was never called, "
                "so the gradients of this step were not recorded. Something replaced the model's "
                "forward pass; recording it is not supported."
            )

    # The loss is −Σ w·log p: whatever the trainer divides by (tokens of the batch, accumulation
    # steps, processes, a loss scaler) is in w; dividing by it leaves the row's own gradient.

    def keep_token_weights(self, gradient_N: torch.Tensor) -> None:
        """Keep the gradient of the log-likelihoods of the flattened tokens."""
        self.token_weights_N = -gradient_N.detach()

    def keep_hidden_backprops(self, gradient_BTD: torch.Tensor) -> None:
        """Keep the gradient at the head's input; nothing may come from elsewhere."""
        self.hidden_backprops = gradient_BTD.detach().reshape(*self.labels_BT.shape, -1)
        self._check_stray(self.hidden_backprops)

    def row_weights(self) -> torch.Tensor:
        """Return the one weight of each row's response tokens in the loss, [B].

        That they weigh alike is checked when the records are read.
        """
        tokens, weights_N = self.tokens, self.token_weights_N
        counts_N = tokens.targets_N != IGNORED_LABEL
        ends = []
        for fill, reduce in ((-torch.inf, "amax"), (torch.inf, "amin")):
            start_B = weights_N.new_full((tokens.n_rows,), fill)
            filled_N = weights_N.masked_fill(~counts_N, fill)
            ends.append(start_B.scatter_reduce_(0, tokens.rows_N, filled_N, reduce))
        high_B, low_B = ends
        spread_B = (high_B - low_B) / torch.maximum(high_B.abs(), low_B.abs())
        self.checks.append(Check(spread_B, WEIGHT_TOLERANCE, self._unequal))
        return high_B

    def _unequal(self, spread: float) -> str:
        return (
            f"step {self.step}: the loss weighs the response tokens of one row unequally, by "
            f"{spread:.2g} of the largest weight; an instance loss is their plain mean. Use the "
            "ordinary loss (loss_type: nll, no label smoothing)."
        )

    def embedding_backprops(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int | None]:
        """Return tokens [P], their rows (I for none) and backprops [P, D] of all uses of the table.

        And its padding index.
        """
        tokens, rows, deltas = [], [], []
        for call in self.embedding_calls:
            if call.backprops is None:
                continue  # Its output did not take part in the loss.
            tokens_BX, delta_BXD = call.tokens, call.backprops
            if self._is_time_major(call.tokens):
                tokens_BX, delta_BXD = tokens_BX.transpose(0, 1), delta_BXD.transpose(0, 1)
            tokens.append(tokens_BX.reshape(-1))
            rows.append(self._rows_of(tokens_BX))
            deltas.append(delta_BXD.reshape(-1, delta_BXD.shape[-1]))
        padding_idx = self.embedding_calls[0].padding_idx
        return torch.cat(tokens), torch.cat(rows), torch.cat(deltas), padding_idx

    def _rows_of(self, tokens_BX: torch.Tensor) -> torch.Tensor:
        if tokens_BX.numel() == self.input_ids_BT.numel():
            return self.tokens.rows_BT.flatten()
        if self.tokens.is_packed:
            raise GradsiftError(
                f"step {self.step}: packed rows, and the embedding table is used on "
                f"{tuple(tokens_BX.shape)} tokens where the batch has "
                f"{tuple(self.input_ids_BT.shape)}: whose they are cannot be told. Do not pack."
            )
        n_rows = len(self.input_ids_BT)
        rows_B = torch.arange(n_rows, device=tokens_BX.device)
        return rows_B.repeat_interleave(tokens_BX.numel() // n_rows)

    def _is_time_major(self, tokens: torch.Tensor) -> bool:
        n_rows, n_positions = self.input_ids_BT.shape
        if tokens.shape != (n_positions, n_rows):
            return False
        # A square batch tells only by what is in it.
        return n_rows != n_positions or not torch.equal(tokens, self.input_ids_BT)

    def head_call(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return input [B, T, D], output and backprops [B, T, V] of the head, called once.

        No backprops before the backward pass.
        """
        n_calls, shape = len(self.head_calls), self.labels_BT.shape
        if n_calls != 1 or self.head_calls[0].x.shape[:-1].numel() != shape.numel():
            raise GradsiftError(
                f"step {self.step}: the head was called {n_calls} times, the last time on "
                f"{tuple(self.head_calls[-1].x.shape)}; expected once, on [{shape[0]}, {shape[1]}, "
                "width]. Logits of some positions only are not supported."
            )
        call = self.head_calls[0]
        x_BTD, z_BTV, delta_BTV = (
            None if t is None else t.reshape(*shape, t.shape[-1])
            for t in (call.x, call.z, call.backprops)
        )
        if delta_BTV is not None:
            self._check_stray(delta_BTV)
        return x_BTD, z_BTV, delta_BTV

    def _check_stray(self, backprops_BTX: torch.Tensor) -> None:
        size_BT = torch.linalg.vector_norm(backprops_BTX, ord=torch.inf, dim=-1)
        predicts_BT = self.tokens.put(self.tokens.targets_N != IGNORED_LABEL)
        share_B = size_BT.masked_fill(predicts_BT, 0).amax(-1) / size_BT.amax()
        self.checks.append(Check(share_B, 1e-6, self._stray))

    def _stray(self, share: float) -> str:
        return (
            f"step {self.step}: the loss has terms at positions that predict no response token (up "
            f"to {share:.2g} of the largest). An instance loss is the mean over the tokens whose "
            "label is not -100: set the labels of everything that is trained on, also of prompts; "
            "where rows are padded on the left, the first token of a row has nothing before it "
            "that could predict it, so its label must be -100."
        )
