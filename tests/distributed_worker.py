"""One process of several: trains tiny models in a loop of its own while they are recorded."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import gradsift as gs
from tiny import tiny_llama

N = 12
WRAPPERS = ("ddp", "fsdp2", "fsdp2 checkpointing untied")


def rows_of(rank, world):
    generator = torch.Generator().manual_seed(0)
    for start in range(0, N, 4):
        ids = torch.randint(6, 262, (4, 20), generator=generator)
        lengths = torch.randint(6, 21, (4,), generator=generator)
        mask = (torch.arange(20) < lengths[:, None]).long()
        labels = torch.where((mask > 0) & (torch.arange(20) > 2), ids, -100)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batch["row"] = torch.arange(start, start + 4)
        yield {name: values[rank::world] for name, values in batch.items()}


def wrap(model, wrapper):
    if "checkpointing" in wrapper:
        model.gradient_checkpointing_enable()
    if "plain" in wrapper:
        return model
    if "ddp" in wrapper:
        return torch.nn.parallel.DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def train(model, rank, world):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in rows_of(rank, world):
        # A sum divided by a constant, so that one and two processes take the same steps.
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        targets = batch["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        (loss / 50 * world).backward()
        optimizer.step()
        optimizer.zero_grad()


def main():
    out = Path(sys.argv[1])
    dist.init_process_group("gloo")
    for wrapper in WRAPPERS:
        model = wrap(tiny_llama(tied="untied" not in wrapper), wrapper)
        with gs.record(model, out=out / wrapper, ids="row"):
            train(model, dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
