"""Rows of different lengths in one batch, where the model allows it.

Shapes: B rows, T positions, V vocabulary.


How likely a model finds given texts: held-out responses, and general text.

Shapes: B rows, T positions, K of them from the first label on, V vocabulary.



Losses that a gradient capture does not need: of the response alone, and of the whole text.

Shapes: B rows, T positions, V vocabulary.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.terms import IGNORED_LABEL

TOLERANCE = 1e-2


def padded_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [B, T] tokens and attention mask, padded on the left.

    Args:
        rows: Of any lengths, at least one.
        pad: What is put before the shorter ones.

    Returns:
        Tokens, and 1 where there is one.
    """
    longest = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for at, row in enumerate(rows):
        ids_BT[at, longest - len(row) :] = torch.tensor(list(row))
        mask_BT[at, longest - len(row) :] = 1
    return ids_BT, mask_BT


def last_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], n_kept: int) -> torch.Tensor:
    """Run rows in one batch, padded on the left.

    Args:
        model: In evaluation mode.
        rows: Tokens of each.
        n_kept: Positions, from the end, whose logits are wanted.

    Returns:
        [B, n_kept, V] logits.
    """
    ids_BT, mask_BT = padded_left(rows, 0)
    return model(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0).to(model.device),
        use_cache=False,
        logits_to_keep=n_kept,
    ).logits[:, -n_kept:]


@torch.no_grad()
def padding_is_exact(model: PreTrainedModel, row: Sequence[int]) -> bool:
    """Say whether a row has the same logits alone and padded on the left.

    It has not where the state of a recurrent model runs through the padding, and where a model
    takes no positions.

    Args:
        model: In evaluation mode.
        row: At least two tokens.

    Returns:
        Whether rows may share a batch.
    """
    short = row[: max(2, len(row) // 2)]
    try:
        together = last_logits(model, [row, short], 1)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    alone = model(input_ids=torch.tensor([list(short)], device=model.device)).logits[0, -1]
    gap = (together[1, -1].float() - alone.float()).abs().max()
    return bool(gap <= TOLERANCE * (1 + alone.float().abs().max()))


TOKENS_IN_A_BATCH = 2048
WINDOW_TOKENS = 512


def response_losses(
    model: PreTrainedModel,
    instances: Sequence[Instance],
) -> list[float]:
    """Compute the instance loss of held-out rows.

    Args:
        model: In evaluation mode.
        instances: At least one.

    Returns:
        Mean negative log-likelihood of each row's response tokens, in nats.
    """
    rows = [(item.input_ids, item.labels) for item in instances]
    sums = summed_losses(model, rows)
    return [total / item.n_response_tokens for total, item in zip(sums, instances, strict=True)]


def windows_of(
    text: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int = WINDOW_TOKENS
) -> list[list[int]]:
    """Cut a text into windows of tokens; what is left over at its end is left out.

    Args:
        text: The text.
        tokenizer: Of the model.
        n_tokens: Of a window.

    Returns:
        The windows; a text that is shorter than one is one.

    Raises:
        ValueError: If the text has fewer than two tokens.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise GradsiftError(f"a general text of {len(ids)} tokens: nothing can be predicted in it.")
    whole = [ids[at : at + n_tokens] for at in range(0, len(ids) - n_tokens + 1, n_tokens)]
    return whole or [ids]


def window_losses(
    model: PreTrainedModel,
    windows: Sequence[Sequence[int]],
) -> list[float]:
    """Compute the loss of each window, every token but its first predicted from those before it.

    Args:
        model: In evaluation mode.
        windows: From `windows_of`.

    Returns:
        Mean negative log-likelihood for each token, in nats; perplexity is exp of their mean.
    """
    rows = [(list(window), list(window)) for window in windows]
    sums = summed_losses(model, rows)
    return [total / (len(window) - 1) for total, window in zip(sums, windows, strict=True)]


@torch.no_grad()
def summed_losses(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[float]:
    """Sum the negative log-likelihoods of the labelled tokens of each row.

    Args:
        model: In evaluation mode.
        rows: Tokens and labels of each.

    Returns:
        Nats, in order.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
    sums = [0.0] * len(rows)
    exact = padding_is_exact(model, rows[order[0]][0])
    start = 0
    while start < len(order):
        longest = len(rows[order[start]][0])
        batch = order[start : start + (max(1, TOKENS_IN_A_BATCH // longest) if exact else 1)]
        start += len(batch)
        losses = _batch_losses(model, [rows[i] for i in batch], padded=exact)
        for i, total in zip(batch, losses, strict=True):
            sums[i] = total
    return sums


def _batch_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, padded: bool
) -> list[float]:
    # Padded on the left, all rows end together, and logits are computed from the first label on.
    # A row's own first token has nothing before it; its label never counts.
    labels_BT, _ = padded_left([[IGNORED_LABEL, *labels[1:]] for _, labels in rows], IGNORED_LABEL)
    n_kept = labels_BT.shape[1] - int((labels_BT != IGNORED_LABEL).any(0).nonzero()[0]) + 1
    tokens = [tokens for tokens, _ in rows]
    if padded:
        logits_BKV = last_logits(model, tokens, n_kept)
    else:
        ids_1T = torch.tensor([list(tokens[0])], device=model.device)
        logits_BKV = model(input_ids=ids_1T).logits[:, -n_kept:]
    targets_BK = labels_BT[:, 1 - n_kept :].to(model.device)
    return [
        float(
            F.cross_entropy(
                logits_KV.float(), targets_K, ignore_index=IGNORED_LABEL, reduction="sum"
            )
        )
        for logits_KV, targets_K in zip(logits_BKV[:, :-1], targets_BK, strict=True)
    ]


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
        [token for token, label in _labelled(instance) if label != IGNORED_LABEL]
        for instance in instances
    ]
    of_whole, of_responses = _token_losses(model, whole), _token_losses(model, responses)
    found = []
    for instance, all_T, alone_T in zip(instances, of_whole, of_responses, strict=True):
        answered = torch.tensor([label != IGNORED_LABEL for label in instance.labels[1:]])
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
