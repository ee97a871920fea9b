"""Learning-rate schedules by step, and what clipping asks of gradients and optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lmkit.ranges import Count, Fraction


class _Warmup(LambdaLR):
    """Linear from 0, then `decay` of what is left of `num_steps`.

    num_steps: updates of the whole run. warmup_steps: updates until the optimiser's rate is
    reached. min_ratio: what the rate ends at, as a share of the optimiser's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: float,
        *,
        warmup_steps: Count = 0,
        min_ratio: Fraction = 0.0,
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


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether a step is p -= lr * g and no more, row by row: for g sparse, and scaled by lr."""
    return type(optimizer) is SGD and not any(
        group[key]
        for group in optimizer.param_groups
        for key in ("momentum", "weight_decay", "fused", "foreach")
    )


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together; sparse ones are coalesced."""
    values = []
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            if grad.is_sparse:
                grad = parameter.grad = grad.coalesce()
                grad = grad.values()
            values.append(grad)
    return nn.utils.get_total_norm(values)
