"""Padding, and what it costs: a preliminary epoch and a scoring pass, rows packed, grouped, padded.

Usage: python benchmarks/batching.py POOL [--model demo] [--rows 400] [--max-length 1024]
       [--batch-size 8] [--batching random,by_length,packed] [--tokens-only]

Prints for each the tokens that are computed for each real one, the wall time, and how far the
recorded statistics are from those of padded rows (learning rate 0, so that the order of rows does
not matter).
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import gradsift as gs
from gradsift.data.tokenization import build_instances
from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import Manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.training.batches import LengthGroupedSampler, bins
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.model import find_model, load_model, load_tokenizer
from gradsift.training.scoring import record_with_frozen_weights
from gradsift.training.settings.trainer import TrainerSettings

BATCHINGS = ("random", "by_length", "packed")


def ratios(lengths, batch_size, width):
    """Computed tokens for each real one, of an epoch."""

    def padded(order):
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    packed = 0
    for at in range(0, len(order), batch_size):
        members = [lengths[i] for i in order[at : at + batch_size]]
        rows = bins(members, width)
        packed += len(rows) * max(sum(members[i] for i in row) for row in rows)
    grouped = padded(list(LengthGroupedSampler(lengths, batch_size, 0)))
    computed = {"random": padded(order), "by_length": grouped, "packed": packed}
    return {batching: n / sum(lengths) for batching, n in computed.items()}


def capture(source, tokenizer, instances, batching, batch_size, folder, *, during):
    """Seconds of an epoch or a scoring pass, the ratio of an epoch, and its store."""
    sft = {"per_device_train_batch_size": batch_size, "learning_rate": 0.0}
    epoch = PreliminaryEpoch(
        load_model(source), tokenizer, instances, TrainerSettings(sft, None, 0, batching=batching),
        SketchSpec(), folder / "checkpoints",
    )  # fmt: skip
    epoch.check()
    layers = ("embedding", "lm_head") if during else ("lm_head",)
    manifest = Manifest({}, {}, len(instances), layers)
    width = epoch.content_width
    with StoreWriter(folder, manifest, content_width=width, sketch_size=1024) as writer:
        started = time.perf_counter()
        if during:
            epoch.run(writer, save_steps=10**6)
        else:
            record_with_frozen_weights(
                epoch.trainer, epoch.recorder, instances, writer, backward=False
            )
        seconds = time.perf_counter() - started
    trainer = epoch.trainer
    ratio = trainer.n_computed / trainer.n_tokens if during else float("nan")
    return seconds, ratio, read_store(folder)


def gap(store, other):
    """The worst relative difference of a statistic of a row."""
    worst = 0.0
    for layer, by_name in store.statistics.items():
        for name, values in by_name.items():
            if name != "mean":
                ratio = values / other.statistics[layer][name]
                worst = max(worst, float(np.max(np.abs(ratio - 1))))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batching", default=",".join(BATCHINGS))
    parser.add_argument("--tokens-only", action="store_true")
    args = parser.parse_args()
    source = find_model(args.model)
    tokenizer = load_tokenizer(source)
    rows = [row for row in gs.load_pool(args.pool).rows if row.example is not None][: args.rows]
    pairs = [(row.instance_id, row.example) for row in rows]
    instances = build_instances(pairs, tokenizer, max_length=args.max_length).items
    lengths = [len(item.input_ids) for item in instances]
    print(f"{args.pool}: {len(lengths)} rows, {sum(lengths)} tokens, longest {max(lengths)}")
    for batching, ratio in ratios(lengths, args.batch_size, 576).items():
        print(f"  {batching:10} {ratio:.3f} tokens computed for each real one")
    if args.tokens_only:
        return
    for during in (True, False):
        plain = None
        for batching in args.batching.split(","):
            with tempfile.TemporaryDirectory() as folder:
                seconds, ratio, store = capture(
                    source, tokenizer, instances, batching, args.batch_size, Path(folder),
                    during=during,
                )  # fmt: skip
            plain = store if plain is None else plain
            what = "epoch  " if during else "scoring"
            print(f"  {what} {batching:10} {seconds:7.1f} s  {ratio:.3f} tokens for each real one  "
                  f"statistics within {gap(store, plain):.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
