"""Dropout whose mask is a function of a key and of the place in the tensor.

The mask is not kept for backward but made again, costs a tenth of drawing it from the
generator's one stream, and does not depend on the number of threads, nor, within `Masks`, on the
number of processes that share the lanes of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit import kernels

Key = tuple[int, int]
SIGN = -(2**31)


class Masks:
    """Those of one window of a training, one after the other: functions of (seed, epoch, window)
    and their number, drawn for all lanes and cut to this process's, `first_lane` and after."""

    def __init__(
        self, seed: int, epoch: int, window: int, first_lane: int = 0, num_lanes: int | None = None
    ) -> None:
        """num_lanes: of all processes; those of the tensor unless given."""
        self.of = (seed, epoch, window)
        self.number = 0
        self.first_lane = first_lane
        self.num_lanes = num_lanes

    def next_key(self) -> Key:
        first, second = np.random.SeedSequence([*self.of, self.number]).generate_state(2).tolist()
        self.number += 1
        return first, second

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within it, `dropout` takes these."""
        token = _masks.set(self)
        try:
            yield
        finally:
            _masks.reset(token)


_masks: ContextVar[Masks | None] = ContextVar("masks", default=None)


def dropout(tensor: Tensor, p: float, training: bool) -> Tensor:
    """Zero with probability p, else divide by 1 - p (Srivastava et al. 2014); dimension 0 of the
    tensor is the lane. Outside of `Masks` the default generator decides."""
    if not training or p == 0:
        return tensor
    masks = _masks.get()
    if p == 1 or (masks is None and tensor.device.type != "cpu"):
        return F.dropout(tensor, p)
    if masks is None:
        first, second = torch.randint(2**32, (2,)).tolist()
        return KeyedDropout.apply(tensor, p, (first, second), 0)
    key = masks.next_key()
    if tensor.device.type == "cpu":
        return KeyedDropout.apply(tensor, p, key, masks.first_lane * tensor[0].numel())
    # Elsewhere a generator is faster than a hash by many small kernels, though it draws for all.
    generator = torch.Generator(tensor.device).manual_seed(key[0] << 32 | key[1])
    every = tensor.new_empty(masks.num_lanes or len(tensor), *tensor.shape[1:])
    every.bernoulli_(1 - p, generator=generator)
    return tensor * every[masks.first_lane : masks.first_lane + len(tensor)].div_(1 - p)


class KeyedDropout(torch.autograd.Function):
    """Linear in the tensor: its gradient is the same function with the same mask."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, p: float, key: Key, first: int) -> Tensor:
        """first: the place of the tensor's first element in that for which the mask is."""
        ctx.settings = (p, key, first)
        tensor = tensor.contiguous()
        threshold, scale = round(p * 2**32), 1 / (1 - p)
        compiled = kernels.compiled(tensor.device, tensor.dtype)
        return (hashed if compiled else masked)(tensor, key, first, threshold, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return KeyedDropout.apply(grad, *ctx.settings), None, None, None


def hashed(tensor: Tensor, key: Key, first: int, threshold: int, scale: float) -> Tensor:
    """`scale` times the elements for which the hash of key and place reaches threshold."""
    kept = torch.empty_like(tensor)
    given = (tensor.numel(), tensor, kept, *key, first, threshold, scale)
    kernels.call("dropout", tensor.dtype, *given)
    return kept


def masked(tensor: Tensor, key: Key, first: int, threshold: int, scale: float) -> Tensor:
    """`hashed` by PyTorch's operators: bit for bit the same mask."""
    drawn = torch.arange(first, first + tensor.numel()).to(torch.int32)  # modulo 2**32
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
