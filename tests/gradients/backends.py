"""The backends that the tests go through: small bounds, so that small inputs meet them.

Triton's kernels run in its interpreter, where Triton is installed.
"""

import importlib.util
import os

import pytest
import torch

from gradsift.gradients.backends import Backend

# A block of the vocabulary begins at whole runs of a sketch, so sketches here have up to 8 numbers.
SMALL = {"align": 8}
BACKENDS = {
    "blockwise": Backend("blockwise", 2**30, rows_at_once=1, block_rows=8, **SMALL),
    "blockwise, twice": Backend("blockwise", 0, rows_at_once=1, block_rows=8, **SMALL),
    "batched": Backend("batched", 2**30, gradient_bytes=2**30, **SMALL),
    "batched, narrow": Backend("batched", 3000, gradient_bytes=2000, **SMALL),
    "triton": Backend("triton", 2**30, **SMALL),
    "triton, narrow": Backend("triton", 600, **SMALL),
}


HAS_TRITON = importlib.util.find_spec("triton") is not None


def backend_named(name: str, dtype: torch.dtype) -> Backend:
    """One of BACKENDS; the test is skipped where it does not work."""
    backend = BACKENDS[name]
    if backend.name == "triton":
        if not HAS_TRITON:
            pytest.skip("Triton is not installed")
        assert os.environ["TRITON_INTERPRET"] == "1", "tests/conftest.py sets it"
        if dtype == torch.float64:
            pytest.skip("the kernels sum up in float32")
    return backend
