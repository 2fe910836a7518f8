"""Which backend is taken where, and how a micro-batch is divided."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift.gradients import backends as module
from gradsift.gradients.backends import Backend, backends_for

CUDA = torch.device("cuda")


def test_the_fastest_backend_of_a_device_comes_first(monkeypatch):
    monkeypatch.setattr(module, "_triton_works", lambda device: True)
    assert backends_for(torch.device("cpu"), torch.float32) == (module.BLOCKWISE,)
    assert backends_for(torch.device("mps"), torch.float32) == (module.BATCHED,)
    assert backends_for(CUDA, torch.bfloat16) == (module.TRITON, module.BATCHED)
    assert backends_for(CUDA, torch.float64) == (module.BATCHED,)


@pytest.mark.parametrize("installed", [True, False])
def test_where_the_kernels_do_not_run_pytorch_does(monkeypatch, caplog, installed):
    def broken(name, *_, **__):
        raise OSError(f"no {name}\nand so on")

    monkeypatch.setattr(module.importlib, "import_module", broken)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: installed or None)
    module._triton_works.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert backends_for(CUDA, torch.float32) == (module.BATCHED,)
    module._triton_works.cache_clear()
    warning = "Triton's kernels do not run here (OSError: no gradsift.gradients.kernels_triton)"
    assert (warning in caplog.text) == installed


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=12).map(tuple),
    n_columns=st.integers(1, 5000),
    width=st.integers(1, 64),
    backend=st.sampled_from(
        [
            Backend("blockwise", 2**16, rows_at_once=1, block_rows=64, align=32),
            Backend("batched", 2**16, gradient_bytes=2**16, align=32),
            Backend("triton", 2**16, align=32),
        ]
    ),
)
def test_chunks_are_whole_rows_within_bounds(lengths, n_columns, width, backend):
    chunks = backend.chunks(lengths, n_columns, width, 4)
    assert [n for chunk in chunks for n in chunk.lengths] == list(lengths)
    assert [i for chunk in chunks for i in range(chunk.rows.start, chunk.rows.stop)] == list(
        range(len(lengths))
    )
    token = 0
    for chunk in chunks:
        assert chunk.tokens == slice(token, token + sum(chunk.lengths))
        token = chunk.tokens.stop
        logits_bytes = sum(chunk.lengths) * n_columns * 4
        assert len(chunk.lengths) == 1 or logits_bytes <= backend.logits_bytes
        assert chunk.keeps_logits == (logits_bytes <= backend.logits_bytes)
        blocks = chunk.blocks(n_columns)
        assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(n_columns))
        assert all(block.start % backend.align == 0 for block in blocks)
        if backend.gradient_bytes is not None and chunk.block > backend.align:
            assert len(chunk.lengths) * chunk.block * width * 4 <= backend.gradient_bytes


def test_rows_are_padded_with_zeros_and_nothing_spreads():
    (chunk,) = Backend("batched", 2**30, gradient_bytes=2**30).chunks((2, 0, 3), 5, 1, 4)
    values = torch.tensor([[1.0], [float("nan")], [3.0], [4.0], [5.0]])
    padded = chunk.padded(values)[..., 0]
    assert padded[1:].tolist() == [[0, 0, 0], [3, 4, 5]]
    assert padded[0, 0] == 1
    assert padded[0, 2] == 0


def test_the_trial_of_the_kernels_sees_wrong_sums(monkeypatch):
    pytest.importorskip("triton")
    from gradsift.gradients import kernels_triton

    cpu = torch.device("cpu")
    kernels_triton.require_right_sums(cpu)
    real = kernels_triton._launch
    monkeypatch.setattr(kernels_triton, "_launch", lambda *arguments: real(*arguments) * 1.01)
    with pytest.raises(ArithmeticError, match="expected"):
        kernels_triton.require_right_sums(cpu)
