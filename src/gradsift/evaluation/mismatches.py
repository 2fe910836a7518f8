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


def mismatched_instances(
    instances: Sequence[Instance], max_length: int, *, seed: int, most: int | None = None
) -> list[Instance | None]:
    """Give each response the prompt of another row, or None where there is no other prompt.

    No row keeps its own prompt, or one like it: the same, or a near copy. Of several turns each
    prompt is replaced, the answers stay. A response stays whole; a prompt that leaves too little
    room for it within `max_length` loses its middle. Drawn with the seed and by what rows say, not
    by what they are called. Of more than MOST_PAIRED rows so many are drawn; the others have None.
    """
    turns = [_turns(item) for item in instances]
    usable = [i for i, (prompts, _) in enumerate(turns) if prompts and prompts[0]]
    usable.sort(key=lambda i: short_sha256(str(instances[i].input_ids)))
    drawn = random.Random(seed)
    drawn.shuffle(usable)
    usable = usable[:most]
    found: list[Instance | None] = [None] * len(instances)
    for i, j in _partners([[*turns[i][0]] for i in usable], drawn).items():
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


def _partners(prompts: Sequence[Sequence[Sequence[int]]], drawn: random.Random) -> dict[int, int]:
    """Return whose prompts each row gets: a permutation, less the rows for which there are none."""
    n = len(prompts)
    words = [{token for prompt in turns for token in prompt} for turns in prompts]
    counts = Counter(token for tokens in words for token in tokens)
    words = [{token for token in tokens if counts[token] <= _EVERYWHERE * n} for tokens in words]

    def alike(i: int, j: int) -> bool:
        if i == j or prompts[i] == prompts[j]:
            return True
        either = len(words[i] | words[j])
        return either > 0 and len(words[i] & words[j]) > _NEAR_COPY * either

    partner = [(i + 1) % n for i in range(n)]
    for i in range(n):
        if not alike(i, partner[i]):
            continue
        for j in drawn.sample(range(n), min(_TRIES, n)):
            if not alike(i, partner[j]) and not alike(j, partner[i]):
                partner[i], partner[j] = partner[j], partner[i]
                break
    return {i: j for i, j in enumerate(partner) if not alike(i, j)}


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
