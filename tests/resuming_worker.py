"""One of two processes (DDP): captures in one go, and stopped and resumed, perhaps after damage."""

import sys
from pathlib import Path

import torch.distributed as dist

import gradsift as gs
from gradsift.store.writer import StoreWriter

SETTINGS = {
    "during": {"save_steps": 2},
    "damaged": {"save_steps": 2},
    "scored": {"warmup_fraction": 0},
    "trained and scored": {"warmup_fraction": 0.5, "record_at": "after"},
}
SFT = {"per_device_train_batch_size": 2, "learning_rate": 0.05, "optim_args": "amsgrad=True"}


class Stopped(Exception):
    pass


def capture(inputs, out, name):
    pool = gs.load_pool(str(inputs / "data.jsonl"))
    settings = {"sft": SFT, "batching": "by_length", **SETTINGS[name]}
    gs.capture(str(inputs / "model"), pool, out=out, **settings)


def stopped_capture(inputs, out, name):
    append, written = StoreWriter.append, []

    def stopping(*arguments, **named):
        if len(written) == 2:
            raise Stopped
        written.append(1)
        append(*arguments, **named)

    StoreWriter.append = stopping
    try:
        capture(inputs, out, name)
    except Stopped:
        return
    finally:
        StoreWriter.append = append
    raise AssertionError("was not stopped")


def main():
    inputs, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name in SETTINGS:
        capture(inputs, out / "whole" / name, name)
        stopped_capture(inputs, out / "stopped" / name, name)
        if name == "damaged" and dist.get_rank() == 0:
            newest = max((out / "stopped" / name / "checkpoints").glob("checkpoint-[24]/rng*_1.*"))
            newest.write_bytes(newest.read_bytes()[:-1])
        dist.barrier()
        capture(inputs, out / "stopped" / name, name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
