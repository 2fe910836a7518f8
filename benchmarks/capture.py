"""Recording against plain training: time and peak memory of the same steps, paired in one run.

Plain is trl's own training step with its own fused head. Each kind of step also runs in a process
of its own, for its peak memory. Pieces are timed alone at the end.

Usage: python benchmarks/capture.py DATA [--model demo] [--pairs 5] [--batch 8] [--max-length 256]
       [--lora] [--steps fused,hooked,scoring]
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
from types import MethodType

import torch
from trl import SFTTrainer

from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.training.batches import TOKENS
from gradsift.training.layers import track
from gradsift.training.model import find_model, load_model, load_tokenizer
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer

PLAIN = "plain"


def instances_of(arguments, tokenizer):
    rows = [row for row in load_pool(arguments.data).rows if row.example is not None]
    examples = [(row.instance_id, row.example) for row in rows]
    needed = arguments.batch * max(2, arguments.pairs + 1)
    items = build_instances(examples, tokenizer, max_length=arguments.max_length).items
    if arguments.full_length:
        items = [item for item in items if len(item.input_ids) == arguments.max_length]
    if len(items) < needed:
        sys.exit(f"{len(items)} rows of that length, {needed} needed")
    return items[:needed]


def make_steps(arguments, names):
    source = find_model(arguments.model)
    tokenizer = load_tokenizer(source)
    instances = instances_of(arguments, tokenizer)
    settings = TrainerSettings({}, {} if arguments.lora else None, 0)
    folder = Path(tempfile.mkdtemp())
    trainer = RecordingSFTTrainer(load_model(source), tokenizer, instances, settings, folder)
    return {name: step_of(name, trainer) for name in names}, instances


def trls_loss(trainer, model, inputs, **options):
    """As trl computes it: our own column would call our head instead."""
    inputs = {key: value for key, value in inputs.items() if key != TOKENS}
    return SFTTrainer.compute_loss(trainer, model, inputs, **options)


def step_of(name, trainer):
    ours = type(trainer).compute_loss
    fused = trainer.fused if name != "hooked" else None
    recorder = Recorder(track(trainer.model, fused), SketchSpec())

    def step(batch):
        trainer.use_fused_head(fused is not None)
        loss = trls_loss if name == PLAIN else ours
        trainer.compute_loss = MethodType(loss, trainer)
        if name == "scoring":
            trainer.forward_records(batch, recorder).read()
        else:
            listens = name not in (PLAIN, "fused, not recording")
            records = trainer.dry_run_step(batch, recorder if listens else None)
            if records is not None:
                records.read()

    return step


def timed(step, batch):
    started = time.perf_counter()
    step(batch)
    return time.perf_counter() - started


def compare_times(arguments, names):
    steps, instances = make_steps(arguments, [PLAIN, *names])
    ratios = {name: [] for name in names}
    for pair in range(arguments.pairs + 1):
        batch = list(range(pair * arguments.batch, (pair + 1) * arguments.batch))
        # Another one goes first each time, so that drift of the machine falls on all.
        first = pair % len(steps)
        order = list(steps)[first:] + list(steps)[:first]
        seconds = {name: timed(steps[name], batch) for name in order}
        if pair == 0:
            continue  # A warm-up.
        tokens = sum(len(instances[i].input_ids) for i in batch)
        for name in names:
            ratios[name].append(seconds[name] / seconds[PLAIN])
        print(f"{tokens} tokens: " + ", ".join(f"{n} {s:.2f} s" for n, s in seconds.items()))
        sys.stdout.flush()
    for name, values in ratios.items():
        print(
            f"time, {name} / plain: median {statistics.median(values):.3f}, "
            f"min {min(values):.3f}, max {max(values):.3f}, {len(values)} pairs"
        )


def peak_of(arguments):
    """In a process of its own: peak memory after loading, and after two steps."""
    steps, _ = make_steps(arguments, [arguments.peak_of])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pair in range(2):
        steps[arguments.peak_of](list(range(pair * arguments.batch, (pair + 1) * arguments.batch)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"loaded": loaded * 1024, "peak": peak * 1024}))


def compare_peaks(names):
    peaks = {}
    for name in [PLAIN, *names]:
        command = [sys.executable, *sys.argv, "--peak-of", name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[name] = json.loads(output.strip().split("\n")[-1])
    for name in [PLAIN, *names]:
        peak, plain = peaks[name]["peak"], peaks[PLAIN]["peak"]
        print(
            f"peak memory, {name}: {peak / 1e9:.2f} GB ({peaks[name]['loaded'] / 1e9:.2f} GB when "
            f"loaded), / plain {peak / plain:.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--full-length", action="store_true", help="only rows of that length")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", default="fused,fused, not recording,hooked,scoring")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.steps.replace("fused, not", "fused; not").split(",")
    names = [name.replace(";", ",") for name in names]
    if arguments.peak_of:
        peak_of(arguments)
        return
    print(f"{torch.get_num_threads()} threads, {'LoRA' if arguments.lora else 'full-parameter'}")
    if not arguments.no_memory:
        # First, while this process is small: a child's peak begins with that of its parent.
        compare_peaks(names)
    if arguments.pairs:
        compare_times(arguments, names)


if __name__ == "__main__":
    main()
