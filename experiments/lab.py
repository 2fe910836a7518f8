"""A folder for each pool of an experiment: rows, tests, their capture, and tokens for arms.py."""

import json
from pathlib import Path

import torch

import gradsift as gs
from gradsift.config import SelectionConfig
from gradsift.console import talk_on_stderr
from gradsift.evaluation.losses import windows_of
from gradsift.selection.constraints import parse_budget
from gradsift.selection.selector import choose_rows
from gradsift.selection.strategies.catalogue import needs_of

MAX_LENGTH = 160
N_WINDOWS = 24
# As on a GPU; on a CPU that has it, 2.5 times as fast.
SFT = {"bf16": True}


def prepare(folder, rows, tests, *, model="demo", text=None, max_length=MAX_LENGTH, losses=False):
    """Write rows and tests (name → rows with prompt and response), capture, and write tokens.

    Resumes. `text` is a file of general text, of which the first windows are a test, too; with
    `losses` the reference losses are computed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pool.jsonl", rows)
    progress = talk_on_stderr()
    gs.capture(
        model,
        load(folder / "pool.jsonl"),
        out=folder / "run",
        max_length=max_length,
        sft=SFT,
        progress=progress,
    )
    if losses:
        with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16):
            gs.reference_losses(folder / "run", progress=progress)
    run = gs.Run(folder / "run")
    write_tokens(folder / "rows.jsonl", run.instances)
    (folder / "tests").mkdir(exist_ok=True)
    for name, test in tests.items():
        write_rows(folder / f"{name}.jsonl", test)
        write_tokens(
            folder / "tests" / f"{name}.jsonl", run.tokenized(load(folder / f"{name}.jsonl")).items
        )
    if text is not None:
        windows = windows_of(Path(text).read_text(), run.tokenizer, max_length)[:N_WINDOWS]
        lines = [
            {"id": str(at), "input_ids": list(window), "labels": list(window)}
            for at, window in enumerate(windows)
        ]
        write_rows(folder / "tests" / "text.jsonl", lines)
    return run


def capture_target(folder, rows, model="demo"):
    """Capture rows to be like, with the untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    gs.capture(
        model,
        load(folder / "rows.jsonl"),
        out=folder / "run",
        max_length=MAX_LENGTH,
        record_at="after",
        warmup_fraction=0.0,
        signal="full",
        sft=SFT,
        progress=talk_on_stderr(),
    )


def add_jobs(path, jobs):
    """Add trainings for `arms.py` to what is there already, each once."""
    there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    named = {(job["pool"], job["arm"], job["training"]): job for job in [*jobs, *there]}
    write_rows(path, named.values())
    print(len(named), "jobs")


def selected(run, budget, settings):
    """Return the ids that a selection takes."""
    config = SelectionConfig(**settings)
    pool = run.candidates(needs_of(config))
    rows_S = choose_rows(pool, parse_budget(budget), config, run.context(config))
    return [pool.ids[row] for row in rows_S]


def n_rows_of(run, budget):
    """Return the rows that a budget comes to."""
    return round(parse_budget(budget).resolve(len(run.instances), 0).amount)


def load(path):
    return gs.load_pool(str(path), prompt_column="prompt", response_column="response")


def write_tokens(path, instances):
    write_rows(
        path,
        [
            {"id": item.instance_id, "input_ids": item.input_ids, "labels": item.labels}
            for item in instances
        ],
    )


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
