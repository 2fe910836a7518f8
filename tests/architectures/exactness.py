"""Which way of recording is exact on each architecture: one batch against batches of one.

`PYTHONPATH=tests python -m architectures.exactness` writes expected.json and
docs/architectures.md anew.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from architectures.zoo import CAUSAL_TYPES, VOCABULARY, CannotBuild, build
from gradsift.gradients.instance_loss import summed_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.terms import STATISTICS
from gradsift.training.layers import add_fused_head, track
from gradsift.training.self_check import METHODS
from oracle import gradients_of, relative_error, statistics_of

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
PAGE = HERE.parent.parent / "docs" / "architectures.md"
TOLERANCE = 2e-5
LENGTHS, PROMPTS = (12, 9, 7), (4, 1, 3)
# Why no way of recording is exact on these.
REFUSED = {
    "cpmant": "it pads on the left and adds a soft prompt: a right-padded row is not the row alone",
    "prophetnet": "its head predicts several tokens ahead at once, on streams of their own",
}
FAILURES = (ValueError, TypeError, AttributeError, RuntimeError, AssertionError)


def batch():
    """Three rows of different lengths, right-padded, with prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, VOCABULARY, (3, 12), generator=generator)
    mask_BT = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    in_prompt = torch.arange(12) < torch.tensor(PROMPTS)[:, None]
    labels_BT = torch.where((mask_BT == 0) | in_prompt, -100, ids_BT)
    return ids_BT * mask_BT, mask_BT, labels_BT


def worst_error(model, method):
    """The largest relative error of the recorded statistics of three rows of one batch."""
    ids_BT, mask_BT, labels_BT = batch()
    model.zero_grad(set_to_none=True)
    fused = add_fused_head(model) if method.startswith("fused") else None
    recorder = Recorder(track(model, fused), SketchSpec(4, 0), method=method)
    tokens = ResponseTokens.of(labels_BT, mask_BT)
    try:
        with recorder:
            recorder.begin(range(3), 0, ids_BT, labels_BT, tokens)
            inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
            if fused is not None:
                loss = -model(**inputs, response_tokens=tokens)["log_probs"].sum()
            else:
                loss = summed_loss(model(**inputs).logits, labels_BT)
            (loss / 7).backward()
            records = recorder.finish().read()
    finally:
        if fused is not None:
            del model.forward  # The class's own is found again.
    worst = 0.0
    for row, record in enumerate(records):
        n = LENGTHS[row]
        truth, loss = gradients_of(model, ids_BT[row, :n].tolist(), labels_BT[row, :n].tolist())
        worst = max(worst, relative_error(record.loss, loss, 0))
        for layer, gradient in truth.items():
            want = statistics_of(gradient)
            for i, name in enumerate(STATISTICS):
                companion = want["mean_abs"] if name == "mean" else 0
                got = getattr(record, layer).values_S[i]
                worst = max(worst, relative_error(got, want[name], companion))
    return worst if worst == worst else float("inf")


def examine(model_type):
    """What is expected of a type, and the worst relative error that was seen."""
    try:
        model = build(model_type)
    except CannotBuild as reason:
        return {"status": "not built", "reason": str(reason)}, 0.0
    tied = is_tied(model)
    about = {"class": type(model).__name__, "tied": tied}
    for method in METHODS:
        error = error_or_infinity(model, method)
        if error < TOLERANCE:
            other = build(model_type, tied=not tied)
            both = is_tied(other) != tied
            if both:
                error = max(error, error_or_infinity(other, method))
                assert error < TOLERANCE, f"{model_type}, tied={not tied}: off by {error:.1e}"
            return {"status": "exact", "method": method, **about, "also the other way": both}, error
    return {"status": "refused", "reason": REFUSED.get(model_type, "unknown"), **about}, 0.0


def is_tied(model):
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def error_or_infinity(model, method):
    try:
        return worst_error(model, method)
    except FAILURES:
        return float("inf")


def quiet():
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def page(found):
    """The table for people."""
    count = Counter(entry["status"] for entry in found.values())
    methods = Counter(entry.get("method") for entry in found.values())
    lines = [
        "# Architectures",
        "",
        "Recording on a tiny, randomly initialised model of every causal-LM type that transformers",
        "registers: a padded batch of three rows against batches of one and autograd, all six",
        f"statistics of both layers, relative error below {TOLERANCE:.0e} in float32. Made by",
        "`PYTHONPATH=tests python -m architectures.exactness`; the tests compare every entry with",
        "what they find.",
        "",
        f"**{count['exact']} of {len(found)} are exact**: "
        + ", ".join(f"{methods[method]} {method}" for method in METHODS)
        + f". {count['refused']} are refused, {count['not built']} could not be built.",
        "",
        "The methods of recording are explained in "
        "[method.md](method.md#methods-of-recording). A model",
        "that is not here is looked at by `gradsift check MODEL`. *Tied*: whether the type shares",
        "the weight of embedding and head by default; *both*: the other way was exact, too.",
        "",
        "| type | class | recorded | tied |",
        "|---|---|---|---|",
    ]
    for name, entry in found.items():
        if entry["status"] == "not built":
            continue
        recorded = entry.get("method") or f"refused: {entry['reason']}"
        tied = "yes" if entry["tied"] else "no"
        tied += ", both" if entry.get("also the other way") else ""
        lines.append(f"| {name} | {entry['class']} | {recorded} | {tied} |")
    lines += ["", "Not built:", ""]
    missing = {k: e["reason"] for k, e in found.items() if e["status"] == "not built"}
    lines += [f"* {name}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines) + "\n"


def main():
    quiet()
    started = time.time()
    found, errors = {}, {}
    for model_type in CAUSAL_TYPES:
        found[model_type], errors[model_type] = examine(model_type)
    EXPECTED.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))
    worst = max(errors, key=errors.get)
    print(Counter(entry["status"] for entry in found.values()))
    print(f"worst {errors[worst]:.1e} ({worst}), {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
