"""How the cost of the statistics grows with the length of a response and with the vocabulary.

Random weights and hidden states. Beside each time stands a floor: the products that no exact way
can do without (logits and the weight's gradient for the LM head, the sums of equal tokens' rows for
the embedding), done as plainly as possible.

Usage: python benchmarks/growth.py [--width 576] [--repeats 3]
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import torch

from gradsift.gradients import kernels_torch
from gradsift.gradients.backends import BLOCKWISE
from gradsift.gradients.head import HeadProduct, head_pass
from gradsift.gradients.records import Record
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.statistics import embedding_summaries, entry_sums
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.seals import write_parquet
from gradsift.store.manifest import record_schema
from gradsift.training.record_writer import store_rows

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
VOCABULARIES = (32_000, 49_152, 65_536, 100_352, 128_256, 151_936)
BLOCK = 2048
SKETCH_SIZE = 1024


def one_row(targets_T):
    """A row whose every token is a response token."""
    labels_1T = torch.cat([targets_T[:1], targets_T])[None]
    return ResponseTokens.compact(labels_1T)


def head_seconds(x_TD, weight_VD, targets_T, sketch, repeats):
    tokens = one_row(targets_T)

    def ours():
        product = HeadProduct(x_TD, weight_VD, None)
        head_pass(product, tokens, HeadTransform(), BLOCKWISE, sketch=sketch)

    def floor():
        for start in range(0, len(weight_VD), BLOCK):
            z_TR = x_TD @ weight_VD[start : start + BLOCK].T
            z_TR.T @ x_TD

    return seconds(ours, repeats), seconds(floor, repeats)


def embedding_seconds(tokens_T, delta_TD, n_rows, sketch, repeats):
    def ours():
        embedding_summaries(tokens_T, torch.zeros_like(tokens_T), delta_TD, 1, n_rows, sketch)

    def floor():
        used_U, at_T = tokens_T.unique(return_inverse=True)
        torch.zeros(len(used_U), delta_TD.shape[1]).index_add_(0, at_T, delta_TD)

    return seconds(ours, repeats), seconds(floor, repeats)


def sketch_for(vocabulary, width):
    cpu = torch.device("cpu")
    return TensorSketch.seeded(vocabulary, width, size=SKETCH_SIZE, seed=0, device=cpu)


def seconds(do, repeats):
    do()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(length, vocabulary, width, repeats):
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(vocabulary, width, generator=generator) / width**0.5
    x_TD = torch.randn(length, width, generator=generator)
    tokens_T = torch.randint(vocabulary, (length,), generator=generator)
    sketch = sketch_for(vocabulary, width)
    with torch.no_grad():
        return (
            *head_seconds(x_TD, weight_VD, tokens_T, sketch, repeats),
            *embedding_seconds(tokens_T, x_TD, vocabulary, sketch, repeats),
        )


def series(name, sizes, times):
    print(f"\n{name:>10}  head s   floor s  ratio   embedding ms  floor ms")
    for size, (head, floor, embedding, sums) in zip(sizes, times, strict=True):
        print(
            f"{size:>10}  {head:7.3f}  {floor:7.3f}  {head / floor:5.2f}   "
            f"{1e3 * embedding:12.2f}  {1e3 * sums:8.2f}",
            flush=True,
        )
    for which, i in (("head", 0), ("floor", 1)):
        slope = math.log(times[-1][i] / times[0][i]) / math.log(sizes[-1] / sizes[0])
        print(f"{which}: grows as the power {slope:.2f} of it")


def pieces(width, repeats, length=256, vocabulary=49_152):
    """What each piece of a row's record costs by itself."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(vocabulary, width, generator=generator) / width**0.5
    x_TD = torch.randn(length, width, generator=generator)
    tokens_T = torch.randint(vocabulary, (length,), generator=generator)
    sketch = sketch_for(vocabulary, width)
    product, tokens = HeadProduct(x_TD, weight_VD, None), one_row(tokens_T)
    transform, every = HeadTransform(), slice(None)
    starts = range(0, vocabulary, BLOCK)

    def logits():
        blocks = [product.outputs(every, slice(at, at + BLOCK)) for at in starts]
        return blocks, torch.stack([block.logsumexp(1) for block in blocks]).logsumexp(0)

    def errors(sketch):
        return [
            kernels_torch.errors(z_TR, tokens_T, at, transform, normaliser_T, sketch)
            for z_TR, at in zip(outputs, starts, strict=True)
        ]

    outputs, normaliser_T = logits()
    deltas = [block.delta_nr for block in errors(None)]
    gradients = [delta.T @ x_TD for delta in deltas]
    (head,) = head_pass(
        product, tokens, transform, BLOCKWISE, sketch=sketch
    ).records.summaries.cpu()
    (embedding,) = embedding_summaries(
        tokens_T, torch.zeros_like(tokens_T), x_TD, 1, vocabulary, sketch
    ).cpu()
    row = Record(0, 0, 1.0, 1.0, length, embedding, head, x_TD.mean(0), True)
    rows = [line for i in range(400) for line in store_rows(row, f"row{i}")]
    schema = record_schema(width, SKETCH_SIZE)
    folder = Path(tempfile.mkdtemp())

    def store():
        write_parquet(folder / "part.parquet", pa.Table.from_pylist(rows, schema=schema))

    costs = {
        "logits and normaliser": logits,
        "softmax minus one-hot": lambda: errors(None),
        "the same, with count sketches": lambda: errors(sketch),
        "the row's gradient (a product that training needs)": lambda: [d.T @ x_TD for d in deltas],
        "six statistics": lambda: [entry_sums(g[None]) for g in gradients],
        "the sketch of them": lambda: sketch.convolve(
            sketch.rows(deltas[0], 0), sketch.columns(x_TD), tokens.sum_rows
        ),
        "embedding, all of it": lambda: embedding_summaries(
            tokens_T, torch.zeros_like(tokens_T), x_TD, 1, vocabulary, sketch
        ),
        "content features": lambda: x_TD.float().mean(0),
    }
    print(f"\npieces of one row: {length} response tokens, vocabulary {vocabulary}, ms")
    with torch.no_grad():
        for name, do in costs.items():
            print(f"  {name:52}{1e3 * seconds(do, repeats):8.2f}")
    print(f"  {'store, written 400 rows at a time':52}{1e3 * seconds(store, repeats) / 400:8.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    width, repeats = arguments.width, arguments.repeats
    print(f"{torch.get_num_threads()} threads, width {width}")
    pieces(width, repeats)
    series("length", LENGTHS, [measure(n, 49_152, width, repeats) for n in LENGTHS])
    series("vocabulary", VOCABULARIES, [measure(256, v, width, repeats) for v in VOCABULARIES])


if __name__ == "__main__":
    main()
