"""Whether there are compiled kernels here, and in which types they compute."""

import pytest
import torch

from lmkit import kernels

needs_kernels = pytest.mark.skipif(kernels.load()[0] is None, reason=kernels.load()[1])
BF16 = kernels.compiled(torch.device("cpu"), torch.bfloat16)
DTYPES = [torch.float32, *([torch.bfloat16] if BF16 else [])]
