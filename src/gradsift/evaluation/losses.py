"""How likely a model finds given texts: held-out responses, general text, responses without prompt.

Shapes: B rows, T positions, K of them from the one before the first label on, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.attention import without_cudnn_attention
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.terms import IGNORED_LABEL

TOKENS_IN_A_BATCH = 2048
WINDOW_TOKENS = 512


def response_losses(model: PreTrainedModel, instances: Sequence[Instance]) -> list[float]:
    """Return the mean negative log-likelihood of each row's response tokens, in nats."""
    return _means(token_losses(model, [(item.input_ids, item.labels) for item in instances]))


def windows_of(
    text: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int = WINDOW_TOKENS
) -> list[list[int]]:
    """Cut a text into windows of tokens; what is left over at its end is left out.

    A text that is shorter than one window is one.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise GradsiftError(f"a general text of {len(ids)} tokens: nothing can be predicted in it.")
    whole = [ids[at : at + n_tokens] for at in range(0, len(ids) - n_tokens + 1, n_tokens)]
    return whole or [ids]


def window_losses(model: PreTrainedModel, windows: Sequence[Sequence[int]]) -> list[float]:
    """Return the mean loss of each window, but for its first token, in nats (log perplexity)."""
    return _means(token_losses(model, [(window, window) for window in windows]))


@dataclass(frozen=True)
class ReferenceLosses:
    """Mean negative log-likelihoods of one instance, in nats for each token.

    Attributes:
        response: Of the response tokens, after the prompt.
        alone: Of the response without its prompt. Where the tokenizer begins a text with a token
            of its own, that stands before it; else nothing does, and the first response token does
            not count.
        text: Of all tokens of prompt and response but the first.
        mismatched: Of the response tokens, after another row's prompt; NaN where there is none.
        mismatched_again: The same after the prompt of yet another row.
    """

    response: float
    alone: float
    text: float
    mismatched: float
    mismatched_again: float


def instance_losses(
    model: PreTrainedModel,
    instances: Sequence[Instance],
    mismatched: Sequence[Sequence[Instance | None]],
    first: Sequence[int] = (),
) -> list[ReferenceLosses]:
    """Compute the losses that a capture does not record, with the model as it is.

    `response` and `alone` are those of the instruction-following difficulty (IFD) as its authors
    compute it: the first response token counts after the prompt, and does not count where nothing
    stands before it; without a token that counts `alone` is NaN. A response in several turns is put
    together.

    Args:
        model: The model.
        instances: Rows.
        mismatched: Each row's response after another row's prompt, as `mismatched_instances` makes
            them, and the same after yet another's.
        first: What the tokenizer puts before any text.
    """
    texts_T = token_losses(model, [(item.input_ids, item.input_ids) for item in instances])
    response_T = [
        losses_T[torch.tensor(item.labels[1:]) != IGNORED_LABEL]
        for item, losses_T in zip(instances, texts_T, strict=True)
    ]
    responses = [[label for label in item.labels if label != IGNORED_LABEL] for item in instances]
    # A row without a prompt begins with that token already.
    alone = [
        tokens if tokens[: len(first)] == list(first) else [*first, *tokens] for tokens in responses
    ]
    alone_T = token_losses(model, [(tokens, tokens) for tokens in alone])
    columns = [_means(losses) for losses in (response_T, alone_T, texts_T)]
    for pairs in mismatched:
        there = [pair for pair in pairs if pair is not None]
        means = iter(response_losses(model, there))
        columns.append([math.nan if pair is None else next(means) for pair in pairs])
    return [ReferenceLosses(*row) for row in zip(*columns, strict=True)]


@without_cudnn_attention()
@torch.no_grad()
def token_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[torch.Tensor]:
    """Return the negative log-likelihoods of each row's labelled tokens, in nats, float64.

    A row is its tokens and labels. Its first token has nothing before it and never counts. Batches
    are padded on the right, where no causal model sees it.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
    losses = [torch.empty(0)] * len(rows)
    start = 0
    while start < len(order):
        longest = len(rows[order[start]][0])
        batch = order[start : start + max(1, TOKENS_IN_A_BATCH // longest)]
        start += len(batch)
        for i, losses_T in zip(batch, _batch_losses(model, [rows[i] for i in batch]), strict=True):
            losses[i] = losses_T
    return losses


def _batch_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[torch.Tensor]:
    longest = len(rows[0][0])
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, IGNORED_LABEL)
    mask_BT = torch.zeros_like(ids_BT)
    for row, (tokens, labels) in enumerate(rows):
        ids_BT[row, : len(tokens)] = torch.tensor(tokens)
        labels_BT[row, 1 : len(tokens)] = torch.tensor(labels[1:])
        mask_BT[row, : len(tokens)] = 1
    labelled = (labels_BT != IGNORED_LABEL).any(0).nonzero()
    if not len(labelled):
        return [torch.empty(0, dtype=torch.float64)] * len(rows)
    n_kept = longest - int(labelled[0]) + 1
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # Under peft.
    takes = inspect.signature(plain.forward).parameters
    logits_BKV = model(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        use_cache=False,
        **({"logits_to_keep": n_kept} if "logits_to_keep" in takes else {}),
    ).logits[:, -n_kept:]
    losses = []
    for logits_KV, labels_T in zip(logits_BKV, labels_BT.to(model.device), strict=True):
        targets_K = labels_T[1 - n_kept :]
        counts_K = targets_K != IGNORED_LABEL
        losses_T = F.cross_entropy(
            logits_KV[:-1][counts_K].float(), targets_K[counts_K], reduction="none"
        )
        losses.append(losses_T.cpu().double())
    return losses


def _means(losses: Sequence[torch.Tensor]) -> list[float]:
    return [float(losses_T.mean()) for losses_T in losses]
