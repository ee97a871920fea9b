"""fp32 matrix products on the CPU, through the faster of its two libraries.

PyTorch sends them to MKL, which on AMD runs at half the rate of oneDNN. The one way to oneDNN
is to allow it bf16; where it has no kernel that would use that, its results stay those of fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Around products of fp32 matrices: the same to rounding, twice as fast where it can be.

    With `kernels=torch` too: runs that were begun with it would not go on bit for bit otherwise.
    """
    if onednn_is_exact():
        with _through_onednn():
            yield
    else:
        yield


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """In which products with it are computed: autocast's type, or its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN, allowed bf16, still has the rounding error of fp32 on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 512, 512, generator=generator, device="cpu")
    with _through_onednn(), torch.autocast("cpu", enabled=False):
        error = (one @ other).double() - one.double() @ other.double()
    return float(error.abs().max()) < 1e-3  # fp32: about 1e-4; bf16: about 0.3


def fp32_products() -> str:
    """By what they are computed here, for the records."""
    return "oneDNN" if onednn_is_exact() else "PyTorch's default"


@contextmanager
def _through_onednn() -> Iterator[None]:
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
