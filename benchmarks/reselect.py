"""How long it takes to select again from a large run, from typing to file, and to print the help.

Makes a run folder as a capture of so many rows would leave it (features and statistics imitate
those of a real run, see selection.py), selects once (which finds the neighbours and keeps them),
then times further selections, each a process of its own.

Usage: python benchmarks/reselect.py RUN FOLDER [--rows 50000] [--repeats 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gradsift.config import ReadingConfig
from gradsift.data.containers.rows import fingerprint
from gradsift.data.containers.sources import find_source
from gradsift.data.pool import read_pool
from gradsift.data.texts import lines_of_texts
from gradsift.seals import write_parquet
from gradsift.store.manifest import Manifest
from gradsift.store.reader import read_store
from gradsift.store.tables import (
    INSTANCE,
    POOL_NAME,
    digest_of_pool,
    pool_table,
    texts_table,
    write_texts,
)
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, STATISTICS
from selection import imitated

CONTENT_WIDTH, SKETCH_SIZE = 576, 256


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    out = arguments.folder / "run"
    if not out.exists():
        make_run(arguments.run, arguments.folder, out, arguments.rows)
    size = sum(path.stat().st_size for path in (out / "gradients").iterdir())
    found = {"rows": arguments.rows, "store_mb": size / 1e6}
    # Nobody captured it: its rows are read from the file that is named.
    select = ("select", out, "--data", arguments.folder / "data.jsonl")
    found["first_select_s"] = seconds(*select, "--budget", "50%", "--name", "first")
    for budget in ("5%", "20%", "50%"):
        times = [
            seconds(*select, "--budget", budget, "--name", f"{budget[:-1]}-{i}")
            for i in range(arguments.repeats)
        ]
        found[f"select {budget}"] = spread(times)
    found["help"] = spread([seconds("--help") for _ in range(arguments.repeats)])
    print(json.dumps(found, indent=1))


def spread(times):
    return {"median_s": statistics.median(times), "from": min(times), "to": max(times)}


def seconds(*words):
    start = time.perf_counter()
    command = [sys.executable, "-m", "gradsift", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def said(n, n_words):
    """Texts of so many words, which are as frequent as words are (Zipf's law)."""
    generator = np.random.default_rng(n_words)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(generator.choice(letters, size=1 + k % 9)) for k in range(20_000)]
    shares = 1 / np.arange(1, len(words) + 1)
    drawn = generator.choice(len(words), size=(n, n_words), p=shares / shares.sum())
    return [" ".join(words[at] for at in row) for row in drawn.tolist()]


def make_run(like, folder, out, n):
    features, values = imitated(like, n)
    generator = np.random.default_rng(1)
    wide = generator.normal(size=(features.shape[1], CONTENT_WIDTH)).astype(np.float32)
    store = read_store(like)
    drawn = np.random.default_rng(0).integers(len(store.instance_ids), size=n)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    rows = [
        {"id": f"r{i:06d}", "prompt": prompt, "response": response}
        for i, (prompt, response) in enumerate(zip(said(n, 12), said(n, 200), strict=True))
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    data.write_text("".join(lines))
    source = find_source(str(data), None)
    about = {
        "data": {"name": source.name, "container": source.container, "split": source.split},
        "data_sha256": fingerprint(source),
        "row_format": "qa",
        "columns": {"prompt": "prompt", "response": "response"},
        "text_pairs": False,
        "self_check": {"n_rows": 2},
    }
    places = np.cumsum([0, *map(len, lines)]).tolist()
    tokens = (store.n_response_tokens[drawn] + 30).tolist()
    blank = {"content_hash": None, "reason": None, "detail": None, "truncated": False}
    manifest = Manifest({"made": "for a benchmark"}, about, n, LAYERS)
    with StoreWriter(out, manifest, content_width=CONTENT_WIDTH, sketch_size=SKETCH_SIZE) as writer:
        writer.keep_until(0)
        table = pool_table(
            [
                {
                    **blank,
                    "row": i,
                    "line": i + 1,
                    "instance_id": f"r{i:06d}",
                    "start": places[i],
                    "end": places[i + 1],
                    "status": INSTANCE,
                    "n_tokens": tokens[i],
                    "n_response_tokens": tokens[i] - 30,
                    "source": None,
                    "language": "en",
                }
                for i in range(n)
            ]
        )
        write_parquet(out / POOL_NAME, table)
        read = read_pool(str(data), ReadingConfig()).rows
        write_texts(out, digest_of_pool(table), texts_table(lines_of_texts(read, ["en"] * n)))
        for start in range(0, n, 5_000):
            rows = range(start, min(start + 5_000, n))
            content = features[rows.start : rows.stop] @ wide
            records = []
            for at, i in enumerate(rows):
                for layer in LAYERS:
                    norm = float(values[layer]["l2_norm"][i])
                    sketch = generator.normal(size=SKETCH_SIZE).astype(np.float32)
                    records.append(
                        {
                            "instance_id": f"r{i:06d}",
                            "layer": layer,
                            "step": i // 8,
                            "loss": float(store.loss[drawn[i]]),
                            "el2n": float(store.el2n[drawn[i]]),
                            "n_response_tokens": tokens[i] - 30,
                            **dict.fromkeys(STATISTICS, norm),
                            "status": "ok",
                            "content_features": content[at] if layer == "lm_head" else None,
                            "sketch": sketch,
                        }
                    )
            writer.append(records, last_step=start // 8, about={}, complete=rows.stop == n)


if __name__ == "__main__":
    main()
