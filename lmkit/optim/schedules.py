"""Schedules of the learning rate: each multiplies the rate of every group of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lmkit.ranges import Count, Fraction, Share

Momentum = Annotated[float, Gt(0), Lt(1)]


class _Warmup(LambdaLR):
    """A linear warm-up from 0, then `decay` over the rest of `num_steps`.

    num_steps: updates of the whole run. warmup_steps: updates until the optimiser's rate is
    reached. min_ratio: what the rate ends at, as a share of the optimiser's.
    """

    steps_by = "step"

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
        """The share of the optimiser's rate after so many steps."""
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


class WarmupStableDecay(_Warmup):
    """The optimiser's rate after the warm-up, which goes down at the end of the training (Hu et al.
    2024, arXiv:2404.06395, section 4).

    decay_share: share of the training's updates in which the rate goes down; 0: it never does.
    shape: how; linear, or sqrt: by 1 - sqrt(x), faster at first (Hägele et al. 2024,
    arXiv:2405.18392).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: float,
        *,
        decay_share: Fraction = 0.1,
        shape: Literal["linear", "sqrt"] = "sqrt",
        **settings: Any,
    ) -> None:
        self.decay_share = decay_share
        self.shape = shape
        super().__init__(optimizer, num_steps, **settings)

    def decay(self, done: float) -> float:
        return 1 - (done if self.shape == "linear" else math.sqrt(done))

    def ratio(self, step: int) -> float:
        """The share of the optimiser's rate after so many steps."""
        if step < self.warmup_steps:
            return super().ratio(step)
        decaying, begin = self._decaying()
        if step <= begin or not decaying:
            return 1.0
        done = min((step - begin) / decaying, 1.0)
        return self.min_ratio + (1 - self.min_ratio) * self.decay(done)

    def _decaying(self) -> tuple[float, float]:
        """In how many updates the rate goes down, and after how many it begins to."""
        decaying = self.decay_share * self.num_steps
        return decaying, self.num_steps - decaying

    def misfit(self) -> str | None:
        """The mistake of a warm-up that has not ended when the rate begins to go down."""
        _, begin = self._decaying()
        most = math.floor(begin + 1e-9 * self.num_steps)  # 0.55 * 100 is above 55, by rounding
        if self.warmup_steps <= most:
            return None
        return (
            f"scheduler.warmup_steps={self.warmup_steps} but scheduler.decay_share="
            f"{self.decay_share} of {self.num_steps:.0f} updates leaves {most} before the rate "
            "goes down; lower one of them, or train longer"
        )


class OneCycle(LambdaLR):
    """One cycle over the whole training (Smith and Topin 2018, arXiv:1708.07120): up to the
    optimiser's rate, down to nearly nothing. As torch's OneCycleLR, but each group of parameters
    has its own rate as the highest, and the length is the training's.

    num_steps: updates of the whole training.
    pct_start: share of the updates in which the rate goes up.
    anneal_strategy: by half a cosine, or in a straight line.
    cycle_momentum: whether the optimiser's momentum, where it has one above 0 (Adam: the first of
    betas), goes down as the rate goes up and the other way round.
    base_momentum: the lowest momentum, at the highest rate.
    max_momentum: the highest momentum, at the beginning and the end.
    div_factor: the first rate is the highest divided by this.
    final_div_factor: the last rate is the first divided by this.
    """

    steps_by = "step"

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: float,
        *,
        pct_start: Share = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: Momentum = 0.85,
        max_momentum: Momentum = 0.95,
        div_factor: Annotated[float, Ge(1)] = 25.0,
        final_div_factor: Annotated[float, Ge(1)] = 1e4,
    ) -> None:
        self.num_steps = num_steps
        self.pct_start = pct_start
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.momenta = (max_momentum, base_momentum, max_momentum)
        self.ratios = (1 / div_factor, 1.0, 1 / div_factor / final_div_factor)
        super().__init__(optimizer, self.ratio)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        lowest, highest = config["base_momentum"], config["max_momentum"]
        if lowest <= highest:
            return []
        return [
            f"{at}.base_momentum={lowest} but {at}.max_momentum={highest}: the first is the "
            "lowest; exchange them"
        ]

    def ratio(self, step: int) -> float:
        """The share of the optimiser's rate after so many steps."""
        return self.at(step, self.ratios)

    def at(self, step: int, values: tuple[float, float, float]) -> float:
        """What goes from the first of three values to the second and on to the third, at a step."""
        first, middle, last = values
        peak, end = self.pct_start * self.num_steps - 1, self.num_steps - 1
        if step < peak:
            return self._between(first, middle, step / peak)
        return self._between(middle, last, (step - peak) / (end - peak) if step < end else 1.0)

    def _between(self, one: float, other: float, done: float) -> float:
        if self.anneal_strategy == "linear":
            return one + (other - one) * done
        return other + (one - other) / 2 * (1 + math.cos(math.pi * done))

    def get_lr(self) -> list[Any]:
        """The rates of this step; sets the momentum of this step too."""
        momentum = self.at(self.last_epoch, self.momenta)
        for group in self.optimizer.param_groups if self.cycle_momentum else ():
            if group.get("momentum"):
                group["momentum"] = momentum
            if (betas := group.get("betas")) and betas[0]:
                group["betas"] = (momentum, *betas[1:])
        return super().get_lr()


class InverseSquareRoot(LambdaLR):
    """A linear warm-up, then the rate falls with the root of the number of updates, whatever the
    length of the training (Vaswani et al. 2017, equation 3).

    warmup_steps: updates until the optimiser's rate is reached.
    """

    steps_by = "step"

    def __init__(self, optimizer: Optimizer, *, warmup_steps: Count = 0) -> None:
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, self.ratio)

    def ratio(self, step: int) -> float:
        """The share of the optimiser's rate after so many steps."""
        share = (step + 1) / (self.warmup_steps + 1)
        return min(share, 1 / math.sqrt(share))
