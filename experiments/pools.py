"""A folder for each pool of an experiment: rows, test rows, their capture, and tokens for `arms`."""

import json
from pathlib import Path

import gradsift as gs
from gradsift.console import talk_on_stderr
from gradsift.evaluation.losses import windows_of

MAX_LENGTH = 160
N_WINDOWS = 24


def prepare(folder, rows, tests, *, model="demo", text=None, max_length=MAX_LENGTH):
    """Write rows and tests (name → rows with prompt and response), capture, and write tokens.

    Resumes. `text` is a file of general text, of which the first windows are a test, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pool.jsonl", rows)
    progress = talk_on_stderr()
    gs.capture(
        model,
        load(folder / "pool.jsonl"),
        out=folder / "run",
        max_length=max_length,
        progress=progress,
    )
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
