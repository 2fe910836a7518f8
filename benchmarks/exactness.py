"""Are recorded statistics those of each row alone, and is training left as it was?

Usage: python benchmarks/exactness.py DATA [--model demo] [--rows 16] [--max-length 160]
"""

import argparse
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.gradients.check import autograd_summaries, relative_errors
from gradsift.gradients.instance_loss import mean_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.terms import LAYERS
from gradsift.training.layers import track
from gradsift.training.model import find_model, load_model, load_tokenizer
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer

CONFIGURATIONS = {
    "batch 1": {"per_device_train_batch_size": 1},
    "batch 4": {"per_device_train_batch_size": 4},
    "batch 8": {"per_device_train_batch_size": 8},
    "batch 4, other order": {"per_device_train_batch_size": 4, "seed": 1},
    "batch 4, accumulation 2": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "batch 4, checkpointing": {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    "batch 4, LoRA": {"per_device_train_batch_size": 4, "lora": {"r": 8}},
}


def trainer_for(source, tokenizer, instances, options):
    sft = {"learning_rate": 0.0, **options}
    settings = TrainerSettings(sft, sft.pop("lora", None), sft.pop("seed", 0))
    folder = Path(tempfile.mkdtemp())
    return RecordingSFTTrainer(load_model(source), tokenizer, instances, settings, folder)


def record(trainer):
    seen = []
    with Recorder(track(trainer.model, trainer.fused), SketchSpec()) as recorder:
        trainer.record_with(recorder, seen.append)
        trainer.train()
    return {record.index: record for records in seen for record in records.read()}


def worst(records, truths):
    by_key = {}
    for index, truth in truths.items():
        for key, error in relative_errors(records[index], truth).items():
            by_key[key] = max(by_key.get(key, 0.0), error)
    return by_key


def autograd(model, instances):
    tracked = track(model)
    recorder = Recorder(tracked, SketchSpec())

    def loss(item):
        logits_1TV = model(input_ids=torch.tensor([item.input_ids])).logits
        return mean_loss(logits_1TV, torch.tensor([item.labels]))

    return {
        i: autograd_summaries(tracked, recorder, partial(loss, item))
        for i, item in enumerate(instances)
    }


def as_record(summaries):
    return SimpleNamespace(layers=LAYERS, **summaries)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--float64", action="store_true", help="truth in float64 (slow)")
    arguments = parser.parse_args()
    source = find_model(arguments.model)
    tokenizer = load_tokenizer(source)
    rows = [row for row in load_pool(arguments.data).rows if row.example is not None]
    rows = random.Random(0).sample(rows, arguments.rows)
    examples = [(row.instance_id, row.example) for row in rows]
    instances = build_instances(examples, tokenizer, max_length=arguments.max_length).items

    truths = autograd(load_model(source), instances)
    if arguments.float64:
        in_float32, truths = truths, autograd(load_model(source).double(), instances)
        own = max(
            max(relative_errors(as_record(t), truths[i]).values()) for i, t in in_float32.items()
        )
        print(f"float32 autograd against float64 autograd: worst relative error {own:.1e}")
    precision = "float64" if arguments.float64 else "float32"
    print(f"{len(instances)} rows, worst relative error against batch-of-one {precision} autograd")
    first = None
    for name, options in CONFIGURATIONS.items():
        records = record(trainer_for(source, tokenizer, instances, dict(options)))
        errors = worst(records, truths)
        by_layer = {
            layer: max(e for (at, _), e in errors.items() if at == layer) for layer in LAYERS
        }
        if first is None:
            first = records
        others = {i: vars(r) for i, r in first.items()}
        between = max(worst(records, others).values())
        key = max(errors, key=errors.get)
        print(
            f"{name:26} embedding {by_layer['embedding']:.1e}  lm_head {by_layer['lm_head']:.1e}"
            f"  (worst: {' '.join(key)})  against batch 1: {between:.1e}",
            flush=True,
        )

    outcomes = []
    for recording in (True, False):
        options = {"learning_rate": 5e-5, "per_device_train_batch_size": 4}
        trainer = trainer_for(source, tokenizer, instances, options)
        record(trainer) if recording else trainer.train()
        curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        outcomes.append((curve, trainer.model.state_dict()))
    same_weights = all(torch.equal(w, outcomes[1][1][name]) for name, w in outcomes[0][1].items())
    print(f"loss curve equal: {outcomes[0][0] == outcomes[1][0]}; weights equal: {same_weights}")
    return 0 if same_weights else 1


if __name__ == "__main__":
    sys.exit(main())
