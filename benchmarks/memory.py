"""Bytes that one pass over the head holds at most, beside its inputs: by formula and as counted.

Every tensor that an operator creates is counted as long as its storage lives, so this needs no GPU;
Triton's kernels are stood in for (they allocate nothing), where the package is installed. A
micro-batch of ROWS rows of TOKENS response tokens, recording, with the gradients that
full-parameter training needs.

Usage: python benchmarks/memory.py [--rows 16] [--tokens 256] [--vocabulary 49152] [--width 576]
"""

import argparse
import weakref
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradsift.gradients.backends import BATCHED, BLOCKWISE, TRITON
from gradsift.gradients.head import HeadProduct, head_pass
from gradsift.gradients.sketch import TensorSketch
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators create, and the most there were at once."""

    def __init__(self, known):
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._live = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage):
        at = storage.data_ptr()
        if at in self._known or at in self._live or storage.nbytes() == 0:
            return
        self._live[at] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, at)

    def _free(self, at):
        self.now -= self._live.pop(at, 0)


def formula(backend, chunks, n_tokens, n_columns, width, size, itemsize):
    """What is certain to be held together: results, and the largest chunk while it is worked on."""
    results = 4 * (n_columns * width + n_tokens * width + n_tokens * size)
    most = 0
    for chunk in chunks:
        n = sum(chunk.lengths)
        kept = n * (n_columns if chunk.keeps_logits else chunk.block) * itemsize
        if backend.name == "triton":
            # The weight's gradient of a chunk before it is added to the others'.
            most = max(most, kept + (itemsize * n_columns * width if len(chunks) > 1 else 0))
            continue
        gradient = 4 * len(chunk.lengths) * chunk.block * width
        # Backprops of a block; the gradients of its rows, and their absolute values.
        most = max(most, kept + 4 * n * chunk.block + 2 * gradient)
    return results + most


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    arguments = parser.parse_args()
    n_columns, width = arguments.vocabulary, arguments.width
    labels_BT = torch.randint(n_columns, (arguments.rows, arguments.tokens + 1))
    tokens = ResponseTokens.compact(labels_BT)
    sketch = TensorSketch.seeded(n_columns, width, size=1024, seed=0, device=torch.device("cpu"))
    for backend, dtype in (
        (TRITON, torch.bfloat16), (TRITON, torch.float32), (BATCHED, torch.float32),
        (replace(BATCHED, logits_bytes=64 * MIB, gradient_bytes=64 * MIB), torch.float32),
        (BLOCKWISE, torch.float32),
    ):  # fmt: skip
        if backend is TRITON:
            if find_spec("triton") is None:
                print("triton: skipped: not installed")
                continue
            from gradsift.gradients import kernels_triton

            class Nothing:
                def __getitem__(self, grid):
                    return lambda *arguments, **constants: None

            kernels_triton._errors_kernel = kernels_triton._row_sums_kernel = Nothing()
            kernels_triton._best_config = lambda *_: kernels_triton.CONFIGS[0]
        x_ND = torch.randn(len(tokens.targets_N), width).to(dtype)
        weight_VD = torch.randn(n_columns, width).to(dtype)
        known = [x_ND, weight_VD, tokens.targets_N, tokens.rows_N, tokens.offsets_I1]
        with LiveBytes(known) as live:
            head_pass(
                HeadProduct(x_ND, weight_VD, None), tokens, HeadTransform(), backend,
                sketch=sketch, needs_grad=(True, True, False),
            )  # fmt: skip
        chunks = backend.chunks(tokens.lengths, n_columns, width, dtype.itemsize)
        expected = formula(backend, chunks, len(x_ND), n_columns, width, 1024, dtype.itemsize)
        name = f"{backend.name}, {str(dtype).removeprefix('torch.')}"
        print(
            f"{name:22} {len(chunks):3} chunks of at most {backend.logits_bytes // MIB} MiB of "
            f"logits: formula {expected / MIB:6.0f} MiB, counted {live.most / MIB:6.0f} MiB "
            f"({live.most / expected:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
