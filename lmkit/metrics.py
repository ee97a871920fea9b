"""Metrics as sums and counts, so that each is a mean over tokens, never a mean of means."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenNLL(Metric):
    """The sum of nll in nats and the number of tokens, over all updates of all processes.

    The sum is float64 (`dtype` is for devices without it), the count int64.
    """

    full_state_update = False
    nll_sum: Tensor
    num_tokens: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("nll_sum", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, mask: Tensor) -> None:
        """nll float (lanes, time) in nats; mask bool (lanes, time), True where it counts."""
        self.nll_sum += torch.where(mask, nll, 0.0).sum(dtype=self.nll_sum.dtype)
        self.num_tokens += mask.sum()

    def compute(self) -> tuple[float, int]:
        """(nll_sum, num_tokens); their ratio is the loss J of the corpus."""
        return float(self.nll_sum), int(self.num_tokens)


def perplexity(nll: float) -> float:
    """exp(J), infinite where exp overflows."""
    return math.exp(nll) if nll < 709 else math.inf


def bits_per_byte(nll_sum: float, num_bytes: int) -> float:
    """Bits per UTF-8 byte from the nats of a whole text; only for lossless tokenizers."""
    return nll_sum / math.log(2) / num_bytes
