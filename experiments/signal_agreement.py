"""When and how the signal is taken: which choices rank the rows alike?

Captures the same rows five times (during the epoch; after it with and without a backward pass;
after a tenth of it; before any training) and prints rank correlations. Run again to resume.

Usage: python experiments/signal_agreement.py DATA OUT [--rows 400] [--max-length 160]
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import Manifest, load_manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, STATISTICS
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.model import find_model, load_model, load_tokenizer
from gradsift.training.scoring import record_with_frozen_weights
from gradsift.training.settings.trainer import TrainerSettings

SKETCH = SketchSpec(1024, 0)
WINDOW = 101  # Rows of the sliding window whose median is taken off as drift.


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    source = find_model(arguments.model)
    tokenizer = load_tokenizer(source)
    rows = [row for row in load_pool(arguments.data).rows if row.example is not None]
    examples = [(row.instance_id, row.example) for row in rows[: arguments.rows]]
    instances = build_instances(examples, tokenizer, max_length=arguments.max_length).items
    captures = Captures(arguments, source, tokenizer, instances)
    captures.during_and_after()
    captures.before_training("preliminary 0", instances[:8], train=False)
    captures.before_training("preliminary 0.1", instances[::10], train=True)
    stores = {name: read_store(arguments.out / name) for name in captures.names}
    about = {
        "n_instances": len(instances),
        "n_tokens": sum(len(instance.input_ids) for instance in instances),
        "max_length": arguments.max_length,
        "batch": arguments.batch,
        "seed": captures.settings.seed,
        "seconds of recording": {
            name: round(store.manifest.about["seconds"]) for name, store in stores.items()
        },
    }
    results = {"made with": about, **agreement(stores)}
    print(json.dumps(results, indent=1))
    (arguments.out / "agreement.json").write_text(json.dumps(results, indent=1))


class Captures:
    names = ("during", "after", "after, head only", "preliminary 0", "preliminary 0.1")

    def __init__(self, arguments, source, tokenizer, instances):
        self.out, self.instances = arguments.out, instances
        self.source, self.tokenizer = source, tokenizer
        self.settings = TrainerSettings({"per_device_train_batch_size": arguments.batch}, None, 0)

    def epoch(self, name, trained):
        return PreliminaryEpoch(
            load_model(self.source),
            self.tokenizer,
            trained,
            self.settings,
            SKETCH,
            self.out / name / "checkpoints",
        )

    def is_done(self, name):
        manifest = load_manifest(self.out / name)
        return manifest is not None and manifest.complete

    def writer(self, name, width, layers=LAYERS):
        manifest = Manifest({"name": name}, {}, len(self.instances), layers)
        size = SKETCH.size
        return StoreWriter(self.out / name, manifest, content_width=width, sketch_size=size)

    def print_progress(self, n_rows, all_rows, n_tokens, all_tokens):
        if n_rows % 40 == 0:
            print(f"{n_rows} rows, {n_tokens} tokens", flush=True)

    def during_and_after(self):
        names = self.names[:3]
        if all(self.is_done(name) for name in names):
            return
        epoch = self.epoch("during", self.instances)
        print(epoch.check().sentence(), flush=True)
        with self.writer("during", epoch.content_width) as writer:
            writer.keep_until(0)
            epoch.run(writer, save_steps=10**6, progress=self.print_progress)
        self.score(epoch, "after", backward=True)
        self.score(epoch, "after, head only", backward=False)

    def before_training(self, name, trained, train):
        if self.is_done(name):
            return
        epoch = self.epoch(name, trained)
        epoch.check()
        if train:
            epoch.train(save_steps=10**6, progress=self.print_progress)
        self.score(epoch, name, backward=True)
        epoch.clean_up()

    def record_with_frozen_weights(self, epoch, name, backward):
        layers = LAYERS if backward else ("lm_head",)
        with self.writer(name, epoch.content_width, layers) as writer:
            record_with_frozen_weights(
                epoch.trainer,
                epoch.recorder,
                self.instances,
                writer,
                backward=backward,
                progress=self.print_progress,
            )
        print(f"{name}: {load_manifest(self.out / name).about['seconds']:.0f} s", flush=True)


def agreement(stores):
    """Spearman of every statistic between captures, with length, and with drift taken off."""
    length = stores["during"].n_response_tokens
    results = {"between captures": {}, "with response length": {}, "during, drift taken off": {}}
    for a, b in combinations(stores, 2):
        for layer in LAYERS:
            if layer in stores[a].layers and layer in stores[b].layers:
                results["between captures"][f"{a} ~ {b}, {layer}"] = {
                    name: rank_correlation(
                        stores[a].statistics[layer][name], stores[b].statistics[layer][name]
                    )
                    for name in STATISTICS
                }
        results["between captures"][f"{a} ~ {b}, loss"] = rank_correlation(
            stores[a].loss, stores[b].loss
        )
        results["between captures"][f"{a} ~ {b}, el2n"] = rank_correlation(
            stores[a].el2n, stores[b].el2n
        )
    for name, store in stores.items():
        by_layer = {
            f"{layer} {statistic}": rank_correlation(values, length)
            for layer, by_name in store.statistics.items()
            for statistic, values in by_name.items()
        }
        by_layer["loss"] = rank_correlation(store.loss, length)
        by_layer["el2n"] = rank_correlation(store.el2n, length)
        results["with response length"][name] = by_layer
    during, after = stores["during"], stores["after"]
    for layer in LAYERS:
        raw = np.log(during.statistics[layer]["l2_norm"])
        flat = without_drift(raw, during.step)
        end = after.statistics[layer]["l2_norm"]
        results["during, drift taken off"][layer] = {
            "with step, raw": rank_correlation(raw, during.step),
            "with step, drift off": rank_correlation(flat, during.step),
            "with after, raw": rank_correlation(raw, end),
            "with after, drift off": rank_correlation(flat, end),
            "raw ~ drift off": rank_correlation(raw, flat),
        }
    return results


def without_drift(values, step):
    order = np.argsort(step, kind="stable")
    half = WINDOW // 2
    flat = np.empty_like(values)
    for at, row in enumerate(order):
        flat[row] = values[row] - np.median(values[order[max(0, at - half) : at + half + 1]])
    return flat


def rank_correlation(a, b):
    return round(float(spearmanr(a, b).statistic), 3)


if __name__ == "__main__":
    main()
