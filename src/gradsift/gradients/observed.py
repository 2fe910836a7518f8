"""What the hooks see of one micro-batch, before it becomes records.

Shapes: B rows, T positions, D width, V vocabulary, N response tokens of one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gradsift.gradients.fused import IGNORED_LABEL, HeadRow
from gradsift.gradients.head import HeadTransform


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
        indices: One integer a row.
        step: Optimizer updates made before.
        input_ids_BT: The tokens.
        labels_BT: The same where a token belongs to the response, else -100.
        mask_BT: 0 on padding.
        embedding_calls: Uses of the table in the forward pass.
        head_calls: Uses of the head, where it is called as a module or function.
        hidden_BTD: Input of the head.
        rows: What the fused head says of each row.
        token_weights_BT: Weight of each response token in the loss, where it was seen.
        transform: What the model was seen to do to the head's output; None if it was not seen.
        awaited: Tensors whose gradients the backward pass is to bring.
    """

    indices: tuple[int, ...]
    step: int
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor
    embedding_calls: list[EmbeddingCall] = field(default_factory=list)
    head_calls: list[HeadCall] = field(default_factory=list)
    hidden_BTD: torch.Tensor | None = None
    rows: list[HeadRow] | None = None
    token_weights_BT: torch.Tensor | None = None
    transform: HeadTransform | None = None
    awaited: list[torch.Tensor] = field(default_factory=list)

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
            seen["LM head (backward)"] = from_calls or self.token_weights_BT is not None
            seen["input embedding (forward and backward)"] = any(
                call.backprops is not None for call in self.embedding_calls
            )
        missing = [name for name, was_seen in seen.items() if not was_seen]
        if missing:
            raise ValueError(
                f"step {self.step}: the hook on the {' and the '.join(missing)} was never called, "
                "so the gradients of this step were not recorded. Something replaced the model's "
                "forward pass; recording it is not supported."
            )

    def keep_token_weights(self, gradient_BT: torch.Tensor) -> None:
        """Keep the gradient of the log-likelihoods."""
        # The loss is −Σ w·log p: whatever the trainer divides by (tokens of the batch, accumulation
        # steps, processes, a loss scaler) is in w; dividing by it leaves the row's own gradient.
        self.token_weights_BT = -gradient_BT.detach()

    def response(self, row: int) -> torch.Tensor:
        """Return which positions predict a response token, [T-1] bool."""
        return self.labels_BT[row, 1:] != IGNORED_LABEL

    def token_weight(self, row: int) -> torch.Tensor:
        """Return the one weight of a row's response tokens in the loss.

        Args:
            row: Of the batch.

        Returns:
            A 0-d tensor.

        Raises:
            ValueError: If the tokens weigh unequally.
        """
        weights_N = self.token_weights_BT[row][self.response(row)]
        low, high = weights_N.aminmax()
        if high - low > 1e-5 * high.abs():
            raise ValueError(
                f"step {self.step}: the loss weighs the response tokens of one row between "
                f"{float(low):.3g} and {float(high):.3g}; an instance loss is their plain mean. "
                "Use the ordinary loss (loss_type: nll, no label smoothing)."
            )
        return high

    def embedding_backprops(self, row: int) -> tuple[torch.Tensor, torch.Tensor, int | None]:
        """Return tokens and backprops of all uses of the table for one row, end to end.

        Args:
            row: Of the batch.

        Returns:
            tokens_T, delta_TD and the padding index of the table.
        """
        tokens, deltas = [], []
        for call in self.embedding_calls:
            if call.backprops is None:
                continue  # Its output did not take part in the loss.
            time_major = call.tokens.shape != self.input_ids_BT.shape or not torch.equal(
                call.tokens, self.input_ids_BT
            )
            time_major = time_major and call.tokens.shape == self.input_ids_BT.T.shape
            time_major = time_major and torch.equal(call.tokens, self.input_ids_BT.T)
            at = (slice(None), row) if time_major else row
            tokens.append(call.tokens[at].flatten())
            deltas.append(call.backprops[at].reshape(-1, call.backprops.shape[-1]))
        return torch.cat(tokens), torch.cat(deltas), self.embedding_calls[0].padding_idx

    def head_call(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return input, output and backprops of the head where a row predicts response tokens.

        Args:
            row: Of the batch.

        Returns:
            x_ND, z_NV and delta_NV (None before the backward pass).

        Raises:
            ValueError: If the head was not called once on all positions.
        """
        n_calls, shape = len(self.head_calls), self.labels_BT.shape
        if n_calls != 1 or self.head_calls[0].x.shape[:-1].numel() != shape.numel():
            raise ValueError(
                f"step {self.step}: the head was called {n_calls} times, the last time on "
                f"{tuple(self.head_calls[-1].x.shape)}; expected once, on [{shape[0]}, {shape[1]}, "
                "width]. Logits of some positions only are not supported."
            )
        call, response_T = self.head_calls[0], self.response(row)
        tensors = (call.x, call.z, call.backprops)
        return tuple(
            None if t is None else t.reshape(*shape, t.shape[-1])[row, :-1][response_T]
            for t in tensors
        )
