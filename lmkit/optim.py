"""Learning-rate schedules by step, for torch's optimisers."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class _Warmup(LambdaLR):
    """Linear from 0 over `warmup_steps`, then `decay` of what is left of `num_steps`.

    num_steps: updates of the whole run. min_ratio: what the rate ends at, of the optimiser's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: float,
        *,
        warmup_steps: int = 0,
        min_ratio: float = 0.0,
    ) -> None:
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        super().__init__(optimizer, self.ratio)

    def decay(self, done: float) -> float:
        """From 1 at done = 0 to 0 at done = 1."""
        raise NotImplementedError

    def ratio(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = max(self.num_steps - self.warmup_steps, 1)
        done = min((step - self.warmup_steps) / left, 1.0)
        return self.min_ratio + (1 - self.min_ratio) * self.decay(done)


class WarmupCosine(_Warmup):
    """Half a cosine after the warm-up (Loshchilov and Hutter 2017, equation 5, one cycle)."""

    def decay(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


class WarmupLinear(_Warmup):
    """A straight line after the warm-up."""

    def decay(self, done: float) -> float:
        return 1 - done
