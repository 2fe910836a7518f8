"""How far is each backend from float64, from one response token to thousands?

One pass over the head for rows of several lengths in one micro-batch, head bias, scale and soft-cap
included; the reference is that of gpu.py. On a CPU Triton's kernels run in its interpreter, which
truncates to bfloat16 where a GPU rounds, so their bfloat16 errors are larger than a GPU's.

Usage: TRITON_INTERPRET=1 python benchmarks/backends.py [--width 64]
"""

import argparse
from itertools import product
from types import SimpleNamespace

import torch
from gpu import DEVICE, largest, number, row_truth, to_check

from gradsift.gradients.head import HeadProduct, head_pass
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

SHORT, LONG = (1, 2, 17, 256), (1, 64, 4096)
CASES = [(97, LONG), (512, LONG), (4096, SHORT), (32_000, SHORT), (49_152, SHORT), (152_064, SHORT)]
TRANSFORMS = ((1.0, None), (0.5, 3.0))


def labels_of(lengths, n_columns, generator):
    """Rows that end together; the tokens of the last one repeat."""
    labels_BT = torch.full((len(lengths), max(lengths) + 1), -100)
    for row, length in enumerate(lengths):
        labels_BT[row, -length:] = torch.randint(n_columns, (length,), generator=generator)
    labels_BT[-1, -max(lengths) // 2 :] = labels_BT[-1, -1]
    return labels_BT


def errors_of(backend, dtype, n_columns, width, lengths, transform):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    labels_BT = labels_of(lengths, n_columns, generator).to(DEVICE)
    hidden_BTD = draw(*labels_BT.shape, width)
    weight_VD, bias_V = draw(n_columns, width) / width**0.5, draw(n_columns)
    sketch = TensorSketch.seeded(n_columns, width, size=256, seed=0, device=DEVICE)
    tokens = ResponseTokens.compact(labels_BT)
    x_ND, (scale, softcap) = tokens.take(hidden_BTD), transform
    head = HeadProduct(x_ND, weight_VD, bias_V)
    transform = HeadTransform(scale, softcap)
    records = head_pass(head, tokens, transform, backend, sketch=sketch).records
    case, of_rows, at = SimpleNamespace(scale=scale, softcap=softcap), [], 0
    for row, length in enumerate(lengths):
        part, at = slice(at, at + length), at + length
        targets_n = tokens.targets_N[part]
        loss, el2n, truth = row_truth(x_ND[part], weight_VD, bias_V, targets_n, case, sketch)
        errors = truth.errors(records.summaries.values_BS[row], records.summaries.sketch_BK[row])
        errors["loss"] = number(abs(float(records.loss_B[row]) - loss) / loss)
        errors["el2n"] = number(abs(float(records.el2n_B[row]) - el2n) / el2n)
        of_rows.append(errors)
    return largest(of_rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    for backend, dtype in product(to_check(), (torch.float32, torch.bfloat16)):
        errors = [
            errors_of(backend, dtype, n_columns, arguments.width, lengths, transform)
            for (n_columns, lengths), transform in product(CASES, TRANSFORMS)
        ]
        name = str(dtype).removeprefix("torch.")
        columns = ", ".join(f"{key} {value:.0e}" for key, value in largest(errors).items())
        print(f"{backend.name}, {name}: {columns}", flush=True)


if __name__ == "__main__":
    main()
