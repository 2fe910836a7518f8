"""Attention whose kernels need no preparation for each shape of a batch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention() -> Generator[None, None, None]:
    """Leave cuDNN out of PyTorch's scaled_dot_product_attention, in a `with` or as a decorator.

    PyTorch prefers it on recent GPUs, where it builds a plan for each new shape: on an H100 0.1 to
    2 s each, with rows of different lengths in most steps. Flash attention takes over.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)
