"""How many operators a recording step takes, and that none waits for the device.

`TRITON_INTERPRET=1 PYTHONPATH=tests python tests/gradients/test_operators.py` prints a table.
"""

import dataclasses
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradsift.gradients import backends as module
from gradsift.gradients.instance_loss import summed_loss
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tokens import ResponseTokens
from gradsift.training.layers import add_fused_head, track
from tiny import tiny_llama

N_ROWS, VOCABULARIES = (4, 16), (512, 16384)
# What `.item()`, `.tolist()`, `bool(tensor)` and sizes that depend on values become.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "equal",
)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.by_name[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    def waits(self):
        return {name: self.by_name[name] for name in WAITS if self.by_name[name]}


def batch_of(n_rows, vocabulary, n_tokens=12):
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(1, vocabulary, (n_rows, n_tokens), generator=generator)
    labels_BT = input_ids_BT.clone()
    for row in range(n_rows):
        labels_BT[row, : 2 + row % 4] = -100
    return input_ids_BT, labels_BT


def count_step(n_rows, vocabulary, backend, *, recorded=True, method="fused", backward=True):
    """Count the operators of forward, backward and finish, model included."""
    model = tiny_llama(vocab_size=vocabulary)
    fused = add_fused_head(model) if method == "fused" else None
    recorder = Recorder(track(model, fused), SketchSpec(64, 0), backend=backend)
    batch = batch_of(n_rows, vocabulary)
    layout = ResponseTokens.compact if method == "fused" else ResponseTokens.every_position
    tokens = layout(batch[1])
    if fused is not None:
        fused.backend = backend

    def step():
        with torch.set_grad_enabled(backward):
            if recorded:
                recorder.begin(range(n_rows), 0, *batch, tokens)
            if fused is not None:
                output = model(input_ids=batch[0], response_tokens=tokens)
                loss = -output["log_probs"].sum()
            else:
                loss = summed_loss(model(input_ids=batch[0]).logits, batch[1])
        if backward:
            loss.backward()
        return recorder.finish(backward=backward) if recorded else None

    with recorder if recorded else torch.enable_grad():
        step()  # What is decided once is decided here.
        with Count() as count:
            step()
    return count


@pytest.mark.parametrize("method", ["fused", "hooked"])
@pytest.mark.parametrize("backward", [True, False])
def test_neither_rows_nor_vocabulary_add_operators(method, backward):
    """As long as everything fits into one chunk."""
    roomy = dataclasses.replace(module.BATCHED, logits_bytes=2**40, gradient_bytes=2**40)
    counts = {
        (n_rows, vocabulary): count_step(
            n_rows, vocabulary, roomy, method=method, backward=backward
        )
        for n_rows in N_ROWS
        for vocabulary in VOCABULARIES
    }
    totals = {key: count.by_name.total() for key, count in counts.items()}
    assert len(set(totals.values())) == 1, totals
    assert all(not count.waits() for count in counts.values())


class Launches:
    """Stands in for a kernel: what it would have written does not matter for counting."""

    def __init__(self):
        self.n = 0

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **constants):
        self.n += 1


def count_triton_step(monkeypatch, n_rows, vocabulary, **options):
    from gradsift.gradients import kernels_triton

    launches = Launches()
    for name in ("_errors_kernel", "_row_sums_kernel"):
        monkeypatch.setattr(kernels_triton, name, launches)
    count = count_step(n_rows, vocabulary, module.TRITON, **options)
    return count, launches.n // 2  # Two steps, one of them counted.


def test_with_triton_neither_rows_nor_vocabulary_add_operators(monkeypatch):
    pytest.importorskip("triton")
    totals = set()
    for n_rows in N_ROWS:
        for vocabulary in VOCABULARIES:
            count, launches = count_triton_step(monkeypatch, n_rows, vocabulary)
            assert not count.waits()
            totals.add((count.by_name.total(), launches))
    assert len(totals) == 1, totals
    assert totals.pop()[1] == 2  # One for the errors, one for the sums of all rows.


def test_bytes_add_operators():
    """Negative control: where a chunk holds less there are more of them."""
    narrow = dataclasses.replace(module.BATCHED, logits_bytes=12 * 16384 * 4)
    few = count_step(16, 512, narrow).by_name.total()
    many = count_step(16, 16384, narrow).by_name.total()
    assert many > few + 100


@pytest.mark.parametrize(
    "backend", [module.BATCHED, module.BLOCKWISE], ids=lambda backend: backend.name
)
@pytest.mark.parametrize("method", ["fused", "hooked"])
def test_nothing_waits(backend, method):
    assert not count_step(4, 4096, backend, method=method).waits()


def test_waiting_is_seen():
    """Negative control of the tests above."""
    with Count() as count:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert count.waits() == {"_local_scalar_dense": 1, "nonzero": 1}


class RefuseFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple) else (output,):
            is_wide = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
            assert not is_wide or tensor.dim() == 0, f"{func} gives float64"
        return output


@pytest.mark.parametrize("method", ["fused", "hooked"])
def test_a_device_without_float64_is_not_asked_for_it(monkeypatch, method):
    """Apple's GPUs have none; numbers of Python are 0-d float64 tensors until they are used."""
    module.has_float64.cache_clear()
    monkeypatch.setattr(module, "has_float64", lambda device: False)
    with RefuseFloat64():
        count_step(4, 512, module.BATCHED, method=method)


def test_float64_is_seen():
    """Negative control of the test above."""
    with pytest.raises(AssertionError, match="gives float64"), RefuseFloat64():
        count_step(4, 512, module.BATCHED)


def table():
    """Operators of a step with and without recording, and of scoring."""
    print("backend, method: rows, vocabulary: plain step, recording, scoring")
    patch = pytest.MonkeyPatch()
    for backend in (module.TRITON, module.BATCHED, module.BLOCKWISE):
        for method in ("fused", "hooked"):
            for n_rows in N_ROWS:
                for vocabulary in VOCABULARIES:
                    counts = []
                    for options in ({"recorded": False}, {}, {"backward": False}):
                        if backend is module.TRITON:
                            step = count_triton_step(
                                patch, n_rows, vocabulary, method=method, **options
                            )
                            counts.append(f"{step[0].by_name.total()} + {step[1]} kernels")
                        else:
                            step = count_step(n_rows, vocabulary, backend, method=method, **options)
                            counts.append(str(step.by_name.total()))
                    print(f"{backend.name}, {method}: {n_rows}, {vocabulary}: {', '.join(counts)}")


if __name__ == "__main__":
    table()
