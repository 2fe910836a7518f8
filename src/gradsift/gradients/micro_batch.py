"""What the hooks see of one micro-batch, before it becomes records.

Shapes: B rows of the batch, T positions, I instances (more than B where rows are packed), D width,
V vocabulary, N laid-out tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gradsift.errors import GradsiftError
from gradsift.gradients.fused import WEIGHT_TOLERANCE
from gradsift.gradients.head import HeadRows
from gradsift.gradients.records import Check
from gradsift.gradients.tokens import IGNORED_LABEL, ResponseTokens
from gradsift.gradients.transform import HeadTransform


@dataclass
class EmbeddingCall:
    """One use of the embedding table; the backprops come in the backward pass."""

    tokens: torch.Tensor
    padding_idx: int | None
    backprops: torch.Tensor | None = None

    def keep(self, gradient: torch.Tensor) -> None:
        """Keep what the backward pass brings."""
        self.backprops = gradient.detach()


@dataclass
class HeadCall:
    """One use of the head: its input, its output, and the backprops at its output."""

    x: torch.Tensor
    z: torch.Tensor
    backprops: torch.Tensor | None = None

    def keep(self, gradient: torch.Tensor) -> None:
        """Keep what the backward pass brings."""
        self.backprops = gradient.detach()


@dataclass
class MicroBatch:
    """A micro-batch, and what was seen of it.

    Attributes:
        indices: One integer an instance.
        step: Optimizer updates made before.
        input_ids_BT: The tokens.
        labels_BT: The same where a token belongs to the response, else -100.
        tokens: Where the instances and their response tokens are.
        differentiable: Whether its forward pass is one with gradients.
        embedding_calls: Uses of the table in the forward pass.
        head_calls: Uses of the head, where it is called as a module or function.
        hidden_BTD: Input of the head.
        product_dtype: In which the head multiplies it.
        head_weights: Weight and bias of the head at that time, gathered if they are sharded.
        hidden_output: The head's input as the backward pass comes to it.
        hidden_backprops: The gradient of the loss there.
        rows: What the fused head says of each row.
        token_weights_N: Of each laid-out token in the loss, where they were seen; from log-probs.
        transform: What the model was seen to do to the head's output; None if it was not seen.
        awaited: Tensors whose gradients the backward pass is to bring.
        checks: What must hold.
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
    rows: HeadRows | None = None
    token_weights_N: torch.Tensor | None = None
    transform: HeadTransform | None = None
    awaited: list[torch.Tensor] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def await_gradient(self, tensor: torch.Tensor, keep: Callable[[torch.Tensor], None]) -> None:
        """Have a tensor's gradient kept when the backward pass comes to it."""
        tensor.register_hook(keep)
        self.awaited.append(tensor)

    def require_seen(self, *, backward: bool) -> None:
        """Refuse a micro-batch of which something needed was not seen.

        Args:
            backward: Whether there was a backward pass.

        Raises:
            ValueError: Naming what was not seen.
        """
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
        """Keep the gradient of the log-likelihoods of the laid-out tokens."""
        self.token_weights_N = -gradient_N.detach()

    def keep_hidden_backprops(self, gradient_BTD: torch.Tensor) -> None:
        """Keep the gradient at the head's input; nothing may come from elsewhere."""
        self.hidden_backprops = gradient_BTD.detach().reshape(*self.labels_BT.shape, -1)
        size_BT = torch.linalg.vector_norm(self.hidden_backprops, ord=torch.inf, dim=-1)
        self._require_nothing_else(size_BT.masked_fill(self.counted_BT(), 0), size_BT)

    def counted_BT(self) -> torch.Tensor:
        """Return the positions that predict a response token, [B, T] bool."""
        return self.tokens.put(self.tokens.targets_N != IGNORED_LABEL)

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
        """Return tokens, rows and backprops of all uses of the table, end to end.

        Returns:
            tokens [P], rows [P] (I for none), backprops [P, D] and the padding index of the table.

        Raises:
            ValueError: If the table was used at other positions than the batch's and these cannot
                be told from rows.
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
        """Return input [B, T, D], output and backprops [B, T, V] of the head.

        Returns:
            The three; no backprops before the backward pass.

        Raises:
            ValueError: If the head was not called once on all positions.
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
            size_BT = torch.linalg.vector_norm(delta_BTV, ord=torch.inf, dim=-1)
            self._require_nothing_else(size_BT.masked_fill(self.counted_BT(), 0), size_BT)
        return x_BTD, z_BTV, delta_BTV

    def _require_nothing_else(self, stray: torch.Tensor, all_weights: torch.Tensor) -> None:
        share = stray.abs().amax(-1) / all_weights.abs().amax()
        self.checks.append(Check(share, 1e-6, self._stray))

    def _stray(self, share: float) -> str:
        return (
            f"step {self.step}: the loss has terms at positions that predict no response token (up "
            f"to {share:.2g} of the largest). An instance loss is the mean over the tokens whose "
            "label is not -100: set the labels of everything that is trained on, also of prompts; "
            "where rows are padded on the left, the first token of a row has nothing before it "
            "that could predict it, so its label must be -100."
        )
