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

from gradsift.gradients.fused import head_row
from gradsift.gradients.head import HeadBackprops, HeadTransform
from gradsift.gradients.records import Record
from gradsift.gradients.statistics import Projection, _block_sums, embedding_summary
from gradsift.store.files import write_parquet
from gradsift.store.schema import record_schema
from gradsift.training.sitting import store_rows

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
VOCABULARIES = (32_000, 49_152, 65_536, 100_352, 128_256, 151_936)
BLOCK = 2048


def head_seconds(x_TD, weight_VD, targets_T, projection, repeats):
    def ours():
        head_row(x_TD, HeadBackprops(x_TD, weight_VD, None, targets_T, HeadTransform()), projection)

    def floor():
        for start in range(0, len(weight_VD), BLOCK):
            z_TR = x_TD @ weight_VD[start : start + BLOCK].T
            z_TR.T @ x_TD

    return seconds(ours, repeats), seconds(floor, repeats)


def embedding_seconds(tokens_T, delta_TD, n_rows, projection, repeats):
    def ours():
        embedding_summary(tokens_T, delta_TD, n_rows, projection)

    def floor():
        used_U, at_T = tokens_T.unique(return_inverse=True)
        torch.zeros(len(used_U), delta_TD.shape[1]).index_add_(0, at_T, delta_TD)

    return seconds(ours, repeats), seconds(floor, repeats)


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
    projection = Projection.seeded(vocabulary, width, rank=16, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        return (
            *head_seconds(x_TD, weight_VD, tokens_T, projection, repeats),
            *embedding_seconds(tokens_T, x_TD, vocabulary, projection, repeats),
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
    projection = Projection.seeded(vocabulary, width, rank=16, seed=0, device=torch.device("cpu"))
    closed = HeadBackprops(x_TD, weight_VD, None, tokens_T, HeadTransform())
    blocks = [block.clone() for block in closed.blocks()]
    gradients = [block.T @ x_TD for block in blocks]
    lefts = projection.left_VK.split(BLOCK)
    record = head_row(x_TD, closed, projection)
    embedding = embedding_summary(tokens_T, x_TD, vocabulary, projection)
    row = Record(0, 0, 1.0, 1.0, length, embedding, record.summary, x_TD.mean(0), True)
    rows = [line for i in range(400) for line in store_rows(row, f"row{i}")]
    schema = record_schema(width, 256)
    folder = Path(tempfile.mkdtemp())

    def store():
        write_parquet(folder / "part.parquet", pa.Table.from_pylist(rows, schema=schema))

    costs = {
        "logits and normaliser": lambda: HeadBackprops(
            x_TD, weight_VD, None, tokens_T, HeadTransform()
        ),
        "softmax minus one-hot": lambda: list(closed.blocks()),
        "the row's gradient (a product that training needs)": lambda: [b.T @ x_TD for b in blocks],
        "six statistics": lambda: [_block_sums(g) for g in gradients],
        "sketch": lambda: [b @ left for b, left in zip(blocks, lefts, strict=True)],
        "embedding, all of it": lambda: embedding_summary(tokens_T, x_TD, vocabulary, projection),
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
