"""Gradient norms of rows at embedding and LM head: gradsift and other libraries, on equal terms.

Each runs in a process of its own, on the same rows, in forward and backward passes of the same
float32 model. "gradsift" is a whole training step: all weights get their gradients, too, as with a
batch of one and with dattri-llm. Opacus has all other weights frozen, as it would hold per-sample
gradients of every trained one; the way to compare it with is "gradsift, all frozen". The peers see
the model's own head, untied. Put them where they are found, without their dependencies:
`pip install --no-deps --target PEERS dattri-llm==0.1.0 opacus==1.6.0`, and set PYTHONPATH=PEERS.

Usage: python benchmarks/peers.py DATA [--model demo] [--rows 16] [--batch 8] [--max-length 256]
       [--repeats 5]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.gradients.sketch import SketchSpec
from gradsift.training.model import find_model, load_model, load_tokenizer
from gradsift.training.self_check import recorder_for
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer

OURS = "gradsift"


def rows_of(arguments):
    source = find_model(arguments.model)
    tokenizer = load_tokenizer(source)
    rows = [row for row in load_pool(arguments.data).rows if row.example is not None]
    examples = [(row.instance_id, row.example) for row in rows[: arguments.rows]]
    items = build_instances(examples, tokenizer, max_length=arguments.max_length).items
    return source, tokenizer, items


def padded(items):
    width = max(len(item.input_ids) for item in items)

    def pad(values, fill):
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])

    return (
        pad([item.input_ids for item in items], 0),
        pad([[1] * len(item.input_ids) for item in items], 0),
        pad([item.labels for item in items], -100),
    )


def row_losses(logits, labels):
    """Each row's own mean over its response tokens."""
    losses = cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def untied(source):
    model = load_model(source).eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def gradsift_frozen(source, tokenizer, items):
    return gradsift(source, tokenizer, items, frozen=True)


def gradsift(source, tokenizer, items, frozen=False):
    model = load_model(source)
    folder = Path(tempfile.mkdtemp())
    trainer = RecordingSFTTrainer(model, tokenizer, items, TrainerSettings({}, None, 0), folder)
    trainer.model.requires_grad_(not frozen)
    recorder = recorder_for(trainer, "fused", SketchSpec())

    def step(rows):
        records = trainer.dry_run_step(rows, recorder).read()
        return [[float(r.embedding.values_S[5]), float(r.lm_head.values_S[5])] for r in records]

    return step


def batch_of_one(source, tokenizer, items):
    model = untied(source)
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]

    def step(rows):
        norms = []
        for row in rows:
            ids, mask, labels = padded([items[row]])
            row_losses(model(input_ids=ids, attention_mask=mask).logits, labels).sum().backward()
            norms.append([float(statistics_of(weight.grad)[5]) for weight in weights])
            model.zero_grad(set_to_none=True)
        return norms

    return step


def statistics_of(gradient):
    std, mean = torch.std_mean(gradient, correction=0)
    return [gradient.max(), gradient.min(), mean, gradient.abs().mean(), std, gradient.norm()]


def dattri(source, tokenizer, items):
    from dattri_llm import HookManager, HookManagerConfig

    model = untied(source)
    names = ["model.embed_tokens", "lm_head"]
    config = HookManagerConfig(linear_io=[f"^{name}$" for name in names])
    manager = HookManager(model, config=config)

    def step(rows):
        ids, mask, labels = padded([items[row] for row in rows])
        with manager.collect():
            row_losses(model(input_ids=ids, attention_mask=mask).logits, labels).sum().backward()
            gradient = manager.get_gradient()
        squares = [gradient._layer_norm_sq(layer_of(gradient, name), "auto") for name in names]
        model.zero_grad(set_to_none=True)
        return torch.stack(squares, 1).sqrt().tolist()

    return step


def layer_of(gradient, name):
    return next(layer for layer in gradient.layer_names if name in layer)


def opacus_ghost(source, tokenizer, items):
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    return opacus_step(source, items, GradSampleModuleFastGradientClipping, "_norm_sample")


def opacus_materialised(source, tokenizer, items):
    from opacus.grad_sample import GradSampleModule

    return opacus_step(source, items, GradSampleModule, "grad_sample")


def opacus_step(source, items, wrapper, attribute):
    model = untied(source).train()  # Its hooks sleep in eval mode; this model has no dropout.
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    wrapped = wrapper(model, batch_first=True, loss_reduction="sum", strict=False)

    def step(rows):
        ids, mask, labels = padded([items[row] for row in rows])
        row_losses(wrapped(input_ids=ids, attention_mask=mask).logits, labels).sum().backward()
        found = [getattr(weight, attribute) for weight in weights]
        norms = [f.flatten(1).norm(dim=1) if attribute == "grad_sample" else f for f in found]
        for weight in weights:
            setattr(weight, attribute, None)
        wrapped.zero_grad(set_to_none=True)
        return torch.stack(norms, 1).tolist()

    return step


METHODS = {
    OURS: gradsift,
    "gradsift, all frozen": gradsift_frozen,
    "autograd, batch of 1": batch_of_one,
    "dattri-llm": dattri,
    "opacus, ghost norms": opacus_ghost,
    "opacus, materialised": opacus_materialised,
}


def child(arguments):
    source, tokenizer, items = rows_of(arguments)
    step = METHODS[arguments.method](source, tokenizer, items)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    batches = [
        list(range(i, min(i + arguments.batch, len(items))))
        for i in range(0, len(items), arguments.batch)
    ]
    norms = [row for rows in batches for row in step(rows)]  # Also the warm-up.
    started = time.perf_counter()
    for rows in batches:
        step(rows)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "loaded": loaded, "peak": peak, "norms": norms}))


def run(method):
    command = [sys.executable, *sys.argv, "--method", method]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return result.stderr.strip().split("\n")[-1]
    return json.loads(result.stdout.strip().split("\n")[-1])


def worst_difference(norms, truth):
    pairs = zip(torch.tensor(norms).flatten(), torch.tensor(truth).flatten(), strict=True)
    return max(abs(float(a - b)) / abs(float(b)) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        child(arguments)
        return
    results = {method: [] for method in METHODS}
    for _ in range(arguments.repeats):
        for method in METHODS:
            if not results[method] or isinstance(results[method][-1], dict):
                results[method].append(run(method))
    report(arguments, results)


def report(arguments, results):
    truth = results["autograd, batch of 1"][0]["norms"]
    ours = results[OURS]
    print(f"{arguments.rows} rows, {torch.get_num_threads()} threads")
    for method, outcomes in results.items():
        if not isinstance(outcomes[-1], dict):
            print(f"{method}: does not run here: {outcomes[-1]}")
            continue
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(outcomes, ours, strict=True)]
        speed = statistics.median(arguments.rows / outcome["seconds"] for outcome in outcomes)
        peak = max(outcome["peak"] for outcome in outcomes)
        added = max(outcome["peak"] - outcome["loaded"] for outcome in outcomes)
        print(
            f"{method}: {speed:.2f} rows/s; time / ours {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); peak {peak / 1e9:.2f} GB, of which after "
            f"loading {added / 1e9:.2f}; norms differ from batches of one by "
            f"{worst_difference(outcomes[0]['norms'], truth):.0e}"
        )


if __name__ == "__main__":
    main()
