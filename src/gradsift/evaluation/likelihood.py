"""How likely a model finds given texts: held-out responses, and general text.

Shapes: B rows, T positions, K of them from the first label on, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.data.instances import Instance
from gradsift.data.rendering import IGNORED
from gradsift.evaluation.padding import last_logits, padded_left, padding_is_exact

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
        raise ValueError(f"a general text of {len(ids)} tokens: nothing can be predicted in it.")
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
    labels_BT, _ = padded_left([[IGNORED, *labels[1:]] for _, labels in rows], IGNORED)
    n_kept = labels_BT.shape[1] - int((labels_BT != IGNORED).any(0).nonzero()[0]) + 1
    tokens = [tokens for tokens, _ in rows]
    if padded:
        logits_BKV = last_logits(model, tokens, n_kept)
    else:
        ids_1T = torch.tensor([list(tokens[0])], device=model.device)
        logits_BKV = model(input_ids=ids_1T).logits[:, -n_kept:]
    targets_BK = labels_BT[:, 1 - n_kept :].to(model.device)
    return [
        float(F.cross_entropy(logits_KV.float(), targets_K, ignore_index=IGNORED, reduction="sum"))
        for logits_KV, targets_K in zip(logits_BKV[:, :-1], targets_BK, strict=True)
    ]
