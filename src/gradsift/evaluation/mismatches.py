"""Responses after the prompts of other rows: what one that does not fit its prompt is like."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from gradsift.data.tokenization import Instance
from gradsift.seals import short_sha256
from gradsift.terms import IGNORED_LABEL

# Prompts that share more of their tokens than this are near copies.
_NEAR_COPY = 0.5
# Tokens in more than this share of the prompts are of the template, or of nobody's question.
_EVERYWHERE = 0.5
_TRIES = 50
# Rows whose prompt more than this share of the rows have are not paired.
_MOST_COMMON = 0.5
# A row's prompts, turn by turn.
Prompts = Sequence[Sequence[int]]


def mismatched_instances(
    instances: Sequence[Instance],
    max_length: int,
    *,
    seed: int,
    most: int | None = None,
    unlike: Sequence[Instance | None] | None = None,
) -> list[Instance | None]:
    """Give each response the prompt of another row, or None where there is no other prompt.

    No row keeps its own prompt, or one like it: the same, or a near copy; nor is it one like that
    of `unlike`, if that is given, and there is none where that has none. Rows with a prompt that
    more than half of the rows have get none: too few others are there to say what it is worth.
    Of several turns each prompt is replaced, the answers stay. A response stays whole; a prompt
    that leaves too little room for it within `max_length` loses its middle. Drawn with the seed and
    by what rows say, not by what they are called. Of more than `most` rows so many are drawn; the
    others have None.
    """
    turns = [_turns(item) for item in instances]
    usable = [i for i, (prompts, _) in enumerate(turns) if prompts and prompts[0]]
    usable.sort(key=lambda i: short_sha256(str(instances[i].input_ids)))
    drawn = random.Random(seed)
    drawn.shuffle(usable)
    usable = usable[:most]
    found: list[Instance | None] = [None] * len(instances)
    prompts = [turns[i][0] for i in usable]
    others = None
    if unlike is not None:
        others = [None if (one := unlike[i]) is None else _turns(one)[0] for i in usable]
    for i, j in _partners(prompts, others, drawn).items():
        row, other = usable[i], usable[j]
        found[row] = _put_together(instances[row], turns[row][1], turns[other][0], max_length)
    return found


def _turns(item: Instance) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts and answers in turn, as many of the one as of the other."""
    prompts, answers = [], []
    pairs = zip(item.input_ids, item.labels, strict=True)
    for is_answer, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED_LABEL):
        tokens = [token for token, _ in group]
        if is_answer and len(prompts) == len(answers):
            prompts.append([])
        (answers if is_answer else prompts).append(tokens)
    return prompts[: len(answers)], answers


def _partners(
    prompts: Sequence[Prompts], others: Sequence[Prompts | None] | None, drawn: random.Random
) -> dict[int, int]:
    """Return whose prompts each row gets: a permutation, less the rows for which there are none.

    Where there are `others`, none gets one like its own of them.
    """
    n = len(prompts)
    words = list(map(_tokens, prompts))
    counts = Counter(token for tokens in words for token in tokens)
    everywhere = {token for token, count in counts.items() if count > _EVERYWHERE * n}
    words = [tokens - everywhere for tokens in words]
    taken = [other and _tokens(other) - everywhere for other in others or [[]] * n]
    shared = Counter(map(str, prompts))
    paired = [shared[str(one)] <= _MOST_COMMON * n for one in prompts]

    def alike(i: int, j: int) -> bool:
        if i == j or prompts[i] == prompts[j] or _near(words[i], words[j]):
            return True
        return others is not None and (
            prompts[j] == others[i] or _near(taken[i] or set(), words[j])
        )

    partner = [(i + 1) % n for i in range(n)]
    for i in range(n):
        if not alike(i, partner[i]):
            continue
        for j in drawn.sample(range(n), min(_TRIES, n)):
            if not alike(i, partner[j]) and not alike(j, partner[i]):
                partner[i], partner[j] = partner[j], partner[i]
                break
    if others is not None:
        paired = [one and other is not None for one, other in zip(paired, others, strict=True)]
    return {i: j for i, j in enumerate(partner) if paired[i] and not alike(i, j)}


def _tokens(prompts: Prompts) -> set[int]:
    return {token for prompt in prompts for token in prompt}


def _near(one: set[int], other: set[int]) -> bool:
    return len(one & other) > _NEAR_COPY * len(one | other)


def _put_together(
    item: Instance, answers: list[list[int]], prompts: list[list[int]], max_length: int
) -> Instance:
    # Where the other row has fewer turns, its later ones come again.
    later = prompts[1:] or prompts
    prompts = [prompts[0], *(later[k % len(later)] for k in range(len(answers) - 1))]
    n, total = len(prompts), sum(map(len, prompts))
    room = max_length - sum(map(len, answers))
    ids, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        if total > room:
            prompt = _shortened(prompt, 1 + (len(prompt) - 1) * (room - n) // (total - n))
        ids += [*prompt, *answer]
        labels += [*[IGNORED_LABEL] * len(prompt), *answer]
    return Instance(item.instance_id, ids, labels)


def _shortened(tokens: list[int], n: int) -> list[int]:
    """Leave out the middle: a template's marks stand at both ends."""
    begin = n // 2
    return [*tokens[:begin], *tokens[len(tokens) - (n - begin) :]]
