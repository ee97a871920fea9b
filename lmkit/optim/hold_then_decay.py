"""A schedule that keeps the learning rate for some epochs and then lowers it after each."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lmkit.ranges import Positive, Size


class HoldThenDecay(LambdaLR):
    """The optimizer's rate for some epochs, then in each gamma times that of the one before
    (Zaremba et al. 2014, section 4.1).

    hold: epochs at the optimizer's rate.
    gamma: the ratio of the rates of two epochs after them.
    """

    def __init__(self, optimizer: Optimizer, *, hold: Size, gamma: Positive) -> None:
        # `epoch` counts those that are behind.
        super().__init__(optimizer, lambda epoch: gamma ** max(epoch - hold + 1, 0))
