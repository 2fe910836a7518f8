"""lm-eval's Hugging Face model, with the choices of a question sharing the question's pass.

lm-eval scores (question, choice) pairs one by one; a question with four choices is read four
times, and logits are computed where nobody looks. Here the questions of a batch are read once,
their key-value cache is repeated for each choice, and only the choices follow.

Shapes: B contexts, R continuations, C their tokens, T context tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from gradsift.evaluation.padding import padded_left

TOKENS_IN_A_BATCH = 2048
MOST_CONTINUATIONS = 8
TOLERANCE_NATS = 2e-3
LIKE_LM_EVAL = "as lm-eval does it"

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


@dataclass(frozen=True)
class _Item:
    context: tuple[int, ...]
    requests: list[int]
    longest: int

    @property
    def n_tokens(self) -> int:
        return len(self.context) + self.longest


class SharedPrefixLM(HFLM):
    """lm-eval's model; equal results, fewer tokens.

    The first requests are scored in both ways. Where a model's cache cannot be repeated, or gives
    other results, all requests are scored as lm-eval does it.

    Attributes:
        way: How requests are scored, for the record; None before the first ones.
        on_progress: Called with the number of requests answered.
    """

    way: str | None = None
    on_progress: Callable[[int], None] = staticmethod(lambda n: None)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        # Called by lm-eval, whose name this is.
        if self.way is None:
            self.way = self._tried(requests)
        if self.way == LIKE_LM_EVAL or any(self._is_too_long(request) for request in requests):
            return super()._loglikelihood_tokens(requests, disable_tqdm=True)
        return self._shared(requests)

    def _is_too_long(self, request: Request) -> bool:
        return len(request[1]) + len(request[2]) > self.max_length

    def _tried(self, requests: list[Request]) -> str:
        few = sorted(requests, key=lambda request: len(request[1]) + len(request[2]))[:4]
        expected = super()._loglikelihood_tokens(few, disable_tqdm=True)
        try:
            found = self._shared(few)
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
        worst = max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True))
        return "shared prefixes" if worst <= TOLERANCE_NATS else LIKE_LM_EVAL

    def _shared(self, requests: list[Request]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(requests)
        n_done = 0
        for batch in _batches(_items(requests)):
            at = [i for item in batch for i in item.requests]
            continuations = [requests[i][2] for i in at]
            owner = [b for b, item in enumerate(batch) for _ in item.requests]
            scored = self._score(
                [item.context for item in batch], continuations, torch.tensor(owner)
            )
            for i, answer in zip(at, scored, strict=True):
                answers[i] = answer
                # As lm-eval does, for those who give it a cache.
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
            n_done += len(at)
            self.on_progress(n_done)
        return answers

    @torch.no_grad()
    def _score(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        owner_R: torch.Tensor,
    ) -> list[Answer]:
        ids_BT, mask_BT = (part.to(self.device) for part in padded_left(contexts, 0))
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        read = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        owner_R = owner_R.to(self.device)
        first_R1V = read.logits[owner_R, -1:]
        longest = max(len(tokens) for tokens in continuations)
        targets_RC = torch.zeros(len(continuations), longest, dtype=torch.long)
        for at, tokens in enumerate(continuations):
            targets_RC[at, : len(tokens)] = torch.tensor(list(tokens))
        targets_RC = targets_RC.to(self.device)
        logits_RCV = first_R1V
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
            logits_RCV = torch.cat([first_R1V, rest.logits], dim=1)
        log_probs_RC = -F.cross_entropy(
            logits_RCV.float().flatten(0, 1), targets_RC.flatten(), reduction="none"
        ).view_as(targets_RC)
        greedy_RC = logits_RCV.argmax(-1) == targets_RC
        return [
            (float(log_probs_RC[at, : len(tokens)].sum()), bool(greedy_RC[at, : len(tokens)].all()))
            for at, tokens in enumerate(continuations)
        ]


def _items(requests: Sequence[Request]) -> list[_Item]:
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, _) in enumerate(requests):
        by_context.setdefault(tuple(context), []).append(i)
    items = []
    for context, indices in by_context.items():
        indices.sort(key=lambda i: len(requests[i][2]))
        for start in range(0, len(indices), MOST_CONTINUATIONS):
            some = indices[start : start + MOST_CONTINUATIONS]
            items.append(_Item(context, some, max(len(requests[i][2]) for i in some)))
    return sorted(items, key=lambda item: (-item.n_tokens, item.context, item.requests))


def _batches(items: Sequence[_Item]) -> list[list[_Item]]:
    batches: list[list[_Item]] = []
    room = 0
    for item in items:
        size = len(item.context) + item.longest * len(item.requests)
        if not batches or size > room:
            batches.append([])
            room = TOKENS_IN_A_BATCH
        batches[-1].append(item)
        room -= size
    return batches
