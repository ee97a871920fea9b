"""Parts of the update: schedules of the learning rate, averages of weights, norms of gradients."""

from lmkit.optim.averaging import EMA, NTASGD, SWA, Averaging, TwoTailed
from lmkit.optim.gradients import global_norm, is_plain_sgd
from lmkit.optim.hold_then_decay import HoldThenDecay
from lmkit.optim.schedules import (
    Stepping,
    WarmupCosine,
    WarmupLinear,
    check_length,
    documented,
    has_end,
)

__all__ = [
    "EMA",
    "NTASGD",
    "SWA",
    "Averaging",
    "HoldThenDecay",
    "Stepping",
    "TwoTailed",
    "WarmupCosine",
    "WarmupLinear",
    "check_length",
    "documented",
    "global_norm",
    "has_end",
    "is_plain_sgd",
]
