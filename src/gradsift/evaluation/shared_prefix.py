"""lm-eval's Hugging Face model, with the choices of a question sharing the question's pass.

lm-eval scores (question, choice) pairs one by one; a question with four choices is read four
times, and logits are computed where nobody looks. Here the questions of a batch are read once,
their key-value cache is repeated for each choice, and only the choices follow. It overrides a
private method of lm-eval for speed alone: five tasks with SmolLM2-135M took 1.7 times as long
without it on one thread of a CPU (four choices more than twice, two short sentences as long).

Shapes: B contexts, R continuations, C their tokens, T context tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from gradsift.evaluation.generation import padded_left, positions

TOKENS_IN_A_BATCH = 2048
MOST_CONTINUATIONS = 8
# The shortest row of a batch has at least this share of the longest one's tokens.
LEAST_SHARE = 0.8
TOLERANCE_NATS = 2e-3
SHARED = "shared prefixes"
LIKE_LM_EVAL = "as lm-eval does it"

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


@dataclass(frozen=True)
class _Item:
    context: tuple[int, ...]
    requests: list[int]


class SharedPrefixLM(HFLM):
    """lm-eval's model; equal results, fewer tokens.

    The first requests are scored by both methods. Where a model's cache cannot be repeated, or
    gives other results, all requests are scored as lm-eval does it. `method` says which it is, None
    before the first requests.
    """

    method: str | None = None

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        # Called by lm-eval, whose name this is.
        if self.method is None:
            self.method = self._chosen_method(requests)
        if self.method == LIKE_LM_EVAL or any(self._is_too_long(request) for request in requests):
            return super()._loglikelihood_tokens(requests, disable_tqdm=True)
        return self._shared(requests)

    def _is_too_long(self, request: Request) -> bool:
        return len(request[1]) + len(request[2]) > self.max_length

    def _chosen_method(self, requests: list[Request]) -> str:
        few = sorted(requests, key=lambda request: len(request[1]) + len(request[2]))[:4]
        expected = super()._loglikelihood_tokens(few, disable_tqdm=True)
        try:
            shared = self._shared(few)
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            # Models without such a cache: state-space models, and some with code of their own.
            return LIKE_LM_EVAL
        worst = max(abs(a[0] - b[0]) for a, b in zip(shared, expected, strict=True))
        return SHARED if worst <= TOLERANCE_NATS else LIKE_LM_EVAL

    def _shared(self, requests: list[Request]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(requests)
        for batch in _batches(_items(requests), requests):
            at = [i for item in batch for i in item.requests]
            continuations = [requests[i][2] for i in at]
            owner = [b for b, item in enumerate(batch) for _ in item.requests]
            scored = self._score([item.context for item in batch], continuations, owner)
            for i, answer in zip(at, scored, strict=True):
                answers[i] = answer
                # As lm-eval does, for those who give it a cache.
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return answers

    @torch.no_grad()
    def _score(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        owners: Sequence[int],
    ) -> list[Answer]:
        ids_BT, mask_BT = (part.to(self.device) for part in padded_left(contexts, 0))
        positions_BT = positions(mask_BT)
        read = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        answers: list[Answer] = [(0.0, False)] * len(continuations)
        for group in _of_like_length(continuations):
            owner_R = torch.tensor([owners[at] for at in group], device=self.device)
            longest = max(len(continuations[at]) for at in group)
            targets_RC = torch.zeros(len(group), longest, dtype=torch.long)
            for row, at in enumerate(group):
                targets_RC[row, : len(continuations[at])] = torch.tensor(list(continuations[at]))
            targets_RC = targets_RC.to(self.device)
            logits_RCV = read.logits[owner_R, -1:]
            if longest > 1:
                cache = copy.deepcopy(read.past_key_values)
                cache.batch_select_indices(owner_R)
                steps_C = torch.arange(longest - 1, device=self.device)
                # Padding after a continuation is seen by nothing that is looked at.
                mask_RX = torch.cat([mask_BT[owner_R], torch.ones_like(targets_RC[:, 1:])], dim=1)
                rest = self.model(
                    input_ids=targets_RC[:, :-1],
                    attention_mask=mask_RX,
                    position_ids=positions_BT[owner_R, -1:] + 1 + steps_C,
                    past_key_values=cache,
                    use_cache=True,
                )
                logits_RCV = torch.cat([logits_RCV, rest.logits], dim=1)
            for row, at in enumerate(group):
                answers[at] = _answer(logits_RCV[row], targets_RC[row, : len(continuations[at])])
        return answers


def _answer(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> Answer:
    logits_CV = logits_CV[: len(targets_C)]
    total = -F.cross_entropy(logits_CV.float(), targets_C, reduction="sum")
    return float(total), bool((logits_CV.argmax(-1) == targets_C).all())


def _items(requests: Sequence[Request]) -> list[_Item]:
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, _) in enumerate(requests):
        by_context.setdefault(tuple(context), []).append(i)
    items = []
    for context, indices in by_context.items():
        indices.sort(key=lambda i: len(requests[i][2]))
        for start in range(0, len(indices), MOST_CONTINUATIONS):
            items.append(_Item(context, indices[start : start + MOST_CONTINUATIONS]))
    # The largest first: if memory does not suffice, it shows at once.
    return sorted(items, key=lambda item: (-len(item.context), item.context, item.requests))


def _batches(items: Sequence[_Item], requests: Sequence[Request]) -> list[list[_Item]]:
    batches: list[list[_Item]] = []
    room = 0
    for item in items:
        size = len(item.context) + sum(len(requests[i][2]) for i in item.requests)
        if (
            not batches
            or size > room
            or len(item.context) < LEAST_SHARE * len(batches[-1][0].context)
        ):
            batches.append([])
            room = TOKENS_IN_A_BATCH
        batches[-1].append(item)
        room -= size
    return batches


def _of_like_length(continuations: Sequence[Sequence[int]]) -> list[list[int]]:
    # Their positions, in groups that need little padding.
    order = sorted(range(len(continuations)), key=lambda at: (-len(continuations[at]), at))
    groups: list[list[int]] = []
    for at in order:
        # The last token of a continuation is never read.
        n_read = len(continuations[at]) - 1
        if not groups or n_read < LEAST_SHARE * (len(continuations[groups[-1][0]]) - 1):
            groups.append([])
        groups[-1].append(at)
    return groups
