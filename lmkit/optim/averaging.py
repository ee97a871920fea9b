"""Averages of the weights over the updates, which are evaluated in the place of the weights."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lmkit.ranges import Count, Share, Size

log = logging.getLogger(__name__)

EARLY = 0.05  # share of an exponential average from which on its beginning matters

Weights = list[Tensor]  # of all parameters, in their order


class Mean:
    """A running mean of weights, each as large as the others unless `share` says otherwise."""

    def __init__(self, count: int = 0, values: Weights | None = None) -> None:
        self.count = count
        self.values = values

    def add(self, weights: Sequence[Tensor], share: float | None = None) -> None:
        """share: of these weights in the new mean; unless given, one by their number."""
        self.count += 1
        if self.values is None:
            self.values = [weight.detach().clone() for weight in weights]
            return
        share = 1 / self.count if share is None else share
        for value, weight in zip(self._at(weights), weights, strict=True):
            value.lerp_(weight.detach(), share)

    def _at(self, weights: Sequence[Tensor]) -> Weights:
        """The values, on the device of the weights: one that was loaded is on the CPU."""
        assert self.values is not None
        pairs = zip(self.values, weights, strict=True)
        self.values = [value.to(weight.device) for value, weight in pairs]
        return self.values

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "values": self.values}


class Averaging(ABC):
    """The base class: `train` calls `update` after every update and `validated` after every
    validation. What is validated, tested and kept as the best are the `weights`."""

    @property
    @abstractmethod
    def weights(self) -> Weights | None:
        """The average; None while there is none: then the weights themselves are evaluated."""

    @property
    def rival(self) -> Weights | None:
        """An average that is validated too, and takes the place of `weights` if it is better."""
        return None

    @abstractmethod
    def update(self, weights: Sequence[Tensor], epoch_ends: bool) -> None:
        """weights: the parameters after an update. epoch_ends: whether it was an epoch's last."""

    def validated(self, nll: float, rival_nll: float | None) -> bool:
        """nll: mean over the validation's tokens with `weights`, rival_nll with `rival`, if there
        is one -> whether the rival has taken the place of `weights`."""
        return False

    def remark(self) -> str | None:
        """What the user should know of the average when a training has ended."""
        if self.weights is None:
            return "averaging: no average has begun, so the weights themselves are evaluated"
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors from which `load_state_dict` goes on."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""

    def forget_validations(self) -> None:  # noqa: B027 - most remember none
        """The values of earlier validations are those of another text."""


class _OneMean(Averaging):
    """An averaging with one mean."""

    def __init__(self) -> None:
        self.mean = Mean()

    @property
    def weights(self) -> Weights | None:
        return self.mean.values

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = Mean(**state["mean"])


class NTASGD(_OneMean):
    """The mean of the weights since validation stopped improving (NT-ASGD: Merity et al. 2018,
    algorithm 1, over Polyak and Juditsky 1992). The learning rate should stay constant.

    interval: validations that must have been no better than the best of all before them (n of the
    paper).
    latest: validation after which the mean begins in any case; null: none.
    """

    def __init__(self, interval: Size = 5, latest: Size | None = None) -> None:
        super().__init__()
        self.interval = interval
        self.latest = latest
        self.begun = False
        self.history: list[float] = []  # nll of the validations until the mean has begun

    def update(self, weights: Sequence[Tensor], epoch_ends: bool) -> None:
        if self.begun:
            self.mean.add(weights)

    def validated(self, nll: float, rival_nll: float | None) -> bool:
        before = self.history[: -self.interval]
        self.history.append(nll)
        if self.begun:
            return False
        if before and nll > min(before):
            self.begun = True
            log.info("validation has stopped improving: the average of the weights begins")
        elif self.latest and len(self.history) >= self.latest:
            self.begun = True
            log.info("validation %d: the average of the weights begins", len(self.history))
        return False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"begun": self.begun, "history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun, self.history = state["begun"], list(state["history"])

    def forget_validations(self) -> None:
        self.history = []


class EMA(_OneMean):
    """The exponential moving average of the weights, without a bias towards the first ones (as in
    Kingma and Ba 2015, section 3).

    decay: factor of a weight's share from one update to the next.
    start: updates before the first that counts.
    """

    def __init__(self, decay: Share = 0.999, start: Count = 0) -> None:
        super().__init__()
        self.decay = decay
        self.start = start
        self.seen = 0

    def update(self, weights: Sequence[Tensor], epoch_ends: bool) -> None:
        self.seen += 1
        if self.seen > self.start:
            added = self.mean.count + 1
            self.mean.add(weights, (1 - self.decay) / (1 - self.decay**added))

    def remark(self) -> str | None:
        # The share that an average without the correction of the bias would have of its beginning.
        if self.mean.count and (early := self.decay**self.mean.count) > EARLY:
            return (
                f"averaging.decay={self.decay:g} is long for {self.mean.count:,} updates: "
                f"{early:.0%} of what it looks back on was before them, and early weights weigh "
                "much; lower it, or set averaging.start"
            )
        return super().remark()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


class SWA(_OneMean):
    """The mean of the weights at the ends of epochs, or every so many updates (stochastic weight
    averaging: Izmailov et al. 2018). The learning rate should stay constant or be cyclical.

    start_epoch: epochs before the first whose weights count.
    every: updates between two weights that count; null: one at the end of each epoch.
    """

    def __init__(self, start_epoch: Count = 0, every: Size | None = None) -> None:
        super().__init__()
        self.start_epoch = start_epoch
        self.every = every
        self.epochs = 0
        self.seen = 0  # updates since the start

    def update(self, weights: Sequence[Tensor], epoch_ends: bool) -> None:
        if self.epochs >= self.start_epoch:
            self.seen += 1
            if epoch_ends if self.every is None else self.seen % self.every == 0:
                self.mean.add(weights)
        self.epochs += epoch_ends

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"epochs": self.epochs, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.epochs, self.seen = state["epochs"], state["seen"]


class TwoTailed(Averaging):
    """Two-tailed averaging (Melis 2022, arXiv:2209.12581): the means over a longer and a shorter
    tail of the updates. Where the shorter is no worse in a validation it becomes the longer one,
    and the other begins anew. There is nothing to set.
    """

    def __init__(self) -> None:
        self.long = Mean()
        self.short = Mean()

    @property
    def weights(self) -> Weights | None:
        return self.long.values

    @property
    def rival(self) -> Weights | None:
        return None if self.short.count == self.long.count else self.short.values

    def update(self, weights: Sequence[Tensor], epoch_ends: bool) -> None:
        self.long.add(weights)
        self.short.add(weights)

    def validated(self, nll: float, rival_nll: float | None) -> bool:
        is_same = self.short.count == self.long.count
        if not is_same and (rival_nll is None or rival_nll > nll):
            return False
        self.long, self.short = self.short, Mean()
        return not is_same

    def state_dict(self) -> dict[str, Any]:
        return {"long": self.long.state_dict(), "short": self.short.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.long, self.short = Mean(**state["long"]), Mean(**state["short"])
