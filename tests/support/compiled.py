"""Whether there are compiled kernels here, and in which types they compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lmkit import kernels

needs_kernels = pytest.mark.skipif(kernels.load()[0] is None, reason=kernels.load()[1])
BF16 = kernels.compiled(torch.device("cpu"), torch.bfloat16)
DTYPES = [torch.float32, *([torch.bfloat16] if BF16 else [])]


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """More of them than cores too: then some threads come late, as beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
