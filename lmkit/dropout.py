"""Dropout whose mask is a function of a key and of the place in the tensor.

The mask is not kept for backward but made again, costs a tenth of drawing it from the
generator's one stream, and does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit import kernels

Key = tuple[int, int]
SIGN = -(2**31)


def dropout(tensor: Tensor, p: float, training: bool) -> Tensor:
    """Zero with probability p, else divide by 1 - p (Srivastava et al. 2014). On the CPU by a
    key of two uint32 drawn from the default generator, elsewhere by PyTorch's own kernel."""
    if not training or p == 0:
        return tensor
    if tensor.device.type != "cpu" or p == 1:
        return F.dropout(tensor, p)
    first, second = torch.randint(2**32, (2,)).tolist()
    return KeyedDropout.apply(tensor, p, (first, second))


class KeyedDropout(torch.autograd.Function):
    """Linear in the tensor: its gradient is the same function with the same mask."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, p: float, key: Key) -> Tensor:
        ctx.settings = (p, key)
        tensor = tensor.contiguous()
        threshold, scale = round(p * 2**32), 1 / (1 - p)
        compiled = kernels.compiled(tensor.device, tensor.dtype)
        return (hashed if compiled else masked)(tensor, key, threshold, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return KeyedDropout.apply(grad, *ctx.settings), None, None


def hashed(tensor: Tensor, key: Key, threshold: int, scale: float) -> Tensor:
    """`scale` times the elements for which the hash of key and place reaches threshold."""
    kept = torch.empty_like(tensor)
    given = (tensor.numel(), tensor, kept, *key, threshold, scale)
    kernels.call("dropout", tensor.dtype, *given)
    return kept


def masked(tensor: Tensor, key: Key, threshold: int, scale: float) -> Tensor:
    """`hashed` by PyTorch's operators: bit for bit the same mask."""
    drawn = torch.arange(tensor.numel(), dtype=torch.int32)
    for half in key:
        drawn = lowbias32(drawn ^ (half - 2**32 if half >= 2**31 else half))
    # int32 compares like uint32 with the sign bit turned over.
    dropped = (drawn ^ SIGN) < threshold + SIGN
    return (tensor * scale).masked_fill_(dropped.view_as(tensor), 0)


def lowbias32(x: Tensor) -> Tensor:
    """Wellons' 32-bit hash (2018), in int32."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
