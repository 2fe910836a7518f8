"""The arithmetics that the tests go through: small bounds, so that small inputs meet them.

Triton's kernels run in its interpreter, where Triton is installed.
"""

import importlib.util
import os

import pytest
import torch

from gradsift.gradients.arithmetic import Arithmetic

# A block of the vocabulary begins at whole runs of a sketch, so sketches here have up to 8 numbers.
SMALL = {"align": 8}
ARITHMETICS = {
    "blockwise": Arithmetic("blockwise", 2**30, rows_at_once=1, block_rows=8, **SMALL),
    "blockwise, twice": Arithmetic("blockwise", 0, rows_at_once=1, block_rows=8, **SMALL),
    "batched": Arithmetic("batched", 2**30, gradient_bytes=2**30, **SMALL),
    "batched, narrow": Arithmetic("batched", 3000, gradient_bytes=2000, **SMALL),
    "triton": Arithmetic("triton", 2**30, **SMALL),
    "triton, narrow": Arithmetic("triton", 600, **SMALL),
}


HAS_TRITON = importlib.util.find_spec("triton") is not None


def arithmetic_named(name: str, dtype: torch.dtype) -> Arithmetic:
    """One of ARITHMETICS; the test is skipped where it does not work."""
    arithmetic = ARITHMETICS[name]
    if arithmetic.name == "triton":
        if not HAS_TRITON:
            pytest.skip("Triton is not installed")
        assert os.environ["TRITON_INTERPRET"] == "1", "tests/conftest.py sets it"
        if dtype == torch.float64:
            pytest.skip("the kernels sum up in float32")
    return arithmetic
