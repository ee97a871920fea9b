"""Parts of the update: groups of parameters, an optimiser, schedules of the learning rate, averages
of weights, norms of gradients."""

from lmkit.optim.averaging import EMA, NTASGD, SWA, Averaging, TwoTailed
from lmkit.optim.gradients import clip_norm, global_norm, is_plain_sgd, scale_rates
from lmkit.optim.groups import Groups, learning_rates
from lmkit.optim.hold_then_decay import HoldThenDecay
from lmkit.optim.muon import MuonWithAdam
from lmkit.optim.schedules import (
    InverseSquareRoot,
    OneCycle,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)
from lmkit.optim.stepping import Stepping, check_length, documented, has_end

__all__ = [
    "EMA",
    "NTASGD",
    "SWA",
    "Averaging",
    "Groups",
    "HoldThenDecay",
    "InverseSquareRoot",
    "MuonWithAdam",
    "OneCycle",
    "Stepping",
    "TwoTailed",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "check_length",
    "clip_norm",
    "documented",
    "global_norm",
    "has_end",
    "is_plain_sgd",
    "learning_rates",
    "scale_rates",
]
