"""Train many arms in one process: the model stays on its device, every test item keeps its loss.

OUT has a folder for each pool, with tokens ready: `rows.jsonl` (id, input_ids, labels) and
`tests/NAME.jsonl` (the same); and `jobs.jsonl`, a line for each training: pool, arm, training (its
number, from 0), rows (ids), seed, epochs, learning_rate, and steps where not the epochs decide. A
job may name a `replay` file of rows beside it, all of which are mixed in, and the only `tests` it
is asked. Jobs are done in the order of the file by as many workers as are started; a line of CELLS
for each, and what stands there already is left out. The loop is trl's: AdamW, a rate that falls
linearly to 0, batches of 8, gradients clipped at 1, the mean over a batch's response tokens, mixed
precision in bfloat16 (2.5 times as fast on a CPU that has it; items' losses differ by at most
0.013, their mean by 0.001).

Usage:
    python experiments/arms.py OUT CELLS --model demo --worker 0
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from gradsift.data.tokenization import Instance
from gradsift.evaluation.losses import response_losses
from gradsift.terms import IGNORED_LABEL
from gradsift.training.model import find_model, load_model

ROWS_PER_STEP = 8
LARGEST_NORM = 1.0
# What makes two trainings the same.
KEY = ("pool", "arm", "training")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("cells", type=Path, help="folder of results, a file for each worker")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--worker", type=int, default=0, help="another one for each at work")
    parser.add_argument("--threads", type=int, help="of this worker, on a CPU")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no job is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work(arguments)


def work(arguments):
    started = time.monotonic()
    device = torch.device(arguments.device)
    model = load_model(find_model(arguments.model)).to(device)
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments.cells.mkdir(parents=True, exist_ok=True)
    while time.monotonic() - started < 60 * arguments.minutes:
        # Read anew each time: jobs may be added while others run.
        job = next_job(arguments)
        if job is None:
            return
        clock = time.monotonic()
        folder = arguments.out / job["pool"]
        by_id = {row.instance_id: row for row in read_instances(folder / "rows.jsonl")}
        chosen = [by_id[i] for i in job["rows"]]
        if job.get("replay"):
            chosen += read_instances(folder / job["replay"])
        model.load_state_dict(untrained)
        counts = train(model, chosen, job) if chosen else {"n_steps": 0, "n_tokens": 0}
        trained_in = time.monotonic() - clock
        model.eval()
        with torch.autocast(device.type, torch.bfloat16):
            losses = {
                path.stem: measured(model, path)
                for path in sorted((folder / "tests").glob("*.jsonl"))
                if path.stem in job.get("tests", [path.stem])
            }
        cell = {key: value for key, value in job.items() if key != "rows"}
        cell |= {"n_rows": len(chosen), **counts, "losses": losses}
        cell |= {"seconds": [round(trained_in, 1), round(time.monotonic() - clock, 1)]}
        with (arguments.cells / f"cells-{arguments.worker}.jsonl").open("a") as file:
            file.write(json.dumps(cell) + "\n")
        told = {name: round(sum(values) / len(values), 4) for name, values in losses.items()}
        print(*(job[key] for key in KEY), told, cell["seconds"], flush=True)


def measured(model, path):
    """Loss of each item; of NAME.wrong.jsonl, 1 where greedy decoding would not give the answer."""
    instances = read_instances(path)
    if path.stem.endswith(".wrong"):
        return [float(not is_answered(model, item)) for item in instances]
    return [round(loss, 6) for loss in response_losses(model, instances)]


@torch.no_grad()
def is_answered(model, item):
    # Token by token after the reference: it is what greedy decoding gives just if all agree.
    ids_1T = torch.tensor([item.input_ids], device=model.device)
    best_T = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].argmax(-1).cpu()
    labels_T = torch.tensor(item.labels[1:])
    counts_T = labels_T != IGNORED_LABEL
    return bool((best_T[counts_T] == labels_T[counts_T]).all())


def next_job(arguments):
    """Return the first job that is not done, of this worker's share of what is left."""
    done = {
        tuple(cell[key] for key in KEY)
        for path in arguments.cells.glob("*.jsonl")
        for cell in map(json.loads, path.read_text().splitlines())
    }
    jobs = [json.loads(line) for line in (arguments.out / "jobs.jsonl").read_text().splitlines()]
    keys = {tuple(job[key] for key in KEY): job for job in jobs}
    assert len(keys) == len(jobs), "two jobs of one name"
    for key, job in keys.items():
        if key in done:
            continue
        # A job whose worker died is taken over.
        if claim(arguments.cells / "claims" / "-".join(map(str, key)).replace("/", "_")):
            return job
    return None


def claim(path):
    """Take a job that no living process has."""
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        owner = int(path.read_text() or 0)
        if owner and Path(f"/proc/{owner}").exists():
            return False
        path.write_text(str(os.getpid()))
        return True


def train(model, instances, job):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["learning_rate"], weight_decay=0.0)
    per_epoch = -(-len(instances) // ROWS_PER_STEP)
    n_steps = job.get("steps") or round(job["epochs"] * per_epoch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    draw, waiting, n_tokens = random.Random(job["seed"]), [], 0
    for _ in range(n_steps):
        if not waiting:
            order = draw.sample(instances, len(instances))
            waiting = [order[i : i + ROWS_PER_STEP] for i in range(0, len(order), ROWS_PER_STEP)]
        batch = waiting.pop(0)
        backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        n_tokens += sum(len(row.input_ids) for row in batch)
    return {"n_steps": n_steps, "n_tokens": n_tokens}


def backward(model, batch):
    """Mean loss of the batch's response tokens; on a CPU in two halves, with less padding."""
    device = model.device
    batch = sorted(batch, key=lambda row: len(row.input_ids))
    half = len(batch) if device.type == "cuda" else -(-len(batch) // 2)
    n_labels = sum(label != IGNORED_LABEL for row in batch for label in row.labels[1:])
    for part in filter(None, (batch[:half], batch[half:])):
        longest = max(len(row.input_ids) for row in part)
        ids_BT = torch.zeros(len(part), longest, dtype=torch.long)
        labels_BT = torch.full_like(ids_BT, IGNORED_LABEL)
        for at, row in enumerate(part):
            ids_BT[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
            labels_BT[at, : len(row.labels)] = torch.tensor(row.labels)
        labels_BT = labels_BT[:, 1:].to(device)
        counts_BT = labels_BT != IGNORED_LABEL
        with torch.autocast(device.type, torch.bfloat16):
            # Padding is on the right, where no causal model sees it.
            hidden_BTD = model.base_model(input_ids=ids_BT.to(device), use_cache=False)[0]
            logits = model.get_output_embeddings()(hidden_BTD[:, :-1][counts_BT])
        loss = F.cross_entropy(logits.float(), labels_BT[counts_BT], reduction="sum")
        (loss / n_labels).backward()


def read_instances(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Instance(row["id"], row["input_ids"], row["labels"]) for row in rows]


if __name__ == "__main__":
    main()
