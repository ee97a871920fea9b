"""Dropout whose mask is a hash of a key and of each element's position in the tensor.

Within `Masks` the key is made of the training step and of the mask's name, so that a mask does not
depend on which other dropouts there are, nor on their order.

The mask is not kept for backward but computed again. It costs a tenth of drawing from the one
stream of a generator, and does not depend on the number of threads, nor, within `Masks`, on the
number of processes that share the lanes of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit import kernels

Key = tuple[int, int]
Name = str | int  # `numbered` gives the numbers
SIGN = -(2**31)


class Masks:
    """The dropout masks of one training window, each a function of (seed, epoch, window) and its
    name. They are drawn for all lanes; this process uses those from `first_lane` on."""

    def __init__(
        self, seed: int, epoch: int, window: int, first_lane: int = 0, num_lanes: int | None = None
    ) -> None:
        """num_lanes: lanes of all processes together; by default those of the tensor."""
        self.of = (seed, epoch, window)
        self.first_lane = first_lane
        self.num_lanes = num_lanes

    def key(self, name: Name) -> Key:
        """The key of the mask of this name."""
        # A text becomes two words or more and a number one, so that their keys never agree.
        words = [name] if isinstance(name, int) else [2**32 - 1, *name.encode()]
        first, second = np.random.SeedSequence([*self.of, *words]).generate_state(2).tolist()
        return first, second

    def drawn(self, name: Name, p: float, like: Tensor, rows: int) -> Tensor:
        """The factors of a mask (rows, ..) on an accelerator, each row as in `like` (lanes, ..)."""
        mask = like.new_empty(rows, *like.shape[1:])
        self.draw(mask, name, p)
        return mask

    def draw(self, mask: Tensor, name: Name, p: float) -> None:
        """Fill a mask (rows, ..) with 0 at probability p and 1 / (1 - p) elsewhere. By a generator:
        though it draws for all lanes, it is faster there than the hash of many small kernels."""
        one, other = self.key(name)
        generator = torch.Generator(mask.device).manual_seed(one << 32 | other)
        mask.bernoulli_(1 - p, generator=generator).div_(1 - p)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within this context `dropout` uses these masks."""
        token = _masks.set(self)
        try:
            yield
        finally:
            _masks.reset(token)


_masks: ContextVar[Masks | None] = ContextVar("masks", default=None)


def key_of(name: str) -> Key:
    """The key of this name within `Masks`, the same in all processes, for what is drawn by it; the
    default generator draws it outside."""
    masks = _masks.get()
    if masks is not None:
        return masks.key(name)
    first, second = torch.randint(2**32, (2,)).tolist()
    return first, second


def numbered(probabilities: Sequence[float]) -> list[int]:
    """The names of a stack's dropouts, from first to last: the number before each that have a mask.

    Older runs were begun with these names and must resume with them; new masks are named by a text.
    """
    has_mask = [0 < p < 1 for p in probabilities]
    return list(accumulate(has_mask, initial=0))[:-1]


def dropout(
    tensor: Tensor, p: float, training: bool, name: Name, shared: Sequence[int] = ()
) -> Tensor:
    """Set elements to zero with probability p, divide the others by 1 - p (Srivastava et al. 2014).

    Dimension 0 of the tensor is the lane. name: the mask's name within `Masks`, where the same name
    gives the same mask; outside of `Masks` the default generator draws it. shared: dimensions after
    the lane along which all elements have one mask (over time: Gal and Ghahramani 2016).
    """
    if not training or p == 0:
        return tensor
    if shared:
        sizes = [1 if i in shared else size for i, size in enumerate(tensor.shape)]
        return tensor * dropout(tensor.new_ones(sizes), p, training, name)
    masks = _masks.get()
    if masks is None:
        return _drop(tensor, p, name, 0, len(tensor))
    return _drop(tensor, p, name, masks.first_lane, masks.num_lanes or len(tensor))


def dropout_of_weight(tensor: Tensor, p: float, training: bool, name: Name) -> Tensor:
    """`dropout` of a tensor that all lanes share, such as a matrix: one mask for all of them, and
    the same in every process."""
    return _drop(tensor, p, name, 0, len(tensor)) if training and p else tensor


def _drop(tensor: Tensor, p: float, name: Name, first: int, whole: int) -> Tensor:
    """`dropout` by the mask of a name: of `whole` rows, this tensor has those from `first` on."""
    masks = _masks.get()
    if p == 1 or (masks is None and tensor.device.type != "cpu"):
        return F.dropout(tensor, p)
    if masks is None:
        one, other = torch.randint(2**32, (2,)).tolist()
        return KeyedDropout.apply(tensor, p, (one, other), 0)
    if tensor.device.type == "cpu":
        return KeyedDropout.apply(tensor, p, masks.key(name), first * tensor[0].numel())
    return tensor * masks.drawn(name, p, tensor, whole)[first : first + len(tensor)]


class KeyedDropout(torch.autograd.Function):
    """Dropout by key. It is linear in the tensor, so its gradient is the same function."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, p: float, key: Key, first: int) -> Tensor:
        """first: index of the tensor's first element in the tensor of all lanes."""
        ctx.settings = (p, key, first)
        tensor = tensor.contiguous()
        threshold, scale = min(round(p * 2**32), 2**32 - 1), 1 / (1 - p)  # uint32 in C
        compiled = kernels.compiled(tensor.device, tensor.dtype)
        return (hashed if compiled else masked)(tensor, key, first, threshold, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return KeyedDropout.apply(grad, *ctx.settings), None, None, None


def hashed(tensor: Tensor, key: Key, first: int, threshold: int, scale: float) -> Tensor:
    """`scale` times the elements whose hash of key and index reaches threshold, else zero."""
    kept = torch.empty_like(tensor)
    arguments = (tensor.numel(), tensor, kept, *key, first, threshold, scale)
    kernels.call("dropout", tensor.dtype, *arguments)
    return kept


def masked(tensor: Tensor, key: Key, first: int, threshold: int, scale: float) -> Tensor:
    """`hashed` in PyTorch's operators: bit for bit the same mask."""
    drawn = torch.arange(first, first + tensor.numel()).to(torch.int32)  # modulo 2**32
    for half in key:
        drawn = lowbias32(drawn ^ (half - 2**32 if half >= 2**31 else half))
    # With the sign bit flipped, int32 compares as uint32 does.
    dropped = (drawn ^ SIGN) < threshold + SIGN
    return (tensor * scale).masked_fill_(dropped.view_as(tensor), 0)


def lowbias32(x: Tensor) -> Tensor:
    """Wellons' 32-bit hash (2018), computed in int32."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
