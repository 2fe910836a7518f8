"""Losses that a gradient capture does not need: of the response alone, and of the whole text.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from gradsift.data.instances import Instance
from gradsift.data.rendering import IGNORED


@dataclass(frozen=True)
class TextLosses:
    """Mean negative log-likelihoods of one instance, in nats for each token.

    Attributes:
        response: Of the response tokens, after the prompt.
        alone: Of the same response tokens, with nothing before the response.
        text: Of all tokens of prompt and response but the first.
    """

    response: float
    alone: float
    text: float


def text_losses(model: PreTrainedModel, instances: Sequence[Instance]) -> list[TextLosses]:
    """Compute the losses of one batch, without gradients, with the model as it is.

    The first response token cannot be predicted when nothing stands before it, so it counts neither
    for `alone` nor for `response`; an instance of a single response token counts it for `response`
    and has NaN for `alone`. A response in several turns is put together.

    Args:
        model: In evaluation mode.
        instances: At least one.

    Returns:
        The losses, in order.
    """
    whole = [instance.input_ids for instance in instances]
    responses = [
        [token for token, label in _labelled(instance) if label != IGNORED]
        for instance in instances
    ]
    of_whole, of_responses = _token_losses(model, whole), _token_losses(model, responses)
    found = []
    for instance, all_T, alone_T in zip(instances, of_whole, of_responses, strict=True):
        answered = torch.tensor([label != IGNORED for label in instance.labels[1:]])
        response_T = all_T[answered]
        if len(alone_T):
            response_T = response_T[len(response_T) - len(alone_T) :]
        found.append(
            TextLosses(
                response=float(response_T.mean()),
                alone=float(alone_T.mean()) if len(alone_T) else float("nan"),
                text=float(all_T.mean()),
            )
        )
    return found


def _labelled(instance: Instance) -> zip:
    return zip(instance.input_ids, instance.labels, strict=True)


@torch.no_grad()
def _token_losses(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    # For each row, the loss of each token but the first, in float64 on the CPU.
    device = next(model.parameters()).device
    longest = max(len(row) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for at, row in enumerate(rows):
        ids_BT[at, : len(row)] = torch.tensor(row)
        mask_BT[at, : len(row)] = 1
    logits_BTV = model(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).logits
    losses = []
    for at, row in enumerate(rows):
        targets_T = ids_BT[at, 1 : len(row)].to(device)
        logits_TV = logits_BTV[at, : len(row) - 1].float()
        losses.append(F.cross_entropy(logits_TV, targets_T, reduction="none").double().cpu())
    return losses
