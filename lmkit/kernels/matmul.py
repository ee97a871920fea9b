"""fp32 matrix products on the CPU, through the faster of PyTorch's two libraries.

PyTorch uses MKL for them, which on AMD runs at half the rate of oneDNN. It uses oneDNN only if bf16
is allowed; on machines where oneDNN has no bf16 kernel, results are those of fp32 all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch


@contextmanager
def fast_matmul() -> Iterator[None]:
    """A context for products of fp32 matrices: the same up to rounding, and on some machines twice
    as fast.

    It is used with `kernels=torch` too: older runs with that would else not resume bit for bit.
    """
    if onednn_is_exact():
        with _through_onednn():
            yield
    else:
        yield


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which products with a tensor are computed: autocast's, or the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN has only the rounding error of fp32 here, even though bf16 is allowed."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 512, 512, generator=generator, device="cpu")
    with _through_onednn(), torch.autocast("cpu", enabled=False):
        error = (one @ other).double() - one.double() @ other.double()
    return float(error.abs().max()) < 1e-3  # fp32: about 1e-4; bf16: about 0.3


def fp32_products() -> str:
    """The library that computes fp32 products here, for the record of a run's environment."""
    return "oneDNN" if onednn_is_exact() else "PyTorch's default"


def exact_on_gpu() -> AbstractContextManager[None]:
    """A context in which cuDNN multiplies fp32 as such, which PyTorch's other products on a GPU do
    anyway: its default is TF32, whose mantissa is fp16's."""
    cudnn: Any = torch.backends.cudnn
    try:
        _ = cudnn.allow_tf32
    except RuntimeError:  # the program has set it by operator, which is refused beside the switch
        return _set("fp32_precision", "ieee", cudnn.rnn, cudnn.conv)
    return _set("allow_tf32", False, cudnn)


def _through_onednn() -> AbstractContextManager[None]:
    return _set("fp32_precision", "bf16", torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def _set(name: str, value: Any, *places: Any) -> Iterator[None]:
    """A context in which an attribute of all places has a value."""
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            setattr(place, name, own)
