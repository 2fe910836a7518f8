"""Time and peak memory of training steps with and without recording, in pairs in one run.

Usage: python benchmarks/epoch_cost.py DATA [--model demo] [--pairs 5] [--batch 8] [--lora]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from gradsift.data.instances import build_instances
from gradsift.data.pool import load_pool
from gradsift.gradients.recorder import Recorder, SketchSpec
from gradsift.training.model import find_model, load_model, load_tokenizer, track
from gradsift.training.probe import probe_step
from gradsift.training.sft import RecordingSFTTrainer, SFTSettings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--lora", action="store_true")
    arguments = parser.parse_args()
    source = find_model(arguments.model)
    tokenizer = load_tokenizer(source)
    rows = [row for row in load_pool(arguments.data).rows if row.example is not None]
    rows = rows[: arguments.batch * (arguments.pairs + 1)]
    examples = [(row.instance_id, row.example) for row in rows]
    instances = build_instances(examples, tokenizer, max_length=arguments.max_length).items
    settings = SFTSettings({}, {} if arguments.lora else None, 0)
    trainer = RecordingSFTTrainer(
        load_model(source), tokenizer, instances, settings, Path(tempfile.mkdtemp())
    )
    recorder = Recorder(track(trainer.model), SketchSpec())
    ratios = []
    for pair in range(arguments.pairs + 1):
        batch = list(range(pair * arguments.batch, (pair + 1) * arguments.batch))
        seconds = {}
        # Either goes first in turn, so that drift of the machine falls on both.
        for who in (None, recorder) if pair % 2 else (recorder, None):
            started = time.perf_counter()
            probe_step(trainer, batch, who)
            seconds[who is None] = time.perf_counter() - started
        if pair:  # The first is a warm-up.
            ratios.append(seconds[False] / seconds[True])
            tokens = sum(len(instances[i].input_ids) for i in batch)
            print(
                f"{tokens} tokens: plain {seconds[True]:.2f} s, recording {seconds[False]:.2f} s, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(
        f"recording / plain: median {statistics.median(ratios):.3f}, "
        f"min {min(ratios):.3f}, max {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
