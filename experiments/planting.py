"""Pools with planted defects: answers of other rows, garbled answers, exact and near copies."""

import json
import random
import re
from pathlib import Path


def read_rows(file):
    """Read rows whose answer is reached within some 160 tokens, and is long enough to garble."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for row in rows:
        context = (row.get("meta") or {}).get("context")
        if context:
            row["prompt"] = f"{context}\n\n{row['prompt']}"
    # So that the response is reached, and there is enough of it to garble, within the tokens kept.
    return [
        row
        for row in rows
        if len(row["prompt"].split()) <= 80 and len(row["response"].split()) >= 8
    ]


def planted_pool(rows, n, seed, shares):
    """Draw n rows: of each kind its share, the rest as they were; `original` says whose copy."""
    draw = random.Random(seed)
    counts = {kind: round(share * n) for kind, share in shares.items()}
    n_copies = counts["exact copy"] + counts["near copy"]
    originals = draw.sample(rows, n - n_copies)
    kinds = ["swapped"] * counts["swapped"] + ["garbled"] * counts["garbled"]
    kinds += ["clean"] * (len(originals) - len(kinds))
    pool = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "response": row["response"],
            "source": row["source"],
            "planted": kind,
            "original": row["id"],
        }
        for row, kind in zip(originals, kinds, strict=True)
    ]
    swapped = pool[: counts["swapped"]]
    # A rotation of a random order: nobody keeps an own answer.
    answers = [row["response"] for row in swapped]
    for row, answer in zip(swapped, answers[1:] + answers[:1], strict=True):
        row["response"] = answer
    for number, row in enumerate(pool[len(swapped) : len(swapped) + counts["garbled"]]):
        row["response"] = garble(row["response"], number, draw)
    clean = [row for row in pool if row["planted"] == "clean"]
    copies = ["exact copy"] * counts["exact copy"] + ["near copy"] * counts["near copy"]
    for row, kind in zip(draw.sample(clean, n_copies), copies, strict=True):
        copy = {**row, "id": f"{row['id']}-{kind[0]}", "planted": kind}
        if kind == "near copy":
            copy["prompt"] = lightly_edit(row["prompt"], draw)
            copy["response"] = lightly_edit(row["response"], draw)
        pool.append(copy)
    draw.shuffle(pool)
    return pool


def garble(text, number, draw):
    words = text.split()
    if number % 3 == 0:  # Words out of order.
        draw.shuffle(words)
        return " ".join(words)
    if number % 3 == 1:  # Characters damaged, as by a bad scan.
        letters = "abcdefghijklmnopqrstuvwxyz  #%"
        return "".join(draw.choice(letters) if draw.random() < 0.25 else c for c in text)
    # Text decoded with the wrong table, and cut into pieces as by a broken crawler.
    pieces = [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]
    return " | ".join(f"{piece}Ã¢Â€Â™" for piece in draw.sample(pieces, len(pieces)))


def lightly_edit(text, draw):
    """About one word in twelve: left out, said twice, or in another case; one comma fewer."""
    words = []
    for word in text.split():
        chance = draw.random()
        if chance < 0.03:
            continue
        words.append(word.swapcase() if chance < 0.06 else word)
        if chance > 0.98:
            words.append(word)
    return re.sub(r",", "", " ".join(words) or text, count=1)
