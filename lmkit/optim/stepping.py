"""When a schedule of the learning rate steps, and whether it is long enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lmkit.errors import UserError

Interval = Literal["step", "epoch"]


@dataclass(frozen=True)
class Stepping:
    """When a schedule steps.

    interval: after each update (step) or epoch; null: as the schedule's documentation says.
    monitor: what ReduceLROnPlateau watches; null: val/nll.
    """

    interval: Interval | None = None
    monitor: str | None = None

    def settings(self, scheduler: LRScheduler) -> dict[str, Any]:
        """Lightning's settings of a schedule; raises UserError where it cannot step like this."""
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        if self.monitor is not None and not plateau:
            raise UserError(f"scheduler.monitor={self.monitor}: only ReduceLROnPlateau watches one")
        if plateau and self.interval == "step":
            raise UserError("scheduler.interval=step: ReduceLROnPlateau steps after a validation")
        stepping = {"scheduler": scheduler, "interval": self.interval or documented(scheduler)}
        # Not strict: before the first validation there is nothing to watch.
        watched = {"monitor": self.monitor or "val/nll", "strict": False}
        return stepping | watched if plateau else stepping

    def check_length(self, scheduler: LRScheduler, *, updates: float, epochs: float) -> None:
        """Raise UserError if a schedule ends before a training of so many updates or epochs."""
        by_step = self.settings(scheduler)["interval"] == "step"
        check_length(scheduler, updates if by_step else epochs)


def documented(scheduler: LRScheduler) -> Interval:
    """Whether a schedule steps by update or by epoch: as its class says in `steps_by`, as the
    schedules that it is made of do, or as its documentation says."""
    inner = getattr(scheduler, "_schedulers", [])  # of SequentialLR and ChainedScheduler
    intervals = {documented(schedule) for schedule in inner}
    if len(intervals) > 1:
        raise UserError(
            "scheduler: of its schedules one steps after each update and one after each epoch; "
            "set scheduler.interval=step or scheduler.interval=epoch for all of them"
        )
    usual: Interval = "step" if isinstance(scheduler, OneCycleLR | CyclicLR) else "epoch"
    interval: Interval = intervals.pop() if intervals else getattr(scheduler, "steps_by", usual)
    return interval


def has_end(scheduler: LRScheduler) -> bool:
    """Whether a schedule, or one that it is made of, has a last step; others continue for ever."""
    inner = getattr(scheduler, "_schedulers", [])
    return isinstance(scheduler, OneCycleLR) or any(map(has_end, inner))


def check_length(scheduler: LRScheduler, steps: float, path: str = "scheduler") -> None:
    """Raise UserError if a schedule, or one that it is made of, would have to make more steps than
    it has."""
    milestones = [*getattr(scheduler, "_milestones", []), math.inf]  # of a SequentialLR
    begin = 0
    for number, inner in enumerate(getattr(scheduler, "_schedulers", [])):
        if len(milestones) == 1:  # ChainedScheduler: all at once
            check_length(inner, steps, f"{path}.schedulers.{number}")
        elif begin < steps:
            end = milestones[number]
            own = min(steps, end - 1) - begin  # the step at a milestone is the next one's
            check_length(inner, own, f"{path}.schedulers.{number}")
            begin = end
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps:
        known = f"{steps:.0f}" if math.isfinite(steps) else "more"
        longer = f"total_steps={known if math.isfinite(steps) else '...'}"
        # Hydra's grammar cannot set an element of a list.
        remedy = f"set {path}.{longer}" if path == "scheduler" else f"give it {longer}"
        ends = f"{path} ends after {scheduler.total_steps} steps"
        raise UserError(f"{ends} but the training has {known}; {remedy}")
